"""A training as a command line, small: for those who start several processes of it."""
from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image as Pil

from tests import tiny

KNOBS = {"rank": 2, "steps": 3, "batch": 2, "samples": 0, "held_out": 0, "prior": 0, "lr": 1e-3, "dtype": "float32", "device": "cpu"}


def words(folder: Path) -> list[str]:
    """A command that trains a LoRA of a tiny model, which is made in the folder, on four pictures."""
    rng, pictures = np.random.default_rng(1), folder / "pictures"
    pictures.mkdir()
    for i in range(4):
        Pil.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"picture number {i}, in test style")
    model = tiny.mini(folder / "model")
    knobs = [w for k, v in KNOBS.items() for w in (f"--{k.replace('_', '-')}", str(v))]
    return ["train-lora", "--model", str(model), str(pictures), *knobs]


def line(home: Path, words: list[str], *launcher: str) -> list[str]:
    """What starts it, by a launcher or not."""
    return [*(launcher or (sys.executable,)), "-m", "safelight", "--store", str(home), *words]


def command(home: Path, words: list[str], *more: str, launcher: tuple[str, ...] = ()) -> list[float]:
    """Run it to its end, however long that takes; the losses that its events tell."""
    done = subprocess.run([*line(home, words, *launcher), "--events", "jsonl", *more], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    events = [json.loads(row) for row in done.stdout.splitlines() if row.startswith("{")]
    return [dict(e["values"])["loss"] for e in events if e.get("what") == "train"]
