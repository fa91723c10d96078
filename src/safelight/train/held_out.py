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

FEW = 8
"""Of fewer pictures nobody can say which caption is unlike the others'."""


def split(rows: Sequence[Row], share: float, seed: int) -> tuple[list[int], list[int]]:
    """(kept for training, held out): indices. A picture's side depends on its content and the seed alone; at least one is held out when
    share > 0 and four rows are there, and pictures with the same bytes, or made from the same by `augment`, are on the same side.
    ValueError when that leaves none to train on."""
    first = [str(r.info.get("augmented", {}).get("sha256") or r.picture.sha256) for r in rows]  # copies count as what they were made of
    order = sorted(range(len(rows)), key=lambda i: digest("held out", str(seed), first[i]))
    count = 0 if share <= 0 or len(rows) < 4 else max(1, round(share * len(rows)))
    chosen = {first[i] for i in order[:count]}
    held = [i for i in range(len(rows)) if first[i] in chosen]
    if held and len(held) == len(rows):
        raise ValueError(f"train: held_out {share:g}: the {len(rows)} pictures are copies of {len(chosen)}, and copies are held out "
                         "together, so none would be left to learn from; expected held_out 0, or other pictures too")
    return [i for i in range(len(rows)) if first[i] not in chosen], held


@dataclass(frozen=True)
class HeldOut:
    """Shapes (C, h, w) of the pictures to judge by, and the table of noise levels."""

    shapes: Sequence[tuple[int, ...]]
    sigmas: Tensor
    seed: int

    @property
    def levels(self) -> Tensor:
        """(K,) sigmas that each picture is looked at, one in each of STRATA equal parts of time."""
        return levels(self.sigmas, (torch.arange(STRATA) + 0.5) / STRATA)

    def losses(self, errors: Callable[[int, Tensor, Tensor], Tensor]) -> Tensor:
        """(N, K) float64, each picture's loss at each noise level. `errors(i, noise (K, C, h, w), sigma (K,))` gives (K,)."""
        sigma, seed = self.levels, number("held out", self.seed)
        return torch.stack([errors(i, noise(seed, i, STRATA, shape), sigma).double().cpu() for i, shape in enumerate(self.shapes)])


def reading(now: Tensor, first: Tensor, sigmas: Tensor) -> Reading:
    """The mean of the pictures' losses (N, K), and the 95 % interval of its change since `first`, laid around it; and both for each of the
    levels (K,) by itself.

    The change is taken picture by picture: how hard the pictures are is no uncertainty. Student's t, N - 1 degrees of freedom.
    """
    bands = tuple((float(sigma), *_around(now[:, k], first[:, k])) for k, sigma in enumerate(sigmas))
    return Reading(*_around(now.mean(dim=1), first.mean(dim=1)), bands)


def _around(now: Tensor, first: Tensor) -> tuple[float, float, float]:
    """Mean of (N,), and the ends of its interval."""
    n, mean = len(now), float(now.mean())
    half = float(stdtrit(n - 1, 0.975)) * float((now - first).std()) / n**0.5 if n > 1 else 0.0
    return mean, mean - half, mean + half


def doubtful(told: Tensor, untold: Tensor, most: int = 10) -> list[tuple[int, float]]:
    """The pictures whose captions help least: (index, how far from the median, in median deviations), worst first. `told` and `untold`
    (N, K) are losses under the captions and under the empty one; a wrong caption is worse than none."""
    harm = ((told - untold) / untold.clamp(min=1e-12)).mean(dim=1)
    apart = harm - harm.median()
    apart = apart / apart.abs().median().clamp(min=1e-12)
    return [(i, round(float(apart[i]), 2)) for i in apart.argsort(descending=True, stable=True)[:most].tolist()]


def hard(seen: Tensor, most: int = 10) -> list[tuple[int, float, int]]:
    """The pictures that are learned worst: (index, how many times the loss it has that is usual, how often it was shown), hardest first.

    `seen` (N, K, 2): sums of losses and how many there were, by part of time. What is usual is the mean of all pictures in that part; so
    a picture that happened to be shown under easy noise does not look easy.
    """
    sums, counts = seen.double().unbind(dim=2)
    usual = sums.sum(dim=0) / counts.sum(dim=0).clamp(min=1)  # (K,)
    times = counts.sum(dim=1)
    factor = (sums / usual.clamp(min=1e-12)).sum(dim=1) / times.clamp(min=1)
    worst = factor.argsort(descending=True, stable=True)[:most].tolist()
    return [(i, round(float(factor[i]), 4), int(times[i])) for i in worst if times[i]]
