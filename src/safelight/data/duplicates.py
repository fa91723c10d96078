"""Near duplicates: a perceptual hash finds the candidates, a coarse colour picture confirms them. Exact search, numpy only."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pil

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELLS = 8  # the coarse colour picture is CELLS x CELLS
COLOUR_GAP = 40  # of 255: two copies of one picture differ less than this in every cell, once overall brightness is set equal
BRUTE = 4096  # up to so many distinct hashes every pair is compared
BLOCK = 512


def coarse(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 -> (CELLS * CELLS * 3,) mean colours."""
    return np.asarray(Pil.fromarray(pixels).resize((CELLS, CELLS), Pil.Resampling.BOX)).reshape(-1)


@cache
def _cosines() -> NDArray[np.float64]:
    k, n = np.arange(8)[:, None], np.arange(32)[None, :]
    return np.asarray(np.cos(np.pi * k * (2 * n + 1) / 64))


def phash(pixels: NDArray[np.uint8]) -> int:
    """64-bit perceptual hash: which of the 8 x 8 lowest DCT coefficients of the 32 x 32 grey picture lie above their median.

    pixels: (H, W, 3), or the luma as (H, W).
    """
    luma = Pil.fromarray(pixels) if pixels.ndim == 2 else Pil.fromarray(pixels).convert("L")
    grey = np.asarray(luma.resize((32, 32), Pil.Resampling.LANCZOS, reducing_gap=2.0), dtype=np.float64)
    low = (_cosines() @ grey @ _cosines().T).ravel()  # (64,)
    bits = np.packbits(low > np.sort(low)[31:33].mean())
    return int.from_bytes(bits.tobytes(), "big")


def close_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """All pairs i < j of (N,) 64-bit hashes that differ in at most `distance` bits, as (M, 2) sorted; none is missed.

    Above BRUTE hashes by the pigeonhole principle: of distance + 1 bands of bits at least one is equal in a close pair.
    """
    n = len(hashes)
    if n < 2:
        return np.empty((0, 2), dtype=np.int64)
    found = [_within(hashes, np.arange(n), distance)] if n <= BRUTE else [
        _within(hashes, bucket, distance) for band in _bands(hashes, distance + 1) for bucket in _buckets(band)]
    return np.unique(np.concatenate(found), axis=0) if found else np.empty((0, 2), dtype=np.int64)


def _bands(hashes: NDArray[np.uint64], n: int) -> list[NDArray[np.uint64]]:
    edges = [round(i * 64 / n) for i in range(n + 1)]
    return [(hashes >> np.uint64(a)) & np.uint64((1 << (b - a)) - 1) for a, b in pairwise(edges)]


def _buckets(band: NDArray[np.uint64]) -> list[NDArray[np.int64]]:
    order = np.argsort(band, kind="stable")
    cuts = np.flatnonzero(np.diff(band[order])) + 1
    return [bucket for bucket in np.split(order, cuts) if len(bucket) > 1]


def _within(hashes: NDArray[np.uint64], members: NDArray[np.int64], distance: int) -> NDArray[np.int64]:
    """Close pairs among the members (rising indices), a block of rows at a time so that memory stays flat."""
    found = []
    for start in range(0, len(members), BLOCK):
        left, right = members[start:start + BLOCK], members[start:]
        gaps = np.bitwise_count(hashes[left][:, None] ^ hashes[right][None, :])
        i, j = np.nonzero(gaps <= distance)
        keep = i < j
        found.append(np.stack([left[i[keep]], right[j[keep]]], axis=1))
    return np.concatenate(found)


def same_colours(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> bool:
    """Whether the coarse colours agree: no cell differs by COLOUR_GAP or more after the overall brightness was set equal."""
    gap = a.astype(np.float32) - b.astype(np.float32)
    return bool(np.abs(gap - gap.mean()).max() < COLOUR_GAP)


def repeats(hashes: Sequence[int], distance: int, agree: Callable[[int, int], bool]) -> dict[int, tuple[int, int]]:
    """Which pictures repeat an earlier one: index -> (index of the first that looks the same, bits that differ).

    The order is the preference: give the best picture first. A picture is compared with kept ones only, so a chain of small changes
    does not drop its far end. `agree` says of two pictures with close hashes whether they are the same; it is asked of no others.
    """
    distinct, which = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    neighbours: dict[int, list[int]] = {i: [i] for i in range(len(distinct))}
    for i, j in close_pairs(distinct, distance).tolist():
        neighbours[i].append(j)
        neighbours[j].append(i)
    kept: dict[int, list[int]] = {i: [] for i in range(len(distinct))}
    out: dict[int, tuple[int, int]] = {}
    for at, (one, bucket) in enumerate(zip(hashes, which.tolist(), strict=True)):
        candidates = sorted(k for n in neighbours[bucket] for k in kept[n])
        first = next((k for k in candidates if agree(at, k)), None)
        if first is None:
            kept[bucket].append(at)
        else:
            out[at] = (first, (one ^ hashes[first]).bit_count())
    return out
