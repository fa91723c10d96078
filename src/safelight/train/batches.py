"""Order, noise and noise levels as functions of (seed, step, slot): nothing is remembered, so a run goes on from any step."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from safelight.values import digest

if TYPE_CHECKING:
    from numpy.typing import NDArray


def number(*parts: int | str) -> int:
    """A 63-bit number that is a hash of the parts."""
    return int(digest(*[str(p) for p in parts])[:16], 16) >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by the parts; the same on every machine."""
    return torch.Generator().manual_seed(number(*parts))


def items(seed: int, step: int, batch: int, count: int) -> list[int]:
    """The `batch` items of a step, out of `count`: the endless sequence of shuffled epochs, cut at step * batch. ValueError for count 0."""
    if count < 1:
        raise ValueError("batches: there is nothing to draw from; expected at least one picture")
    places = range(step * batch, (step + 1) * batch)
    epochs = {p // count for p in places}
    orders = {e: _shuffled(seed, e, count) for e in epochs}
    return [int(orders[p // count][p % count]) for p in places]


@lru_cache(maxsize=64)
def _shuffled(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    return np.random.Generator(np.random.Philox(number("order", seed, epoch))).permutation(count)


@dataclass(frozen=True)
class Order:
    """Which items a step shows, when those of a batch must be of one group: `groups` are lists of items, one twice where it counts twice.

    An epoch has as many steps as the items fill. Each group gets its share of the steps, spread over every epoch, so that after any number
    of them no item of a group was shown more than once more often than another, and groups differ by less than a batch or two.
    """

    groups: tuple[tuple[int, ...], ...]
    batch: int
    seed: int

    def __call__(self, step: int) -> list[int]:
        """The step's items."""
        ends = np.cumsum([len(g) for g in self.groups])
        if not len(ends) or not ends[-1]:
            raise ValueError("batches: there is nothing to draw from; expected at least one picture")
        steps = -(-int(ends[-1]) // self.batch)
        epoch, place = divmod(step, steps)
        spots = _spots(self.seed, epoch, steps)
        which = np.searchsorted(ends / ends[-1], spots[: place + 1], side="right")
        group = int(which[-1])
        before = int((which[:-1] == group).sum())
        low, high = (ends[group] - len(self.groups[group])) / ends[-1], ends[group] / ends[-1]
        shifts = _shift(self.seed, np.arange(epoch))
        before += int((np.ceil(steps * high - shifts) - np.ceil(steps * low - shifts)).sum())
        seed = number(self.seed, group) if group else self.seed
        return [self.groups[group][i] for i in items(seed, before, self.batch, len(self.groups[group]))]


def _shift(seed: int, epochs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Where in [0, 1) an epoch's spots begin: golden steps, so that small groups come as often as they should over the epochs."""
    return np.asarray((number("shift", seed) / 2**63 + epochs * 0.6180339887498949) % 1.0, dtype=np.float64)


@lru_cache(maxsize=2)
def _spots(seed: int, epoch: int, steps: int) -> NDArray[np.float64]:
    """Equally spaced places in [0, 1), in the order of an epoch's steps."""
    every = (np.arange(steps) + _shift(seed, np.array([epoch]))) / steps
    return np.random.Generator(np.random.Philox(number("groups", seed, epoch))).permutation(every)


def noise(seed: int, step: int, slots: int | Sequence[int], shape: tuple[int, ...], kind: str = "noise") -> Tensor:
    """(slots, *shape) unit normal float32, for the first so many slots or those named; a slot's does not depend on the others."""
    named = range(slots) if isinstance(slots, int) else slots
    return torch.stack([torch.randn(shape, generator=generator(kind, seed, step, slot)) for slot in named])


def pyramid(seed: int, step: int, slots: Sequence[int], shape: tuple[int, int, int], discount: float) -> Tensor:
    """(slots, *shape) of unit deviation: the noise, and coarser and coarser noise over it, each level `discount` times the one before it
    (multi-resolution noise, wandb.ai/johnowhitaker/multires_noise)."""
    out, (h, w), level = noise(seed, step, slots, shape), shape[1:], 0
    while min(h, w) > 1:
        level, h, w = level + 1, max(1, h // 2), max(1, w // 2)
        coarse = noise(seed, step, slots, (shape[0], h, w), f"pyramid {level}")
        out = out + discount**level * torch.nn.functional.interpolate(coarse, shape[1:], mode="bilinear")
    return out / out.std(dim=(1, 2, 3), keepdim=True)


def times(seed: int, step: int, batch: int) -> Tensor:
    """(batch,) in [0, 1): one draw in each of `batch` equal parts, so that a batch sees all noise levels (arXiv:2107.00630, app. I.1)."""
    g = generator("times", seed, step)
    shift = torch.rand((), generator=g, dtype=torch.float64)
    parts = torch.randperm(batch, generator=g)  # which slot gets which part
    return ((parts + shift) / batch).float().clamp(max=1 - 1e-7)


def levels(sigmas: Tensor, t: Tensor) -> Tensor:
    """Times in [0, 1) -> sigmas of the table, the highest at 1."""
    return sigmas.to(t.device)[(t * len(sigmas)).long().clamp(max=len(sigmas) - 1)]


def share(step: int, batch: int, part: float) -> int:
    """How many of a step's slots belong to a part of all pictures: whole numbers whose mean over the steps is part * batch."""
    return int((step + 1) * batch * part + 1e-9) - int(step * batch * part + 1e-9)
