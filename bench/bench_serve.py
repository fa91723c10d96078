"""The server under load: `python bench/bench_serve.py [--comfy URL --checkpoint NAME]`.

Printed are: processor seconds from the start to the first answer; the time of a prompt that was run before, from the request to the end
told on the socket, with nothing left to compute (median of 200); with 1,000 waiting prompts and 100 sockets the 50th and 99th percentile of
GET /queue and the server's memory; wall and processor seconds for pictures that 1, 4 and 8 clients ask for at once, each one 256 x 256 of
the embedded model in 20 steps, and the ratio to as many times one client. `--comfy` names a running ComfyUI for the second figure.
"""
from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import ClientConnection, connect

AGAIN, LOOKS, SOCKETS, WAITING = 200, 400, 100, 1000


class Server:
    """`safelight serve` in a folder of its own."""

    def __init__(self, home: Path) -> None:
        environment = {**os.environ, "SAFELIGHT_HOME": str(home)}
        command = [sys.executable, "-c", "from safelight.cli import main; main()", "serve", "--port", "0", "--dir", str(home / "studio")]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True, cwd=home)
        assert self.process.stdout is not None
        self.url = re.search(r"http://\S+", self.process.stdout.readline())[0]  # type: ignore[index]

    def cpu(self, *, workers: bool = False) -> float:
        """Processor seconds so far, of the server or of its workers."""
        at = psutil.Process(self.process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in (at.children() if workers else [at]))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def call(url: str, data: Any = None) -> Any:
    """GET, or POST of JSON."""
    request = urllib.request.Request(url, data=None if data is None else json.dumps(data).encode())
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def drawing(seed: int, steps: int = 20, side: int = 256) -> dict[str, Any]:
    """One picture by one op."""
    inputs = {"model": "mini", "prompt": f"a girl with purple hair, {seed}", "seeds": [seed], "width": side, "height": side, "steps": steps}
    return {"1": {"class_type": "generate", "inputs": inputs}}


def nodes(checkpoint: str, seed: int = 1) -> dict[str, Any]:
    """The usual seven nodes, in few steps."""
    loader = ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}) if checkpoint else ("model", {"name": "mini"})
    graph = {
        "1": loader, "2": ("CLIPTextEncode", {"text": "a cat", "clip": ["1", 1]}), "3": ("CLIPTextEncode", {"text": "", "clip": ["1", 1]}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "5": ("KSampler", {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed,
                           "steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}), "7": ("SaveImage", {"images": ["6", 0], "filename_prefix": "bench"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}


def ended(socket: ClientConnection, id: str) -> None:
    """Listen until the prompt has ended."""
    while True:
        said = socket.recv()
        told = json.loads(said) if isinstance(said, str) else {"type": ""}
        if told["type"] == "executing" and told["data"]["node"] is None and told["data"].get("prompt_id") == id:
            return
        if told["type"] == "execution_error":
            sys.exit(told["data"]["exception_message"])


def again(url: str, checkpoint: str, times: int = AGAIN) -> float:
    """Median milliseconds of a prompt that was run before."""
    took = []
    with connect(url.replace("http", "ws") + "/ws?clientId=bench") as socket:
        for _ in range(times + 1):
            begun = time.perf_counter()
            ended(socket, call(f"{url}/prompt", {"prompt": nodes(checkpoint), "client_id": "bench"})["prompt_id"])
            took.append(1000 * (time.perf_counter() - begun))
    return statistics.median(took[1:])


def loaded(server: Server) -> None:
    """A long queue and many listeners."""
    call(f"{server.url}/queue", {"pause": True})
    with ExitStack() as stack:
        url = server.url.replace("http", "ws")
        ears = [stack.enter_context(connect(f"{url}/ws?clientId=c{i}", max_queue=None)) for i in range(SOCKETS)]
        begun = time.perf_counter()
        for i in range(WAITING):
            call(f"{server.url}/prompt", {"prompt": nodes("", 10_000 + i), "client_id": f"c{i % SOCKETS}"})
        rate = WAITING / (time.perf_counter() - begun)
        took, used = [], server.cpu()
        for _ in range(LOOKS):
            begun = time.perf_counter()
            assert len(call(f"{server.url}/queue")["queue_pending"]) == WAITING
            took.append(1000 * (time.perf_counter() - begun))
        used = 1000 * (server.cpu() - used) / LOOKS
        memory = psutil.Process(server.process.pid).memory_info().rss / 2**20
        assert len(ears) == SOCKETS
    shares = statistics.quantiles(took, n=100)
    print(f"{WAITING} waiting, {SOCKETS} sockets: GET /queue p50 {shares[49]:.0f} ms, p99 {shares[98]:.0f} ms, of processor time "
          f"{used:.1f} ms; server {memory:.0f} MB; {rate:.0f} prompts taken in a second")
    call(f"{server.url}/queue", {"clear": True})
    call(f"{server.url}/queue", {"pause": False})


def at_once(server: Server, clients: int, first: int) -> tuple[float, float]:
    """Wall and processor seconds until as many clients have a picture each."""

    def client(i: int) -> None:
        with connect(f"{server.url.replace('http', 'ws')}/ws?clientId=at{i}") as socket:
            ended(socket, call(f"{server.url}/prompt", {"prompt": drawing(first + i), "client_id": f"at{i}"})["prompt_id"])

    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    begun, cpu = time.perf_counter(), server.cpu(workers=True)
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.perf_counter() - begun, server.cpu(workers=True) - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--comfy", default="", help="http://127.0.0.1:8188 of a running ComfyUI")
    parser.add_argument("--checkpoint", default="", help="a checkpoint that it has")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        call(f"{server.url}/queue")
        print(f"start to the first answer: {server.cpu():.2f} s of processor time")
        again(server.url, "", 1)
        used = server.cpu(), server.cpu(workers=True)
        ours = again(server.url, "")
        spent = [1000 * (now - then) / AGAIN for now, then in zip((server.cpu(), server.cpu(workers=True)), used, strict=True)]
        print(f"a prompt that was run before: {ours:.1f} ms; of processor time {spent[0]:.1f} ms here and {spent[1]:.1f} ms in the worker")
        if asked.comfy:
            theirs = again(asked.comfy, asked.checkpoint)
            print(f"the same by ComfyUI: {theirs:.1f} ms, {theirs / ours:.2f} x ours")
        loaded(server)
        at_once(server, 1, 1)
        one = min(at_once(server, 1, 10 + i) for i in range(3))
        for clients in (1, 4, 8):
            wall, cpu = one if clients == 1 else min(at_once(server, clients, 1000 * clients + 100 * i) for i in range(2))
            print(f"{clients} clients: {wall:.2f} s, {cpu:.2f} s of processor time; {wall / one[0] / clients:.2f} x and "
                  f"{cpu / one[1] / clients:.2f} x as many times one")
        server.stop()


if __name__ == "__main__":
    main()
