"""A training whose networks are split between two processes (FSDP2): the curve and the file of one process, and killed, the same file."""
from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from safelight.computing import computing
from safelight.engine import call
from safelight.op import load_ops
from safelight.store import Store
from safelight.train import parallel
from tests.command_lines import words

pytestmark = pytest.mark.slow

KNOBS = {"batch": 4, "every": 2, "steps": 4, "samples": 1, "held_out": 0.3, "lr": 1e-3, "prior": 0.25}
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "whole": ("train_full", {"kept": "float32", "parts": "all"}),
    "adapter": ("train_lora", {"rank": 2, "checkpointing": True}),
    "control": ("train_control", {"held_out": 0.3, "prior": None}),
}

OFTEN = "from safelight.recipes import shared; shared.CHECKPOINT_SECONDS = 0.0; from safelight.cli import main; main()"
"""The command, with a checkpoint after every step."""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "split"))


def trained(folder: Path, home: Path, op: str, **knobs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's tensors, and the record."""
    given = {"model": str(folder / "model"), "data": str(folder / "pictures"), **KNOBS, **knobs}
    work = call(load_ops()[op], {k: v for k, v in given.items() if v is not None}, Store(home))
    while True:
        try:
            next(work)
        except StopIteration as end:
            return load_file(end.value.weights.path), json.loads(Path(end.value.files["record.json"].path).read_text())


def test_split_networks_follow_the_curve_of_whole_ones(tmp_path: Path) -> None:
    words(tmp_path)
    refused = pytest.raises(ValueError, match=r"batch 3 in parts of 1 by 2 processes.*expected a batch that is a multiple of 2")
    with computing("cpu", "float32", ""):
        one = {name: trained(tmp_path, tmp_path / "one", op, **knobs) for name, (op, knobs) in WAYS.items()}
        with refused, parallel.crew(2, shard=True):
            split = {name: trained(tmp_path, tmp_path / "split", op, **knobs) for name, (op, knobs) in WAYS.items()}
            trained(tmp_path, tmp_path / "split", "train_lora", batch=3, at_once=1)
    for name, (weights, record) in one.items():
        parts, told = split[name]
        assert weights.keys() == parts.keys()
        assert max(float((weights[k].float() - parts[k].float()).abs().max()) for k in weights) < 1e-4
        for curve in ("loss", "norm", "held_out", "bands"):
            assert [x for row in told[curve] for x in row] == pytest.approx([x for row in record[curve] for x in row], abs=1e-4)
        assert [row[:2] for row in told["hard"]] == [row[:2] for row in record["hard"]]


def test_killed_it_ends_with_the_file_of_one_that_was_not(tmp_path: Path) -> None:
    knobs = ["--batch", "2", "--steps", "8", "--every", "4", "--samples", "0", "--held-out", "0.3", "--lr", "1e-3", "--device", "cpu"]
    told = ["train-full", *words(tmp_path)[1:4], *knobs, "--dtype", "float32", "--processes", "2", "--shard", "--events", "jsonl"]

    def line(home: str, out: str) -> list[str]:
        return [sys.executable, "-c", OFTEN, "--store", str(tmp_path / home), *told, "--out", str(tmp_path / f"{out}.safetensors")]

    subprocess.run(line("one", "whole"), check=True, capture_output=True)
    with subprocess.Popen(line("two", "none"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while sum(len(p.read_text().splitlines()) for p in (tmp_path / "two").glob("work/*/metrics.jsonl")) < 3:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    again = subprocess.run(line("two", "again"), check=True, capture_output=True, text=True).stdout
    steps = [json.loads(row)["step"] for row in again.splitlines() if row.startswith("{") and '"what": "train"' in row]
    assert 1 < steps[0] <= steps[-1] == 8
    whole, resumed = (hashlib.sha256((tmp_path / f"{name}.safetensors").read_bytes()).hexdigest() for name in ("whole", "again"))
    assert whole == resumed
