"""A disk that is full: a real small file system, the server as users start it, a real worker."""

from __future__ import annotations

import os
import subprocess
import time
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.serving import Server, drawing

SIZE = 6 * 2**20


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of six megabytes."""
    at = tmp_path / "small"
    at.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", at], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a file system can be mounted by root only")
    yield at
    subprocess.run(["umount", "-l", at], check=True)


def fill(at: Path, leave: int = 0) -> Path:
    """Take all the room there is but for `leave` bytes."""
    ballast = at / "ballast"
    with open(ballast, "wb", buffering=0) as f:
        try:
            while True:
                f.write(bytes(4096))
        except OSError:
            f.truncate(max(f.tell() - leave, 0))
    return ballast


def status(ask: Callable[[], object]) -> int:
    try:
        ask()
    except urllib.error.HTTPError as e:
        with e:
            return e.code
    return 200


def test_a_full_disk_refuses_with_507_and_the_queue_is_intact(small: Path, tmp_path: Path) -> None:
    server = Server(tmp_path, "--workers", "0", "--dir", str(small))
    try:
        ids = [server.queue(drawing(i)) for i in range(3)]
        before = server.get("/queue")
        ballast = fill(small)
        for _ in range(3):
            assert status(lambda: server.queue(drawing(9, prompt="x" * 10_000))) == 507
        for path in ("/settings", "/userdata/a.json"):
            assert status(lambda path=path: server.post(path, {"a": "x" * 10_000})) == 507  # type: ignore[misc]
        assert server.get("/queue") == before and server.get("/history") == {} and len(server.get("/api/jobs")["jobs"]) == 3
        server.kill()
        server = Server(tmp_path, "--workers", "0", "--dir", str(small))  # on the full disk
        assert server.get("/queue") == before
        ballast.unlink()
        ids.append(server.queue(drawing(9)))
        assert ids == [item[1] for item in server.get("/queue")["queue_pending"]]
        assert list(small.rglob("*.part")) == []
    finally:
        assert server.stop() == 0


def test_a_disk_that_fills_while_a_result_is_written_fails_that_prompt_alone(small: Path, tmp_path: Path) -> None:
    """Results lie on the small disk, the queue does not: the prompt says why it failed, and the next one runs when there is room."""
    server = Server(tmp_path, "--output", str(small / "out"))
    try:
        assert server.wait(server.queue(drawing(1)))["status"]["completed"]
        ballast = fill(small)
        told = server.wait(server.queue(drawing(2)))["status"]
        assert told["status_str"] == "error" and "space" in told["messages"][-1][1]["exception_message"].lower()
        assert told["messages"][-1][0] == "execution_error" and server.get("/queue")["queue_pending"] == []
        ballast.unlink()
        entry = server.wait(server.queue(drawing(2)))
        assert entry["status"]["completed"] and (small / "out" / entry["outputs"]["1"]["images"][0]["filename"]).is_file()
        assert len(server.workers()) == 1
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_what_runs_when_the_queues_disk_fills_is_told_of_when_there_is_room(small: Path, tmp_path: Path) -> None:
    """Everything lies on the small disk. Nothing is lost: what cannot be written yet is, once something was removed."""
    server = Server(tmp_path, "--dir", str(small))
    try:
        server.wait(server.queue(drawing(1)))
        server.post("/queue", {"pause": True})
        ids = [server.queue(drawing(i)) for i in (2, 3)]
        server.post("/queue", {"pause": False})
        ballast = fill(small)
        time.sleep(1)
        waiting = server.get("/queue")
        done = [i for i in ids if server.get(f"/history/{i}")]
        assert len(waiting["queue_running"]) + len(waiting["queue_pending"]) + len(done) == 2
        ballast.unlink()
        assert all(server.wait(id)["status"]["status_str"] in ("success", "error") for id in ids)
        assert server.wait(server.queue(drawing(4)))["status"]["completed"]
    finally:
        assert server.stop() == 0
        assert os.listdir(small)
