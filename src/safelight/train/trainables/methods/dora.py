"""DoRA (arXiv:2402.09353): a LoRA turns the rows of a weight, a trained number each says how long they are."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Form, Spot, Weights, scale
from safelight.train.trainables.methods.lora import narrow
from safelight.train.trainables.products import run

LENGTH = "dora_scale"


def turned(by: float) -> Form:
    """m * (W + by * up @ down) / ||W + by * up @ down||, a norm for each row, without a gradient (the paper's 4.3). Only differences are
    rounded to the layer's dtype: a factor near 1 would become 1."""

    def forward(layer: Any, x: Tensor, w: Weights) -> Tensor:
        with torch.no_grad():
            moved = layer.weight.detach().float().flatten(1) + by * w[UP].flatten(1) @ w[DOWN].flatten(1)
            norm = torch.linalg.vector_norm(moved, dim=1)
        across = (-1, 1, 1) if isinstance(layer, nn.Conv2d) else (-1,)
        longer = (w[LENGTH].flatten() / norm).view(across)
        inner, wide = run(layer, x, w[DOWN].to(x.dtype), None), (w[UP] * by).to(x.dtype)
        low = F.conv2d(inner, wide) if isinstance(layer, nn.Conv2d) else F.linear(inner, wide)
        said = run(layer, x, layer.weight, layer.bias)
        plain = said if layer.bias is None else said - layer.bias.view(across)
        out: Tensor = said + plain * (longer - 1).to(x.dtype) + low * longer.to(x.dtype)
        return out

    return forward, lambda w: {**w, "alpha": torch.tensor(by * len(w[DOWN]))}


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Both matrices and the lengths are trained."""
    layers = {}
    for spot in spots:
        length = torch.linalg.vector_norm(spot.plain, dim=1).view(-1, *[1] * (len(spot.shape) - 1))
        layers[spot.name] = spot.change(turned(scale(shape)), narrow(spot, shape, seed) | {LENGTH: spot.parameter(length)})
    return Adapter.of(layers, shape)
