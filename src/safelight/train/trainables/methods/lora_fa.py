"""LoRA-FA (arXiv:2308.03303): down stays as it was drawn, so a layer's input need not be kept for the backward pass."""
from __future__ import annotations

from collections.abc import Sequence

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Spot, scale
from safelight.train.trainables.methods.lora import scaled


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Only up is trained."""
    return scaled(spots, shape, seed, by=scale(shape), frozen=True)
