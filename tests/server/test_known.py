"""What is known of a prompt that was run before, and when it no longer holds."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.comfy.run import known_ops
from safelight.folders import Folders, Place
from safelight.server import known
from safelight.server.known import Known, Noting, files
from tests.server.serving import Server, drawing, nodes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("known"))
    yield server
    assert server.stop() == 0


def told(entry: dict[str, Any]) -> tuple[Any, ...]:
    """What the history says of a run, but for its id and times."""
    return entry["outputs"], entry["prompt"][2:], [(kind, data.get("nodes")) for kind, data in entry["status"]["messages"]]


def test_what_was_run_before_is_done_without_a_worker_and_survives(server: Server) -> None:
    """The worker is asked until all lay in the store; stopped, it cannot be asked again."""
    _, second = (server.wait(server.queue(nodes())) for _ in range(2))
    [pid] = server.workers()
    os.kill(pid, signal.SIGSTOP)
    try:
        id = server.queue(nodes(), extra_data={"something": "else"})
        assert list(server.get(f"/history/{id}")) == [id]  # what was acknowledged is done
        server.kill()
    finally:
        os.kill(pid, signal.SIGCONT)
    server.__init__(server.home)  # type: ignore[misc]
    again = server.get(f"/history/{id}")[id]
    assert again["prompt"][3] == {"something": "else"} and again["status"]["completed"]
    assert (told(again)[0], told(again)[2]) == (told(second)[0], told(second)[2])


def test_another_prompt_part_of_one_or_one_that_draws_its_seed_is_asked_for(server: Server) -> None:
    two = nodes(seed=21) | {"8": {"class_type": "PreviewImage", "inputs": {"images": ["6", 0]}}}
    for _ in range(3):
        part = server.wait(server.queue(two, partial_execution_targets=["8"]))
        assert set(part["outputs"]) == {"8"}
    whole = server.wait(server.queue(two))
    assert set(whole["outputs"]) == {"7", "8"}
    drawn = [json.dumps(server.wait(server.queue(drawing(-1)))["outputs"]) for _ in range(3)]
    assert len(set(drawn)) == 3


def graph(path: Path | str, op: str = "load_image", **more: Any) -> dict[str, Any]:
    return {"1": {"class_type": op, "inputs": {"path": str(path), **more}}}


def test_a_file_counts_until_it_changes_and_so_does_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "FRESH", 0)
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    picture, lora = tmp_path / "a.png", tmp_path / "second" / "b.safetensors"
    picture.write_bytes(b"one")
    lora.write_bytes(b"some")
    models = Folders({"loras": (Place(tmp_path / "first"), Place(tmp_path / "second"))})
    places = Noting(models, tmp_path, tmp_path)
    ops = known_ops(places)
    assert places.find("loras", "b.safetensors") == str(lora)
    with pytest.raises(ValueError, match="nowhere"):
        places.find("loras", "nowhere")
    names = [(*k, v) for k, v in places.found.items()]
    read = files(graph(picture), ops)
    assert read is not None and set(read) == {str(picture)}
    run = Known({}, "[]", "", [], {}, names, json.loads(json.dumps(read)))
    assert run.holds(places)
    beside = files(graph(lora, "load_lora"), ops)
    assert beside is not None and beside[str(lora.with_name("adapter_config.json"))] is None
    (tmp_path / "first" / "b.safetensors").write_bytes(b"another of that name, found first")
    assert not run.holds(places)
    (tmp_path / "first" / "b.safetensors").unlink()
    assert run.holds(places)
    (tmp_path / "first" / "nowhere.safetensors").write_bytes(b"now it is somewhere")
    assert not run.holds(places)
    (tmp_path / "first" / "nowhere.safetensors").unlink()
    picture.write_bytes(b"two")
    assert not run.holds(places)


def test_what_is_not_followed_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    ops = known_ops(Noting(Folders({}), tmp_path, tmp_path))
    assert files(graph(picture), ops) is None  # it was written just now, and may be again without its time showing it
    monkeypatch.setattr(known, "FRESH", 0)
    assert files(graph(tmp_path), ops) is None and files(graph("a.png"), ops) is None  # a folder; a name
    assert files(graph(tmp_path, "folder"), ops) is None  # an op that reads more than files
    assert files({"1": {"class_type": "model", "inputs": {"name": "mini", "text_encoder": str(picture)}}}, ops) is None
    assert files({"1": {"class_type": "model", "inputs": {"name": "mini"}}}, ops) == {}
