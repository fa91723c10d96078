"""The learning rate over the steps."""
from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

from safelight.train.settings import Optimizer

DECAYS: dict[str, Callable[[Optimizer, float], float]] = {
    "constant": lambda o, done: 1.0,
    "linear": lambda o, done: 1 - done,
    "cosine": lambda o, done: 0.5 + 0.5 * cos(pi * done),
    "restarts": lambda o, done: 0.5 + 0.5 * cos(pi * (done * o.cycles % 1)) if done < 1 else 0.0,
    "polynomial": lambda o, done: (1 - done) ** o.power,
    "rex": lambda o, done: (1 - done) / (1 - done / 2),
}
"""What is left of the rate when a share `done`, in [0, 1], of the steps after the warm-up is over. `restarts` is SGDR (arXiv:1608.03983)
with cycles of one length, `rex` the reflected exponential of arXiv:2107.04197."""


def rate(o: Optimizer, step: int, steps: int) -> float:
    """The learning rate of a step: a linear rise over `warmup`, then the decay. Schedule-free AdamW keeps its rate."""
    if step < o.warmup:
        return o.lr * (step + 1) / (o.warmup + 1)
    if o.kind == "schedulefree":
        return o.lr
    return o.lr * DECAYS[o.decay](o, (step - o.warmup) / max(steps - o.warmup, 1))
