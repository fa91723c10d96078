"""What is known of a prompt that was run before, and when it no longer holds."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safelight.op import load_ops
from safelight.server import known
from safelight.server.known import files, marks
from safelight.server.studio import _key
from tests import checkpoints
from tests.server.serving import Server, drawing, nodes

OPS = load_ops()


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


def test_what_no_prompt_may_be_stops_no_worker(server: Server) -> None:
    """Nodes that are left out are kept in the history all the same; what is sent beside a prompt may be anything."""
    for entry in ({"class_type": ["x"], "inputs": {}}, {}, 5, {"class_type": "model", "inputs": []}):
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.queue(nodes() | {"99": entry}, partial_execution_targets=["7"])  # type: ignore[dict-item]
        refused.value.close()
        assert refused.value.code == 400, entry
    for _ in range(3):
        done = server.wait(server.queue(drawing(31), extra_data={"extra_pnginfo": ["x"]}))
        assert done["status"]["completed"]


def test_a_configuration_that_is_edited_in_place_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "models"
    for kind in ("configs", "checkpoints"):
        (root / kind).mkdir(parents=True)
    layout = checkpoints.sd1(words=checkpoints.WORDS)
    checkpoints.checkpoint(root / "checkpoints" / "tiny.safetensors", layout, checkpoints.networks(layout))
    said = "model:\n  params:\n    {}\n    cond_stage_config:\n      params:\n        {}\n"
    file = root / "configs" / "c.yaml"
    file.write_text(said.format("linear_start: 0.00085", "freeze: true"))
    old = time.time() - 60
    os.utime(file, (old, old))
    monkeypatch.setenv("SAFELIGHT_MODELS", str(root))
    given = nodes() | {"1": {"class_type": "CheckpointLoader", "inputs": {"config_name": "c.yaml", "ckpt_name": "tiny.safetensors"}}}
    server = Server(tmp_path)
    try:
        before = [server.wait(server.queue(given))["outputs"] for _ in range(3)]
        with file.open("r+") as open_file:
            open_file.write(said.format("parameterization: v", "layer_idx: -2"))
        after = server.wait(server.queue(given))["outputs"]
    finally:
        server.kill()
    assert before[1] == before[2] != after


def graph(path: Path | str, op: str = "load_image", **more: Any) -> dict[str, Any]:
    return {"1": {"class_type": op, "inputs": {"path": str(path), **more}}}


def test_a_file_counts_until_it_changes_and_a_folder_until_it_holds_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture, lora = tmp_path / "a.png", tmp_path / "loras" / "deep" / "b.safetensors"
    lora.parent.mkdir(parents=True)
    picture.write_bytes(b"one")
    lora.write_bytes(b"some")
    roots = [str(tmp_path / name) for name in ("loras", "none")]
    beside = ["config.json", "adapter_config.json"]
    assert files([graph(picture)], OPS) == [str(picture), *(str(tmp_path / name) for name in beside)]
    assert files([graph(lora, "load_lora")], OPS) == [str(lora), *(str(lora.parent / name) for name in beside)]
    assert marks([str(picture)], roots) is None  # it was written just now, and may be again without its time showing it
    monkeypatch.setattr(known, "FRESH", 0)
    seen = marks([str(picture)], roots)
    assert seen is not None and seen == marks(seen) and seen[str(tmp_path / "none")] == ()
    assert set(seen) == {str(picture), *roots, str(lora.parent)}
    (lora.parent / "another.safetensors").write_bytes(b"in a folder that was there")
    assert marks(seen) != seen
    seen = marks([str(picture)], roots)
    (tmp_path / "none").mkdir()
    assert seen is not None and marks(seen) != seen
    seen = marks([str(picture)], roots)
    picture.write_bytes(b"two")
    assert seen is not None and marks(seen) != seen
    assert marks(map(str, range(known.MOST + 1))) is None


def test_what_is_not_followed_is_not_known(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    picture.write_bytes(b"one")
    assert files([graph(tmp_path)], OPS) is None and files([graph(picture), graph("a.png")], OPS) is None  # a folder; a name
    assert files([graph(tmp_path, "folder")], OPS) is None  # an op that reads more than files
    for other in (str(picture), "by its name"):
        assert files([{"1": {"class_type": "model", "inputs": {"name": "mini", "text_encoder": other}}}], OPS) is None
    assert files([{"1": {"class_type": "model", "inputs": {"name": "mini"}}}], OPS) == []
    assert files([{"1": {"class_type": "model", "inputs": {"name": "gone.safetensors", "scale": "none of its settings"}}}], OPS) is None


def test_what_is_sent_beside_a_prompt_makes_no_key_longer() -> None:
    few, many = (_key("{}", {"extra_pnginfo": {"workflow": "\ud800" * n}}) for n in (1, 10**6))
    assert len(few) == len(many) and few != many
