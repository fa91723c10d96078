"""Several processes train one thing: the loss follows the curve of one process with the same batch, and a lost process is told of."""
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from safelight.cli import cli
from safelight.train import parallel
from safelight.train.checkpoints import Checkpoints
from tests import shared_training
from tests.command_lines import command, line, words


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
            assert len(run(tmp_path / f"stopped-{kind}", kind, stop=5)["loss"]) == 4
        again = {kind: run(tmp_path / f"stopped-{kind}", kind) for kind in kinds}
    for kind in kinds:
        assert max(apart(split[kind], one[kind]).values()) < 1e-4, apart(split[kind], one[kind])
        assert split[kind]["held"] < 0.6 * one[kind]["held"]
        assert again[kind]["loss"] == split[kind]["loss"]
        assert torch.equal(again[kind]["end"], split[kind]["end"])
    with pytest.raises(ValueError, match="adafactor cannot work on parameters that are split"), parallel.crew(2, shard=True):
        run(tmp_path / "adafactor", "adafactor")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def losses(told: str) -> list[float]:
    events = [json.loads(row) for row in told.splitlines() if row.startswith("{")]
    return [dict(e["values"])["loss"] for e in events if e.get("what") == "train"]


def test_processes_that_a_launcher_started_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is the first of two, told so as torchrun and accelerate launch do it: by the environment alone."""
    told = words(tmp_path)
    one = CliRunner().invoke(cli, ["--store", str(tmp_path / "one"), *told, "--events", "jsonl"], catch_exceptions=False)
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "GLOO_SOCKET_IFNAME": "lo"}
    for name, value in {**launched, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    other = {**os.environ, "RANK": "1", "LOCAL_RANK": "1"}
    with open(tmp_path / "said", "wb") as said:
        second = subprocess.Popen(line(tmp_path / "two", told), env=other, stdout=said, stderr=said)
    with second:
        both = CliRunner().invoke(cli, ["--store", str(tmp_path / "two"), *told, "--events", "jsonl"], catch_exceptions=False)
        assert second.wait() == 0, (tmp_path / "said").read_text()
    assert len(losses(one.stdout)) == 3
    assert losses(both.stdout) == pytest.approx(losses(one.stdout), abs=1e-4)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no",
              "--dynamo_backend", "no")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), TORCHRUN, ACCELERATE], ids=["own", "torchrun", "accelerate"])
def test_the_command_starts_its_processes_or_is_started_as_them(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    told = words(tmp_path)
    one = command(tmp_path / "one", told, "--out", str(tmp_path / "one.safetensors"))
    more = () if launcher else ("--processes", "2")
    two = command(tmp_path / "two", told, *more, "--out", str(tmp_path / "two.safetensors"), launcher=(sys.executable, *launcher))
    assert len(one) == 3
    assert two == pytest.approx(one, abs=1e-4)
    alone, both = (load_file(tmp_path / f"{name}.safetensors") for name in ("one", "two"))
    assert alone.keys() == both.keys()
    assert max(float((alone[k] - both[k]).abs().max()) for k in alone) < 1e-4
