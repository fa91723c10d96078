"""Work on large pictures tile by tile, so that a decoder needs no more memory than for one tile; the tiles fade into each other."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product

import torch
from torch import Tensor


def tiled(x: Tensor, work: Callable[[Tensor], Tensor], *, tile: tuple[int, int], overlap: int, scale: float) -> Tensor:
    """`work` on tiles (height, width) of x (B, C, H, W) that share `overlap` places, their answers weighted so that they fade there.

    `scale` is how many times larger an answer is than what it answers.
    """
    return torch.cat([_one(row, work, tile, overlap, scale) for row in x.split(1)])


def three_ways(x: Tensor, work: Callable[[Tensor], Tensor], *, tile: int, overlap: int, scale: float) -> Tensor:
    """The mean of three tilings, by tall, wide and square tiles, as ComfyUI decodes: the seams of each lie elsewhere."""
    shapes = [(tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile)]
    if max(x.shape[-2:]) <= tile // 2:  # one tile in each of them
        shapes = shapes[:1]
    total = tiled(x, work, tile=shapes[0], overlap=overlap, scale=scale)
    for shape in shapes[1:]:
        total += tiled(x, work, tile=shape, overlap=overlap, scale=scale)
    return total.div_(len(shapes))


def _one(x: Tensor, work: Callable[[Tensor], Tensor], tile: Sequence[int], overlap: int, scale: float) -> Tensor:
    size = x.shape[-2:]
    if all(n <= t for n, t in zip(size, tile, strict=True)):
        return work(x)
    total = weights = torch.zeros([1, 1, *(round(n * scale) for n in size)])
    for top, left in product(*(_starts(n, t, overlap) for n, t in zip(size, tile, strict=True))):
        part = work(x[..., top : top + tile[0], left : left + tile[1]])
        if total is weights:
            total, weights = (part.new_zeros([1, n, *weights.shape[2:]]) for n in (part.shape[1], 1))
        weight = _weight(part, round(overlap * scale))
        down, across = (slice(round(at * scale), round(at * scale) + n) for at, n in zip((top, left), part.shape[-2:], strict=True))
        total[..., down, across] += part * weight
        weights[..., down, across] += weight
    return total.div_(weights)


def _starts(n: int, tile: int, overlap: int) -> Sequence[int]:
    return range(0, n - overlap, tile - overlap) if n > tile else [0]


def _weight(part: Tensor, soft: int) -> Tensor:
    """(1, 1, h, w), rising from every edge; a side shorter than the soft edge has none."""
    h, w = part.shape[-2:]
    down, across = (fading(n, soft, first=True, last=True) if soft < n else torch.ones(n) for n in (h, w))
    return (down[:, None] * across)[None, None].to(part)


def fading(n: int, steps: int, *, first: bool, last: bool) -> Tensor:
    """(n,) ones that rise over `steps` places at the first end, fall at the last one: 1 / steps, 2 / steps, ..., 1."""
    line = torch.ones(n)
    rise = torch.tensor([(1.0 / steps) * (i + 1) for i in range(steps)])[:n] if steps else line[:0]
    if first:
        line[: len(rise)] *= rise
    if last:
        line[n - len(rise) :] *= rise.flip(0)
    return line


def whole_cells(tile: int, overlap: int, factor: int) -> tuple[int, int]:
    """Side and overlap in pixels, both whole cells of tiles half as high; an overlap of more than a quarter of the side becomes that."""
    tile = max(tile // (2 * factor) * 2 * factor, 2 * factor)
    return tile, min(overlap, tile // 4) // factor * factor


def middle(x: Tensor, ratio: float) -> Tensor:
    """(..., H, W) cut about its middle to this ratio of width to height, as ComfyUI rounds it."""
    high, wide = x.shape[-2:]
    have = wide / high
    left = round((wide - wide * (ratio / have)) / 2) if have > ratio else 0
    top = round((high - high * (have / ratio)) / 2) if have < ratio else 0
    return x[..., top : high - top, left : wide - left]
