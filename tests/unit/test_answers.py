"""Work that is asked for an answer alone ends with it, in Python and as a command."""
from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

import safelight as sl
from safelight.cli import cli, status
from safelight.store import current
from tests import tiny

WORDS = ("--steps", "3", "--batch", "2", "--rank", "2", "--targets", "attention", "--samples", "0", "--no-text-encoder", "--preflight")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, five pictures, and a store beside them."""
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.chdir(tmp_path)
    tiny.sd1(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for i in range(5):
        Pil.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text(f"noise number {i}")
    return tmp_path


def ran(*words: object) -> int:
    return status(lambda: cli.main([str(w) for w in words], prog_name="safelight", standalone_mode=False))


def test_the_command_prints_the_answer_and_ends_well(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = ran("train-lora", "pictures", "--model", "model", *WORDS, "--out", "mine.safetensors")
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.startswith("about ") and " s a step, " in out and ", until " in out and out.count("\n") == 1
    assert not (place / "mine.safetensors").exists()
    assert not [r for r in current().records() if r.made.op == "train_lora"], "nothing is kept"


def test_events_end_with_the_answer_as_a_line(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran("train-lora", "pictures", "--model", "model", *WORDS, "--events", "jsonl") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert lines[-1]["event"] == "answer" and {"step", "seconds", "end"} <= set(dict(lines[-1]["values"]))
    assert not [line for line in lines if line["event"] == "failed"]


def test_in_python_it_is_no_value_and_no_error_of_the_usual_kinds(place: Path) -> None:
    asked: dict[str, Any] = {"steps": 3, "batch": 2, "rank": 2, "samples": 0, "preflight": True, "text_encoder": False}
    with pytest.raises(sl.Answered, match="s a step") as ended:
        sl.train_lora(sl.model("model"), sl.folder("pictures"), **asked)
    assert not isinstance(ended.value, ValueError | RuntimeError | OSError)
    with pytest.raises(sl.Answered):
        sl.train_lora(sl.model("model"), sl.folder("pictures"), **asked)  # asked again, not found


def test_other_processes_end_well_too(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ended = list[int]()
    from safelight.train import parallel

    end = parallel._end
    monkeypatch.setattr(parallel, "_end", lambda children, seconds: (end(children, seconds), ended.extend(c.returncode for c in children)))
    assert ran("train-lora", "pictures", "--model", "model", *WORDS, "--processes", "2") == 0
    assert capsys.readouterr().out.startswith("about ")
    assert ended == [0]
