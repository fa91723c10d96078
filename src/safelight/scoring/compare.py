"""Before and after: is the second set of scores better, and could the difference be chance?"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from safelight.values import Scores

RESAMPLES = 2000


@dataclass(frozen=True)
class Comparison:
    """One metric, picture i of `after` against picture i of `before`: means, their difference with a 95 % bootstrap interval, and in
    how many of `pairs` pictures `after` is larger."""

    metric: str
    before: float
    after: float
    low: float
    high: float
    wins: int
    pairs: int

    @property
    def difference(self) -> float:
        """after - before."""
        return self.after - self.before

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def compare(before: Scores, after: Scores) -> list[Comparison]:
    """Every metric that both have, pictures paired by position (same prompt and seed). ValueError when their numbers differ."""
    if len(before.image) != len(after.image):
        raise ValueError(f"compare: {len(before.image)} pictures before, {len(after.image)} after; expected the same prompts and seeds")
    rng = np.random.default_rng(0)
    out = []
    for name in (n for n in before.values if n in after.values):
        a, b = (np.asarray(s.values[name], dtype=float) for s in (before, after))
        gap = b - a
        means = gap[rng.integers(0, len(gap), (RESAMPLES, len(gap)))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        out.append(Comparison(name, float(a.mean()), float(b.mean()), float(low), float(high), int((gap > 0).sum()), len(gap)))
    return out
