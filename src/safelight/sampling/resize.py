"""Scaling, pasting and soft edges of anything on a grid: (B, C, H, W) tensors, in torch's and Pillow's arithmetic as ComfyUI uses it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

from safelight.families.tiles import middle
from safelight.families.touch import bislerp

if TYPE_CHECKING:
    from safelight.values import Image, Mask

def plane(mask: Mask) -> Tensor:
    """(B, 1, H, W), a copy."""
    return torch.from_numpy(np.array(mask.values))[:, None]


def grid(image: Image) -> Tensor:
    """(B, 3, H, W), a copy."""
    return torch.from_numpy(np.array(image.pixels)).movedim(-1, 1)


def scaled(x: Tensor, width: int, height: int, *, method: str = "bilinear", crop: bool = False) -> Tensor:
    """(B, C, H, W) -> (B, C, height, width). `crop` first cuts the middle to the new shape; without it the picture is stretched.

    Torch's interpolation without antialiasing, but for `lanczos` (Pillow's, on bytes) and `bislerp` (see there).
    """
    if min(width, height) < 1:
        raise ValueError(f"scale: got {width} x {height}; expected at least one pixel a side")
    if crop:
        x = middle(x, width / height)
    if method == "bislerp":
        return bislerp(x, width, height)
    if method == "lanczos":
        return _lanczos(x, width, height)
    return torch.nn.functional.interpolate(x, (height, width), mode=method)


def _lanczos(x: Tensor, width: int, height: int) -> Tensor:
    grey = x.shape[1] == 1
    rows = (np.clip(255.0 * p.movedim(0, -1).cpu().numpy(), 0, 255).astype(np.uint8) for p in x)
    made = [np.array(Pil.fromarray(p[..., 0] if grey else p).resize((width, height), Pil.Resampling.LANCZOS)) for p in rows]
    found = torch.from_numpy(np.stack(made).astype(np.float32) / np.float32(255.0))
    return (found[:, None] if grey else found.movedim(-1, 1)).to(x)


def repeated(x: Tensor, n: int) -> Tensor:
    """The batch repeated, or cut, to n."""
    return x if len(x) == n else x.repeat(-(-n // len(x)), *[1] * (x.ndim - 1))[:n]


def pasted(under: Tensor, over: Tensor, *, left: int, top: int, weight: Tensor | None = None) -> Tensor:
    """`over` (1 or B, C, h, w) laid on `under` (B, C, H, W) with its corner at (left, top), as far as it lies inside.

    `weight` (.., h, w) in [0, 1] says how much of it. `under` itself is not changed.
    """
    over = repeated(over, len(under))
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + over.shape[-1], under.shape[-1]), min(top + over.shape[-2], under.shape[-2])
    if x1 <= x0 or y1 <= y0:
        return under
    inside = (..., slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))
    place = (..., slice(y0, y1), slice(x0, x1))
    out = under.clone()
    w = torch.ones_like(over[inside]) if weight is None else weight[inside]
    out[place] = over[inside] * w + under[place] * (1 - w)
    return out


def grown(mask: Tensor, size: int) -> Tensor:
    """(B, 1, H, W) of zeros and ones: one wherever a one lies in the size x size places around; for an even size there is one place more
    below and to the right."""
    if size < 1:
        return mask
    ones = torch.ones(1, 1, size, size)
    return torch.nn.functional.conv2d(mask, ones, padding=math.ceil((size - 1) / 2)).clamp(0, 1)[..., : mask.shape[-2], : mask.shape[-1]]


def shape_of(size: Sequence[int], *, width: int, height: int, by: float) -> tuple[int, int]:
    """(width, height) to scale (H, W) to: both as said, one and the other in proportion, or `by` times as large when neither is."""
    high, wide = size
    if not width and not height:
        return round(wide * by), round(high * by)
    return width or max(1, round(wide * height / high)), height or max(1, round(high * width / wide))


def turned(x: Tensor, degrees: int, mirror: str) -> Tensor:
    """(B, C, H, W) turned clockwise by a multiple of 90 degrees, then mirrored `upside-down` or `left-right`, or with `no` left so."""
    x = torch.rot90(x, degrees // 90, (3, 2))
    dims = {"no": (), "upside-down": (2,), "left-right": (3,)}[mirror]
    return x.flip(dims) if dims else x.contiguous()


def directions(a: Tensor, b: Tensor, ratio: float) -> Tensor:
    """The mean of two latents' directions in channel space, with the mean of their lengths; `ratio` is how much of a."""
    long_a, long_b = (torch.linalg.vector_norm(z, dim=1, keepdim=True) for z in (a, b))
    way = torch.nan_to_num(a / long_a) * ratio + torch.nan_to_num(b / long_b) * (1.0 - ratio)
    out: Tensor = torch.nan_to_num(way / torch.linalg.vector_norm(way, dim=1, keepdim=True)) * (long_a * ratio + long_b * (1.0 - ratio))
    return out
