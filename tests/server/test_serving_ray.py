"""Workers that are actors of a Ray cluster: the same prompts, the same results, and what is killed is replaced."""
from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight.server.files import Shelves
from safelight.server.guard import Rules
from safelight.server.studio import Setup
from tests.server.serving import Server, drawing

TOKEN = "f2c1"


class Guarded(Server):
    """A server that wants its token."""

    def get(self, path: str) -> Any:
        return self.asked(path, None)

    def post(self, path: str, data: Any = None) -> Any:
        return self.asked(path, json.dumps({} if data is None else data).encode())

    def asked(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, data=body, headers={"Authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def actors(self) -> list[int]:
        """Process numbers of the actors on this machine."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                found += [child.pid] if "ray::Seat" in " ".join(child.cmdline()) else []
            except psutil.NoSuchProcess:
                continue
        return found


def test_without_a_token_a_cluster_is_not_served(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--engine ray works on a whole cluster, and there is no token"):
        Setup(Shelves.below(tmp_path), ray="")
    assert Setup(Shelves.below(tmp_path), Rules(token=TOKEN), ray="").ray == ""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    pytest.importorskip("ray")
    server = Guarded(tmp_path_factory.mktemp("ray"), "--engine", "ray", "--token", TOKEN)
    yield server
    assert server.stop() in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_a_killed_actor_is_replaced_and_its_prompt_ends_once(server: Guarded) -> None:
    first = server.queue(drawing(7))
    entry = server.wait(first, 400)
    assert entry["status"]["completed"] and len(entry["outputs"]["1"]["images"]) == 1
    modules = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in modules and "_raylet" not in modules  # neither is in the server's process
    second = server.queue(drawing(8, steps=400))
    while not any(p["share"] > 0 for p in server.get("/api/safelight/queue")["progress"].values()):
        assert not server.get(f"/history/{second}")
        time.sleep(0.05)
    (killed,) = server.actors()
    os.kill(killed, signal.SIGKILL)
    entry = server.wait(second, 400)
    assert entry["status"]["completed"] and len(entry["outputs"]["1"]["images"]) == 1
    assert server.actors() != [killed]
    assert len(list((server.home / "studio" / "output").glob("*.png"))) == 2
    assert "the actor ended" in (server.home / "errors.txt").read_text()


@pytest.mark.slow
def test_a_prompt_on_an_actor_can_be_stopped(server: Guarded) -> None:
    id = server.queue(drawing(9, steps=900))
    while not any(p["share"] > 0 for p in server.get("/api/safelight/queue")["progress"].values()):
        assert not server.get(f"/history/{id}")
        time.sleep(0.05)
    server.post("/interrupt")
    assert not server.wait(id, 400)["status"]["completed"]
