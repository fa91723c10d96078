"""LoKr (arXiv:2212.10650): the Kronecker product of a small matrix and a large one, which is low-rank itself where that is smaller."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Spot, Weights, dense, scale


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """All factors are trained. A product with a whole large factor has no rank, and counts as it is."""

    def delta(w: Weights) -> Tensor:
        large = w["lokr_w2"] if "lokr_w2" in w else w["lokr_w2_a"] * scale(shape) @ w["lokr_w2_b"]
        return torch.kron(w["lokr_w1"], large.flatten(1))

    form = dense(delta, scale(shape) * shape.rank)
    return Adapter.of({spot.name: spot.change(form, _factors(spot, shape.rank, seed)) for spot in spots}, shape)


def _factors(spot: Spot, rank: int, seed: int) -> dict[str, nn.Parameter]:
    (rows, columns), inner = spot.shape[:2], spot.shape[2:]
    small, narrow = (next(d for d in range(math.isqrt(n), 0, -1) if n % d == 0) for n in (rows, columns))  # divisors next to the roots
    high, wide = rows // small, columns // narrow * inner.numel()
    first = {"lokr_w1": spot.parameter(spot.drawn((small, narrow), seed, "w1"))}
    if rank * (high + wide) >= high * wide:
        return first | {"lokr_w2": spot.parameter(torch.zeros(high, columns // narrow, *inner))}
    drawn = spot.drawn((high, rank), seed, "w2")
    return first | {"lokr_w2_a": spot.parameter(drawn), "lokr_w2_b": spot.parameter(torch.zeros(rank, wide))}
