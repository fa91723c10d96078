"""Several processes train one thing: the loss follows the curve of one process with the same batch, and a lost process is told of."""
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors.torch import load_file

from safelight.train import parallel
from safelight.train.checkpoints import Checkpoints
from tests import shared_training, tiny


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))


def run(folder: Path, kind: str = "adamw", *, die: int = -1, stop: int = 0) -> dict[str, Any]:
    """What the recipe returns, or the record of its checkpoint when it is stopped after so many steps."""
    folder.mkdir(exist_ok=True)
    work = parallel.together(shared_training.recipe, folder, kind, die)
    if stop:
        for _ in islice(work, stop):
            pass
        work.close()
        saved = Checkpoints(folder / "kept").load()
        assert saved is not None
        return saved.record
    told: list[dict[str, Any]] = []

    def whole() -> Iterator[object]:
        told.append((yield from work))

    for _ in whole():
        pass
    return told[0]


def apart(a: dict[str, Any], b: dict[str, Any]) -> dict[str, float]:
    """The largest differences of two runs."""
    found = {name: (torch.tensor(a[name]), torch.tensor(b[name])) for name in ("loss", "norm", "held_out")} | {"end": (a["end"], b["end"])}
    assert all(x.shape == y.shape for x, y in found.values())
    return {name: float((x - y).abs().max()) for name, (x, y) in found.items()}


def test_two_processes_follow_the_curve_of_one_and_resume_exactly(tmp_path: Path) -> None:
    alone = run(tmp_path / "alone")
    with parallel.crew(2):
        assert parallel.share() == parallel.Share(0, 2)
        two, stopped = run(tmp_path / "two"), run(tmp_path / "stopped", stop=5)
        again = run(tmp_path / "stopped")
    assert parallel.share() == parallel.Share(0, 1) and "RANK" not in os.environ
    assert max(apart(two, alone).values()) < 1e-4
    assert two["looks"] == alone["looks"] == [0, 5, 10]
    assert len(stopped["loss"]) == 4
    assert again["loss"] == two["loss"]
    assert torch.equal(again["end"], two["end"])


def test_a_process_that_dies_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ChildProcessError, match=r"process 1 of 2 ended \(status 3\).*goes on from its last checkpoint"), parallel.crew(2):
        run(tmp_path, die=3)
    saved = Checkpoints(tmp_path / "kept").load()
    assert saved is not None
    assert saved.step == 3
    assert run(tmp_path)["loss"][-1][0] == shared_training.STEPS - 1


@pytest.mark.slow
def test_split_parameters_follow_the_curve_of_one(tmp_path: Path) -> None:
    kinds = ["adamw", "schedulefree"]
    one = {kind: run(tmp_path / f"one-{kind}", kind) for kind in kinds}
    with parallel.crew(2, shard=True):
        split = {kind: run(tmp_path / f"split-{kind}", kind) for kind in kinds}
        for kind in kinds:
            assert len(run(tmp_path / f"stopped-{kind}", kind, stop=4)["loss"]) == 4
        again = {kind: run(tmp_path / f"stopped-{kind}", kind) for kind in kinds}
    for kind in kinds:
        assert max(apart(split[kind], one[kind]).values()) < 1e-4, apart(split[kind], one[kind])
        assert split[kind]["held"] < 0.6 * one[kind]["held"]
        assert again[kind]["loss"] == split[kind]["loss"]
        assert torch.equal(again[kind]["end"], split[kind]["end"])
    with pytest.raises(ValueError, match="adafactor cannot work on parameters that are split"), parallel.crew(2, shard=True):
        run(tmp_path / "adafactor", "adafactor")


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command line that trains a LoRA of a tiny model."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for i in range(6):
        Pil.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"picture number {i}, in test style")
    model = tiny.mini(tmp_path_factory.mktemp("m") / "model")
    knobs = {"rank": 2, "steps": 6, "batch": 4, "every": 3, "samples": 1, "held_out": 0.3, "lr": 1e-3, "dtype": "float32"}
    return ["train-lora", "--model", str(model), str(folder), *(w for k, v in knobs.items() for w in (f"--{k.replace('_', '-')}", str(v)))]


def command(home: Path, words: list[str], *more: str, launcher: tuple[str, ...] = ()) -> list[float]:
    """The losses that the events tell."""
    line = [sys.executable, *launcher, "-m", "safelight", "--store", str(home), *words, "--events", "jsonl", *more]
    done = subprocess.run(line, capture_output=True, text=True, timeout=240, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    events = [json.loads(row) for row in done.stdout.splitlines() if row.startswith("{")]
    return [dict(e["values"])["loss"] for e in events if e.get("what") == "train"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")])
def test_the_command_starts_its_processes_or_is_started_as_them(tmp_path: Path, words: list[str], launcher: tuple[str, ...]) -> None:
    one = command(tmp_path / "one", words)
    two = command(tmp_path / "two", words, *(() if launcher else ("--processes", "2")), launcher=launcher)
    assert len(one) == 6
    assert two == pytest.approx(one, abs=1e-4)


def below(pid: int) -> Iterator[int]:
    """The processes that a process has started, and theirs."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield from (int(child), *below(int(child)))


def kill_a_worker(process: subprocess.Popen[bytes], home: Path) -> int:
    """Once the training has told of a step; returns how many were killed."""
    while process.poll() is None:
        time.sleep(0.2)
        if any(path.stat().st_size for path in home.glob("work/*/metrics.jsonl")):
            workers = [pid for pid in below(process.pid) if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            for pid in workers[:1]:
                os.kill(pid, signal.SIGKILL)
            return len(workers[:1])
    return 0


@pytest.mark.slow
def test_ray_begins_again_where_a_worker_is_lost(tmp_path: Path, words: list[str]) -> None:
    pytest.importorskip("ray.train", exc_type=ImportError)
    words = [*words, "--steps", "30"]
    command(tmp_path / "one", words, "--out", str(tmp_path / "one.safetensors"))
    more = ["--processes", "2", "--engine", "ray", "--out", str(tmp_path / "ray.safetensors")]
    line = [sys.executable, "-m", "safelight", "--store", str(tmp_path / "ray"), *words, *more]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        killed = kill_a_worker(process, tmp_path / "ray")
        assert process.wait() == 0
    assert killed == 1
    one, ray = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "ray"))
    assert one.keys() == ray.keys()
    assert max(float((one[k] - ray[k]).abs().max()) for k in one) < 1e-4
