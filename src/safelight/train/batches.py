"""Order, noise and noise levels as functions of (seed, step, slot): nothing is remembered, so a run goes on from any step."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from safelight.values import digest


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
    orders = {e: np.random.Generator(np.random.Philox(number("order", seed, e))).permutation(count) for e in epochs}
    return [int(orders[p // count][p % count]) for p in places]


def noise(seed: int, step: int, batch: int, shape: tuple[int, ...]) -> Tensor:
    """(batch, *shape) unit normal float32; a slot's noise does not depend on how many slots there are."""
    return torch.stack([torch.randn(shape, generator=generator("noise", seed, step, slot)) for slot in range(batch)])


def times(seed: int, step: int, batch: int, towards_noise: float = 0.0) -> Tensor:
    """(batch,) in [0, 1): one draw in each of `batch` equal parts, so that a batch sees all noise levels (arXiv:2107.00630, appendix I.1).

    With `towards_noise` b the density rises as t^b; 0 is uniform.
    """
    g = generator("times", seed, step)
    shift = torch.rand((), generator=g, dtype=torch.float64)
    parts = torch.randperm(batch, generator=g)  # which slot gets which part
    u = (parts + shift) / batch
    return (u ** (1 / (1 + towards_noise))).float().clamp(max=1 - 1e-7)


def levels(sigmas: Tensor, t: Tensor) -> Tensor:
    """Times in [0, 1) -> sigmas of the table, the highest at 1."""
    return sigmas.to(t.device)[(t * len(sigmas)).long().clamp(max=len(sigmas) - 1)]


def share(step: int, batch: int, part: float) -> int:
    """How many of a step's slots belong to a part of all pictures: whole numbers whose mean over the steps is part * batch."""
    return int((step + 1) * batch * part + 1e-9) - int(step * batch * part + 1e-9)
