"""A training killed with SIGKILL again and again ends with the very file of one that was left alone."""
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from tests import tiny

KILLS = 20


class Trainer:
    """The process of `train_child.py`, and what it says."""

    def __init__(self, model: Path, pictures: Path) -> None:
        self.given = f"{model} {pictures}"
        here = Path(__file__)
        env = {**os.environ, "PYTHONPATH": str(here.parents[2]), "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.flow.train_child"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd=here.parents[2])

    def lines(self, home: Path) -> Iterator[str]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(f"{home} {self.given}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("exit"):
                return
            yield line.strip()

    def run(self, home: Path, kill_after: int | None = None) -> tuple[str, dict[str, object]] | None:
        """The finished file's hash and its record, or None when it was killed after so many events."""
        pid, events, result = 0, 0, None
        for line in self.lines(home):
            if line.startswith("pid"):
                pid = int(line.split()[1])
            elif line.startswith("done"):
                _, sha, record = line.split()
                result = sha, json.loads(Path(record).read_text())
            elif (events := events + 1) == kill_after:
                os.kill(pid, signal.SIGKILL)
        return result


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


def test_killed_at_random_points_it_ends_with_the_same_bits(trainer: Trainer, tmp_path: Path) -> None:
    straight = trainer.run(tmp_path / "straight")
    assert straight is not None
    dice = random.Random(7)
    killed = 0
    while (after := trainer.run(tmp_path / "killed", dice.randint(3, 16) if killed < KILLS else None)) is None:
        killed += 1
        assert killed <= KILLS
    assert killed >= 6
    assert after[0] == straight[0]
    assert {k: after[1][k] for k in ("loss", "lr", "held_out", "kept_step", "samples", "proof")} == {
        k: straight[1][k] for k in ("loss", "lr", "held_out", "kept_step", "samples", "proof")
    }
    assert not any((tmp_path / "killed" / "work").glob("*/checkpoints"))
