"""A loss one can compare over steps: the same pictures, the same noise, the same noise levels, every time."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtrit
from torch import Tensor

from safelight.train.batches import levels, noise, number
from safelight.train.loop import Reading
from safelight.values import Row, digest

STRATA = 8
"""How many noise levels each picture is looked at, in equal parts of time."""


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(kept for training, held out): indices. A picture's side depends on its content and the seed alone; at least one is held out when
    share > 0 and four rows are there, and pictures with the same bytes, or made from the same by `augment`, are on the same side."""
    first = [str(r.info.get("augmented", {}).get("sha256") or r.picture.sha256) for r in rows]  # copies count as what they were made of
    order = sorted(range(len(rows)), key=lambda i: digest("held out", str(seed), first[i]))
    count = 0 if share <= 0 or len(rows) < 4 else max(1, round(share * len(rows)))
    chosen = {first[i] for i in order[:count]}
    held = [i for i in range(len(rows)) if first[i] in chosen]
    return [i for i in range(len(rows)) if first[i] not in chosen], held


@dataclass(frozen=True)
class HeldOut:
    """Pictures (N, C, h, w) to judge by, and the table of noise levels."""

    x0: Tensor
    sigmas: Tensor
    seed: int

    def losses(self, errors: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """(N,) float64, each picture's loss, the mean over the noise levels. `errors(i, noise (K, C, h, w), sigma (K,))` gives (K,)."""
        sigma = levels(self.sigmas, (torch.arange(STRATA) + 0.5) / STRATA)
        shape, seed = tuple(self.x0.shape[1:]), number("held out", self.seed)
        return torch.stack([errors(i, noise(seed, i, STRATA, shape), sigma).double().mean().cpu() for i in range(len(self.x0))])


def reading(now: Tensor, first: Tensor) -> Reading:
    """The mean of the pictures' losses (N,), and the 95 % interval of its change since `first`, laid around it.

    The change is taken picture by picture: how hard the pictures are is no uncertainty. Student's t, N - 1 degrees of freedom.
    """
    n, mean = len(now), float(now.mean())
    if n < 2:
        return Reading(mean, mean, mean)
    half = float(stdtrit(n - 1, 0.975)) * float((now - first).std()) / n**0.5
    return Reading(mean, mean - half, mean + half)
