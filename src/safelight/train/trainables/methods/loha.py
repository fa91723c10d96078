"""LoHa (FedPara, arXiv:2108.06098): the entrywise product of two low-rank matrices, whose rank is up to the square of theirs."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from safelight.train.batches import generator
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Spot, Weights, dense, scale

WIDTHS = {"hada_w1_a": 0.1, "hada_w1_b": 1.0, "hada_w2_a": 0.0, "hada_w2_b": 1.0}
"""The four matrices and how wide they are drawn; with one at zero there is no change."""


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """All four are trained."""
    by = scale(shape)

    def delta(w: Weights) -> Tensor:
        return (w["hada_w1_a"] * by @ w["hada_w1_b"]) * (w["hada_w2_a"] @ w["hada_w2_b"])

    layers = {}
    for spot in spots:
        rows, columns = spot.shape[0], spot.shape[1:].numel()
        sizes = {key: (rows, shape.rank) if key.endswith("a") else (shape.rank, columns) for key in WIDTHS}
        weights = {
            key: spot.parameter(torch.randn(sizes[key], generator=generator("adapter", seed, spot.name, key)) * width)
            for key, width in WIDTHS.items()
        }
        layers[spot.name] = spot.change(dense(delta, by * shape.rank), weights)
    return Adapter.of(layers, shape)
