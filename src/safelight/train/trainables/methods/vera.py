"""VeRA (arXiv:2310.11454): two random matrices that all layers have in common are frozen, two vectors for each layer are trained.

Layers of any size take the part of the matrices they need. The file holds the products, as a plain LoRA of the same rank.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.train.batches import generator
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Change, Spot, Weights, pair, scale

START = 0.1
"""Of the vector d; b starts at zero."""


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """b and d are trained: diag(b) B diag(d) A."""
    rows, columns = max(s.shape[0] for s in spots), max(s.shape[1:].numel() for s in spots)
    a, b = (_drawn(size, seed, name).to(spots[0].device) for size, name in (((shape.rank, columns), "A"), ((rows, shape.rank), "B")))
    return Adapter.of({spot.name: _change(spot, a, b, by=scale(shape)) for spot in spots}, shape)


def _change(spot: Spot, a: Tensor, b: Tensor, *, by: float) -> Change:
    (rows, *inner), rank = spot.shape, len(a)
    down, up = a[:, : math.prod(inner)].view(rank, *inner), b[:rows].view(rows, rank, *[1] * (len(inner) - 1))
    ones = [1] * len(inner)

    def factors(w: Weights) -> tuple[Tensor, Tensor, float]:
        return down * w["vera_lambda_d"].view(-1, *ones), up * w["vera_lambda_b"].view(-1, *ones), by

    start = {"vera_lambda_d": torch.full((rank,), START), "vera_lambda_b": torch.zeros(rows)}
    return spot.change(pair(factors), {key: spot.parameter(value) for key, value in start.items()})


def _drawn(size: tuple[int, int], seed: int, name: str) -> Tensor:
    """Kaiming's uniform numbers, of variance 2 / columns."""
    return (torch.rand(size, generator=generator("vera", seed, name)) * 2 - 1) * math.sqrt(6 / size[1])
