"""Delta-LoRA (arXiv:2309.02411): from step K on the frozen weight follows the product, W += lambda * scale * (B' A' - B A), ungraded.

Those steps add up to lambda * scale * (B A - B_K A_K), so the weight itself is never written: the matrices of step K are kept instead, and
the whole change is an exact LoRA of twice the rank.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Spot, pair, scale
from safelight.train.trainables.methods.lora import ANCHOR_DOWN, ANCHOR_UP, anchored, narrow

LAMBDA = 2.0
BEFORE = 0.1
"""The share of the steps before the weight begins to move."""


class Following(Adapter):
    """The anchors are the matrices of step K; before it, the present ones."""

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Let the anchors follow until step K."""
        if step + 1 > BEFORE * steps:
            return
        for one in self.layers.values():
            one.weights[ANCHOR_DOWN].copy_(one.weights[DOWN])
            one.weights[ANCHOR_UP].copy_(one.weights[UP])


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Both matrices are trained."""
    form, layers = pair(lambda w: anchored(w, scale(shape), LAMBDA)), {}
    for spot in spots:
        own = narrow(spot, shape, seed)
        anchors = {key: spot.parameter(own[of], trained=False) for key, of in ((ANCHOR_DOWN, DOWN), (ANCHOR_UP, UP))}
        layers[spot.name] = spot.change(form, own | anchors)
    return Following.of(layers, shape)
