"""Servers for tests: one in this process without workers, one as users start it, with a worker that draws with the embedded model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from safelight.server.app import application
from safelight.server.files import Shelves
from safelight.server.guard import Rules
from safelight.server.studio import Setup

HOST = "127.0.0.1"
TINY = {"model": "mini", "width": 64, "height": 64, "steps": 2}


@contextmanager
def still(home: Path, **more: Any) -> Iterator[TestClient]:
    """A server without workers: what is queued stays queued."""
    rules = more.pop("rules", Rules())
    headers = {"Authorization": f"Bearer {rules.token}"} if rules.token else {}
    with TestClient(
        application(Setup(Shelves.below(home), rules, devices=(), **more)), base_url=f"http://{HOST}", headers=headers
    ) as client:
        yield client


def drawing(seed: int = 7, prompt: str = "a girl with purple hair", **more: Any) -> dict[str, Any]:
    """A prompt of one op."""
    return {"1": {"class_type": "generate", "inputs": {**TINY, "prompt": prompt, "seeds": [seed], **more}}}


def nodes(seed: int = 7, steps: int = 3, **more: Any) -> dict[str, Any]:
    """The same in ComfyUI's nodes."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    return {
        "1": node("model", name="mini"),
        "2": node("CLIPTextEncode", text="a man with red hair", clip=["1", 1]),
        "3": node("CLIPTextEncode", text="", clip=["1", 1]),
        "4": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "5": node(
            "KSampler",
            model=["1", 0],
            seed=seed,
            cfg=4.0,
            sampler_name="euler",
            scheduler="normal",
            positive=["2", 0],
            negative=["3", 0],
            latent_image=["4", 0],
            denoise=1.0,
            **{"steps": steps, **more},
        ),
        "6": node("VAEDecode", samples=["5", 0], vae=["1", 2]),
        "7": node("SaveImage", images=["6", 0], filename_prefix="shot"),
    }


class Server:
    """A process of `safelight serve`."""

    def __init__(self, home: Path, *options: str, port: int = 0) -> None:
        self.home, self.options = home, options
        environment = {**os.environ, "SAFELIGHT_HOME": str(home / "store"), "OMP_NUM_THREADS": "1"}
        with open(home / "errors.txt", "ab") as errors:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    "from safelight.cli import main; main()",
                    "serve",
                    "--port",
                    str(port),
                    "--dir",
                    str(home / "studio"),
                    "--device",
                    "cpu",
                    *options,
                ],
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                cwd=home,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (home / "errors.txt").read_text()
        self.url = found[0]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def post(self, path: str, data: Any = None) -> Any:
        request = urllib.request.Request(self.url + path, data=json.dumps({} if data is None else data).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def queue(self, prompt: dict[str, Any], **more: Any) -> str:
        return str(self.post("/prompt", {"prompt": prompt, **more})["prompt_id"])

    def wait(self, id: str, seconds: float = 120) -> dict[str, Any]:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if found := self.get(f"/history/{id}"):
                return dict(found[id])
            time.sleep(0.05)
        raise AssertionError(f"{id} did not end: {self.get('/queue')}, {(self.home / 'errors.txt').read_text()[-2000:]}")

    def workers(self) -> list[int]:
        """Process numbers of the workers."""
        children = psutil.Process(self.process.pid).children() if self.process.poll() is None else []
        return [c.pid for c in children if "safelight.server.worker" in _command(c.pid)]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        finally:
            self.kill()
        return self.process.returncode


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
