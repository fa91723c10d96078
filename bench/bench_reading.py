"""Whether a training waits for its data, and what many pictures take: how long a step waits for the thread that reads ahead, how long
reading takes without it, and how much memory grows, with few pictures and with many.

    python bench/bench_reading.py [--steps 100] [--busy 0.05]

Latents of SD's size for 512 pixels lie on a shelf on disk; a step is `--busy` seconds in which the processor has nothing to do, as
while an accelerator works.
"""
from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from safelight.train.cache import Shelf
from safelight.train.lessons import Course, Lesson
from safelight.train.pictures import Ahead, Kept, Pictures
from safelight.train.preflight import Meter
from safelight.train.settings import Batches, Objective

LATENT = (4, 64, 64)


def measured(count: int, steps: int, busy: float) -> str:
    """A line of the table."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = Shelf(Path(folder))
        keys = [f"{i:06d}"[::-1] for i in range(count)]
        for key in keys:
            shelf.put(key, {"latent": torch.randn(LATENT), "size": torch.zeros(6)})
        kept = [Kept(key, ("a fox",), (key,), LATENT[1:]) for key in keys]
        lesson = Lesson(Pictures(shelf, kept), Pictures(), Pictures(), {}, "", 512)
        course = Course(lesson, Batches(batch=8), Objective(prior=0.0), 0, torch.linspace(0.03, 14, 1000))
        parts, meter, waited = Ahead(lambda step: course.parts(step, [range(8)])), Meter(torch.device("cpu")), 0.0
        parts(0)
        held = meter.held() or 0
        for step in range(1, steps):
            begun = time.monotonic()
            parts(step)
            waited += time.monotonic() - begun
            time.sleep(busy)
        grown = (meter.held() or 0) - held
        begun = time.monotonic()
        for step in range(steps, steps + 20):
            course.parts(step, [range(8)])
        alone = (time.monotonic() - begun) / 20
    return (f"{count:6} pictures: a step waits {1000 * waited / steps:6.2f} ms of {1000 * busy:.0f}, reading takes {1000 * alone:6.2f} ms; "
            f"{count * torch.Size(LATENT).numel() * 4 / 2**20:6.0f} MB on the shelf, {grown / 2**20:5.1f} MB more memory")


def main() -> None:
    """Two lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--busy", type=float, default=0.05)
    given = parser.parse_args()
    for count in (200, 4000):
        print(measured(count, given.steps, given.busy))


if __name__ == "__main__":
    main()
