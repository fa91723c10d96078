"""Aspect buckets: sizes of about one area that pictures are cut to, so that one batch holds one size. The table is sd-scripts'."""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from safelight.values import Row

Size = tuple[int, int]


def table(size: int, *, least: int = 0, most: int = 0, step: int = 64) -> tuple[Size, ...]:
    """(width, height) of every bucket, by width: sides are multiples of `step` from `least` to `most`, areas `size`² or just below.

    Nothing said, they are sd-scripts' 256 and 1024, or half the size and twice it where these lie closer or further.
    ValueError when nothing fits between least and most.
    """
    least, most = least or max(step, min(256, size // 2)), most or max(1024, 2 * size)
    if step < 1 or size < step or not 0 < least <= most:
        raise ValueError(f"buckets: size {size}, least {least}, most {most}, step {step}; expected step <= size and least <= most")
    edge = size // step * step
    heights = {w: min(most, size * size // w // step * step) for w in range(least, most + 1, step)}
    wide = {(w, h) for w, h in heights.items() if h >= least}
    return tuple(sorted({(edge, edge)} | wide | {(h, w) for w, h in wide}))


@dataclass(frozen=True)
class Placed:
    """Where a picture of a size goes: resized by `factor` it covers the bucket, and the share `cut` of it does not fit."""

    bucket: Size
    factor: float
    cut: float


def place(width: int, height: int, sizes: Sequence[Size], *, upscale: bool = True, step: int = 64) -> Placed:
    """The bucket of the nearest aspect ratio, of two equally near ones the first.

    Without `upscale` a picture that is smaller than its bucket gets one of its own: its sides, cut down to multiples of `step`.
    """
    aspect = width / height
    bucket = min(sizes, key=lambda s: abs(s[0] / s[1] - aspect))
    factor = max(bucket[0] / width, bucket[1] / height)
    if factor > 1 and not upscale:
        bucket, factor = (max(step, width // step * step), max(step, height // step * step)), 1.0
        factor = max(factor, bucket[0] / width, bucket[1] / height)
    return Placed(bucket, factor, 1 - bucket[0] * bucket[1] / (width * factor * height * factor))


@dataclass(frozen=True)
class Filled:
    """A bucket and what is in it: how many pictures, the mean share that is cut off them, how many are enlarged."""

    bucket: Size
    count: int
    cut: float
    enlarged: int


def preview(rows: Iterable[Row], sizes: Sequence[Size], *, upscale: bool = True, step: int = 64) -> list[Filled]:
    """The buckets that have pictures, by aspect ratio from narrow to wide. A folder's repeats are not counted."""
    found: dict[Size, list[Placed]] = {}
    for row in rows:
        placed = place(row.width, row.height, sizes, upscale=upscale, step=step)
        found.setdefault(placed.bucket, []).append(placed)
    return [Filled(bucket, len(inside), math.fsum(p.cut for p in inside) / len(inside), sum(p.factor > 1.0001 for p in inside))
            for bucket, inside in sorted(found.items(), key=lambda kv: (kv[0][0] / kv[0][1], kv[0]))]
