"""Random numbers: the same seed gives the numbers ComfyUI has. All are drawn on the CPU in float32, so no device changes a picture.

None of this reads or moves torch's global generator.
"""
from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import torch
import torchsde
from torch import Tensor

SEEDS = 2**64
"""Seeds are 0 to 2^64 - 1."""


def draw_seed() -> int:
    """A seed below 2^53, so that JSON and a browser keep it exactly."""
    return secrets.randbelow(2**53)


def generator(seed: int) -> torch.Generator:
    """A CPU generator whose draws equal those after `torch.manual_seed(seed)`."""
    return torch.Generator().manual_seed(seed % SEEDS)


def start_noise(shape: Sequence[int], seed: int, rows: Sequence[int] | None = None) -> Tensor:
    """(B, C, h, w) float32 unit normal. The batch is one draw; with `rows`, picture i gets the rows[i]-th of pictures drawn one by one."""
    source = generator(seed)
    if rows is None:
        return torch.randn(tuple(shape), generator=source)
    if len(rows) != shape[0] or min(rows) < 0:
        raise ValueError(f"noise: rows {list(rows)} for a batch of {shape[0]}; expected one index from 0 a picture")
    drawn = [torch.randn((1, *shape[1:]), generator=source) for _ in range(max(rows) + 1)]
    return torch.cat([drawn[i] for i in rows])


class Fresh:
    """A new draw for each step, from a generator of its own seeded with seed + 1: seeded with the seed itself, the first draw would be the
    start noise again. ComfyUI's way since December 2025."""

    def __init__(self, like: Tensor, seed: int) -> None:
        self.like, self.source = like, generator(seed + 1)

    def __call__(self, s: float, t: float) -> Tensor:
        """Unit normal, of like's shape, dtype and device; s and t do not matter."""
        return torch.randn(self.like.shape, generator=self.source).to(self.like)


class Tree:
    """Increments of one Brownian path over sigma, so that other step sizes see the same noise (k-diffusion's BrownianTreeNoiseSampler)."""

    def __init__(self, like: Tensor, seed: int, sigmas: Sequence[float]) -> None:
        self.like, self.seed = like, seed
        self.low, self.high = min(s for s in sigmas if s > 0), max(sigmas)
        self.path: torchsde.BrownianTree | None = None

    def __call__(self, s: float, t: float) -> Tensor:
        """The path's increment from s down to t over its standard deviation: unit normal, of like's shape, dtype and device."""
        if self.path is None:
            zero = torch.zeros(self.like.shape)
            self.path = torchsde.BrownianTree(torch.tensor(self.low), zero, torch.tensor(self.high), entropy=self.seed % SEEDS)
        # The path's own ends are rounded to six digits; it warns of a question from beyond them and then answers as if asked at the end.
        ends = round(float(np.float32(self.low)), 6), round(float(np.float32(self.high)), 6)
        low, high = (min(max(float(np.float32(v)), ends[0]), ends[1]) for v in (t, s))
        increment: Tensor = self.path(low, high)
        return (-increment / float(np.sqrt(np.float32(s) - np.float32(t)))).to(self.like)
