"""rsLoRA (arXiv:2312.03732): LoRA times alpha / sqrt(rank), so that wide ones learn as fast as narrow ones."""
from __future__ import annotations

import math
from collections.abc import Sequence

from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import Adapter, Spot, scale
from safelight.train.trainables.methods.lora import scaled


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Both matrices are trained; the file's alpha holds the factor."""
    return scaled(spots, shape, seed, by=scale(shape) * math.sqrt(shape.rank))
