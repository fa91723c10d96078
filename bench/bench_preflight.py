"""What the preflight expects against what a training takes: peak memory, seconds a step, seconds in all, for three sizes of the model.

    python bench/bench_preflight.py [--model mini|FOLDER] [--steps 24]

Each size runs in a process of its own: random latents, a LoRA, two looks at four held-out pictures, no pictures drawn. Memory is counted
anew when the training begins. Seconds are CPU seconds where there is no accelerator, so that what else the machine does is left out.
"""
from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from safelight.ops.model import model
from safelight.recipes import denoising
from safelight.recipes.lora import Plan
from safelight.recipes.shared import training_dtype
from safelight.runtime import lease
from safelight.sampling.draw import encode
from safelight.train import preflight, trainables
from safelight.train.lessons import Lesson
from safelight.train.pictures import Pictures
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch

SIZES = {"small": (4, 4, 1), "usual": (16, 8, 1), "large": (32, 8, 2)}
"""Rank, batch, and how many times the model's own side."""


def one(name: str, which: str, steps: int) -> None:
    """Print what was expected and what came, as JSON."""
    rank, batch, times = SIZES[which]
    named = model(name)
    with lease(named, dtype=training_dtype(), train=True, holder="bench") as family:
        side = times * family.size // family.factor
        latents = torch.randn(20, family.channels, side, side, generator=torch.Generator().manual_seed(0))
        pictures = Pictures.held(latents, ["a person with blue hair, in pixel style"] * 20)
        texts = dict(encode(family, ["", "a person with blue hair", "a person with blue hair, in pixel style"]))
        lesson = Lesson(pictures.some(range(16)), Pictures(), pictures.some(range(16, 20)), texts, "in pixel style", side * family.factor)
        plan = Plan(LoraShape(rank=rank), Optimizer(), Batches(steps=steps, batch=batch), Objective(), Watch(samples=0, every=steps), 0)
        with trainables.adapter(family, plan.shape, 0) as adapter, tempfile.TemporaryDirectory() as work:
            net = denoising.Net(family, adapter, lesson, plan)
            preflight.clock = time.process_time if family.device.type == "cpu" else time.monotonic
            flight = denoising.expected(net)
            meter = preflight.Meter(family.device)
            task = denoising.task(net, Path(work))
            meter.reset()
            begun = preflight.clock()
            for _ in denoising.train(task):
                pass
            spent, peak = preflight.clock() - begun, meter.peak()
        print(json.dumps({"expected": vars(flight), "peak": peak, "seconds": spent}))


def main() -> None:
    """A line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--one", choices=SIZES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        one(given.model, given.one, given.steps)
        return
    for which, (rank, batch, times) in SIZES.items():
        command = [sys.executable, __file__, "--model", given.model, "--steps", str(given.steps), "--one", which]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        e = said["expected"]
        more, came = e["peak"] - e["before"], said["peak"] - e["before"]
        print(f"{which:6} rank {rank:2} batch {batch:2} side x{times}: "
              f"memory {e['peak'] / 2**20:6.0f} MB expected, {said['peak'] / 2**20:6.0f} came ({e['peak'] / said['peak'] - 1:+.1%}; "
              f"beyond the model {more / 2**20:.0f} and {came / 2**20:.0f}, {more / came - 1:+.1%}); "
              f"time {e['seconds']:6.1f} s expected, {said['seconds']:6.1f} came ({e['seconds'] / said['seconds'] - 1:+.1%})")


if __name__ == "__main__":
    main()
