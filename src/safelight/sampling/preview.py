"""A glance at a latent without its decoder: one affine map from channels to colour."""
from __future__ import annotations

import base64
from io import BytesIO
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safelight.families import Family

LARGEST = 512
"""The longer side of a preview is at most this many pixels."""


@runtime_checkable
class Previewed(Protocol):
    """A family that knows what its channels look like: `preview_matrix` (C + 1, 3), the last row added, gives RGB in [0, 1]."""

    preview_matrix: Tensor


def colours(family: Family, latent: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, h, w, 3) float32 in [0, 1] on the CPU; grey, the channels' mean stretched to the full range, for a family
    that is not `Previewed`."""
    z = latent.detach().float().cpu().movedim(1, -1)  # (B, h, w, C)
    if isinstance(family, Previewed):
        m = family.preview_matrix.float().cpu()
        return (z @ m[:-1] + m[-1]).clamp(0, 1)
    grey = z.mean(dim=-1, keepdim=True)
    low, high = grey.amin(dim=(1, 2), keepdim=True), grey.amax(dim=(1, 2), keepdim=True)
    return ((grey - low) / (high - low).clamp_min(1e-6)).expand(*grey.shape[:-1], 3)


def jpeg(family: Family, latent: Tensor) -> list[str]:
    """Each latent of the batch as the base64 text of a JPEG of the picture's own size, at most 512 pixels a side."""
    h, w = (n * family.factor for n in latent.shape[-2:])
    scale = min(1.0, LARGEST / max(h, w))
    size = max(1, round(w * scale)), max(1, round(h * scale))
    pictures = np.asarray(colours(family, latent).mul(255).round().to(torch.uint8))
    return [_encoded(Image.fromarray(p).resize(size, Image.Resampling.BILINEAR)) for p in pictures]


def _encoded(picture: Image.Image) -> str:
    held = BytesIO()
    picture.save(held, "JPEG", quality=85)
    return base64.b64encode(held.getvalue()).decode()
