"""Work on large pictures tile by tile, so that a decoder needs no more memory than for one tile; the tiles fade into each other."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor

from safelight.sampling.resize import fading


def tiled(x: Tensor, work: Callable[[Tensor], Tensor], *, tile: tuple[int, int], overlap: int, scale: float) -> Tensor:
    """`work` on tiles (height, width) of x (B, C, H, W) that share `overlap` places, their answers weighted so that they fade there.

    `scale` is how many times larger an answer is than what it answers.
    """
    return torch.cat([_one(row, work, tile, overlap, scale) for row in x.split(1)])


def three_ways(x: Tensor, work: Callable[[Tensor], Tensor], *, tile: int, overlap: int, scale: float) -> Tensor:
    """The mean of three tilings, by square, tall and wide tiles, as ComfyUI decodes: the seams of each lie elsewhere."""
    shapes = [(tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile)]
    first, second, third = (tiled(x, work, tile=shape, overlap=overlap, scale=scale) for shape in shapes)
    return (first + second + third) / 3


def _one(x: Tensor, work: Callable[[Tensor], Tensor], tile: Sequence[int], overlap: int, scale: float) -> Tensor:
    size = x.shape[-2:]
    if all(n <= t for n, t in zip(size, tile, strict=True)):
        return work(x)
    total: Tensor | None = None
    weights = torch.zeros([1, 1, *(round(n * scale) for n in size)], device=x.device)
    for top, left in product(*(_starts(n, t, overlap) for n, t in zip(size, tile, strict=True))):
        part = work(x[..., top : top + tile[0], left : left + tile[1]])
        total = part.new_zeros([*part.shape[:2], *weights.shape[2:]]) if total is None else total
        weight = _weight(part, round(overlap * scale))
        down, across = (slice(round(at * scale), round(at * scale) + n) for at, n in zip((top, left), part.shape[-2:], strict=True))
        total[..., down, across] += part * weight
        weights[..., down, across] += weight
    assert total is not None
    return total / weights


def _starts(n: int, tile: int, overlap: int) -> Sequence[int]:
    return [max(0, min(n - overlap, at)) for at in range(0, n - overlap, tile - overlap)] if n > tile else [0]


def _weight(part: Tensor, soft: int) -> Tensor:
    """(1, 1, h, w), rising from every edge; a side shorter than the soft edge has none."""
    h, w = part.shape[-2:]
    down, across = (fading(n, soft, first=True, last=True) if soft < n else torch.ones(n) for n in (h, w))
    return (down[:, None] * across)[None, None].to(part)
