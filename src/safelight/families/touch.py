"""What is done to the cells of latents, of features, or of a difference of two: blurred, sharpened, held down, scaled."""
from __future__ import annotations

import torch
from torch import Tensor

ALIKE = 1e-5
"""Directions whose cosine is within this of 1 or -1 are taken for one line."""


def bell(radius: int, sigma: float) -> Tensor:
    """(2 radius + 1, 2 radius + 1) weights that sum to 1; sigma is in radii."""
    line = torch.linspace(-1, 1, 2 * radius + 1)
    found = torch.exp(-(line[:, None] ** 2 + line**2) / (2.0 * sigma * sigma))
    return found / found.sum()


def sharpening(radius: int, sigma: float, amount: float) -> Tensor:
    """Weights that take away ten times the blur, as much as `amount` says."""
    weights = bell(radius, sigma) * (amount * -10)
    weights[radius, radius] += 1.0 - weights.sum()
    return weights


def folded(x: Tensor, weights: Tensor) -> Tensor:
    """(B, C, h, w), each cell the weighted sum of those around it; beyond the edges it is mirrored."""
    padded = torch.nn.functional.pad(x, (weights.shape[-1] // 2,) * 4, "reflect")
    out: Tensor = torch.nn.functional.conv2d(padded, weights.to(x).expand(x.shape[1], 1, -1, -1), groups=x.shape[1])
    return out


def sharpened(x: Tensor, amount: float, radius: int, sigma: float) -> Tensor:
    """Directions sharpened, lengths left. ValueError for a radius that is not less than either side."""
    if min(x.shape[-2:]) <= radius:
        raise ValueError(f"sharpen_latent: radius: got {radius} for {x.shape[-1]} x {x.shape[-2]} cells, expected less than either side")
    long: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-6
    return long * folded(x / long, sharpening(radius, sigma, amount))


def tonemapped(x: Tensor, multiplier: float) -> Tensor:
    """Lengths by Reinhard's curve, below their mean plus five standard deviations times the multiplier."""
    long: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10
    top = (long.std(dim=(1, 2, 3), keepdim=True) * 5 + long.mean(dim=(1, 2, 3), keepdim=True)) * multiplier
    share = long / top
    return x / long * (share / (share + 1.0) * top)


def bislerp(x: Tensor, width: int, height: int) -> Tensor:
    """As bilinear, but between neighbours each cell's vector of channels turns along the arc (slerp) while its length changes evenly:
    a mean of unlike vectors is shorter than they are, and a latent of short vectors decodes to grey."""
    across = _between(x.float().movedim(1, -1), 2, width)  # (B, H, width, C)
    return _between(across, 1, height).movedim(-1, 1).to(x)


def _between(x: Tensor, dim: int, size: int) -> Tensor:
    """(B, H, W, C) brought to `size` along `dim`, each new place on the arc between its two neighbours."""
    n = x.shape[dim]
    places = torch.arange(n, dtype=torch.float32, device=x.device)
    at = _line(places, size)
    after = _line((places + 1).clamp(max=n - 1), size).long()
    shape = [1] * x.ndim
    shape[dim] = size
    return _slerp(x.index_select(dim, at.long()), x.index_select(dim, after), (at - at.floor()).view(shape))


def _line(values: Tensor, size: int) -> Tensor:
    return torch.nn.functional.interpolate(values.view(1, 1, 1, -1), (1, size), mode="bilinear").view(-1)


def _slerp(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    long_a, long_b = a.norm(dim=-1, keepdim=True), b.norm(dim=-1, keepdim=True)
    unit_a, unit_b = torch.nan_to_num(a / long_a, nan=0.0), torch.nan_to_num(b / long_b, nan=0.0)
    cosine = (unit_a * unit_b).sum(dim=-1, keepdim=True)
    angle = cosine.acos()
    turned = ((1 - r) * angle).sin() / angle.sin() * unit_a + (r * angle).sin() / angle.sin() * unit_b
    turned = turned * (long_a * (1 - r) + long_b * r)
    turned = torch.where(cosine > 1 - ALIKE, a, turned)
    return torch.where(cosine < ALIKE - 1, a * (1 - r) + b * r, turned)
