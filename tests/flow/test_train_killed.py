"""A training killed with SIGKILL again and again, and once stopped by a full disk, ends with the very file of one that was left alone."""
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from tests import tiny

STAY = ("loss", "lr", "norm", "held_out", "bands", "kept_step", "samples", "proof")


@contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A file system of its own in the folder, where that is allowed; whether it is."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    made = subprocess.run(command, capture_output=True, check=False).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass
class Ended:
    """How a run ended: with a file and its record, with an error, or neither when it was killed."""

    sha: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    error: str = ""


class Trainer:
    """The process of `train_child.py`, and what it says."""

    def __init__(self, model: Path, pictures: Path) -> None:
        self.given, self.steps = f"{model} {pictures}", 24
        here = Path(__file__)
        env = {**os.environ, "PYTHONPATH": str(here.parents[2]), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.flow.train_child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=here.parents[2])

    def lines(self, home: Path) -> Iterator[str]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{home} {self.given} {self.steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("exit"):
                return
            yield line.strip()

    def run(self, home: Path, *, kill: tuple[int, float] | None = None, fill: Path | None = None) -> Ended:
        """Kill it so many events and seconds in; or, at its tenth step, fill the disk at `fill`, or forbid it to write more."""
        pid, events, ended = 0, 0, Ended()
        for line in self.lines(home):
            word, _, rest = line.partition(" ")
            if word == "pid":
                pid = int(rest)
            elif word == "done":
                ended = Ended(rest.split()[0], json.loads(Path(rest.split()[1]).read_text()))
            elif word == "failed":
                ended = Ended(error=rest)
            elif kill and (events := events + 1) == kill[0]:
                time.sleep(kill[1])
                os.kill(pid, signal.SIGKILL)
            elif fill and '"what": "train"' in line and '"step": 10' in line:
                full(fill, pid)
        return ended


def full(place: Path, pid: int) -> None:
    if not os.path.ismount(place):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, 4096))
        return
    with open(place / "filler", "wb", buffering=0) as filler, pytest.raises(OSError, match="No space"):
        while filler.write(bytes(4096)):
            pass


@pytest.fixture
def trainer(tmp_path: Path) -> Iterator[Trainer]:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(1)
    for i in range(7):
        Pil.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"picture number {i}, in test style")
    made = Trainer(tiny.mini(tmp_path / "model"), pictures)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.mark.parametrize(("kills", "steps"), [(3, 24), pytest.param(20, 150, marks=pytest.mark.slow)])
def test_killed_at_random_points_it_ends_with_the_same_bits(trainer: Trainer, tmp_path: Path, kills: int, steps: int) -> None:
    trainer.steps = steps
    straight = trainer.run(tmp_path / "straight")
    dice = random.Random(7)
    with ExitStack() as stack:
        home = tmp_path / "killed"
        stack.enter_context(disk(home))
        filled = trainer.run(home, fill=home)
        assert "the checkpoint of step 1" in filled.error and f"in {home}" in filled.error
        assert "bytes" in filled.error and "it goes on from step 1" in filled.error
        (home / "filler").unlink(missing_ok=True)
        for _ in range(kills):
            killed = trainer.run(home, kill=(dice.randint(1, 5), dice.random() * 0.02))  # so few that they do not reach the end
            assert not killed.sha and not killed.error
        after = trainer.run(home)
        assert not any((home / "work").glob("*/checkpoints"))
        assert after.sha == straight.sha != ""
        assert {k: after.record[k] for k in STAY} == {k: straight.record[k] for k in STAY}
