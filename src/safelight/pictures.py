"""Reading picture files, and the arithmetic on pixels that curation, scoring and training share. Numpy and Pillow, no torch."""
from __future__ import annotations

import math
import struct
import warnings
import zlib
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pil
from PIL import ImageOps, ImageSequence

from safelight.limits import MAX_PIXELS as MAX_PIXELS
from safelight.limits import Unreadable as Unreadable

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE_SIDE = 256  # sharpness depends on scale, so it is measured on a shorter side of at most this many pixels

# What Pillow's decoders are known to raise on damaged files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, KeyError, IndexError, TypeError, OverflowError, ZeroDivisionError, MemoryError,
          AttributeError, struct.error, zlib.error, Pil.DecompressionBombError)


def read(path: str | Path, *, least: int = 0, most: int = 0, grey: bool = False) -> NDArray[np.uint8]:
    """The picture as (H, W, 3) uint8 RGB: first frame, EXIF orientation applied, transparency over white, 16 bit scaled to 8.

    least: when positive, the picture may come back smaller, as long as its shorter side keeps at least this many pixels (a JPEG is
    then decoded at 1/2, 1/4 or 1/8, which is several times faster). most: when positive, as `shrink` to that side. grey: the luma
    alone, (H, W). Raises Unreadable.
    """
    try:
        with warnings.catch_warnings():  # Pillow warns about damaged metadata of pictures that decode well
            warnings.simplefilter("ignore")
            return _decode(path, least, most, "L" if grey else "RGB")
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(str(error) or type(error).__name__) from error


def layers(path: str | Path, *, most: int | None = None) -> tuple[list[NDArray[np.uint8]], bool]:
    """All frames of the first one's size, (H, W, 4) uint8 RGBA, and whether any has transparency; the colours below it as they lie there.

    `most`: so many frames, and no more are decoded. EXIF orientation applied, 16 bit scaled to 8. Raises Unreadable.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Pil.open(path) as picture:
                _bounded(picture)
                return _layers(picture, most)
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(str(error) or type(error).__name__) from error


def _layers(picture: Pil.Image, most: int | None) -> tuple[list[NDArray[np.uint8]], bool]:
    frames: list[NDArray[np.uint8]] = []
    clear = False
    for frame in islice(ImageSequence.Iterator(picture), most):
        shown = ImageOps.exif_transpose(frame)
        clear = clear or shown.has_transparency_data
        flat = shown if shown.mode in ("RGB", "RGBA", "P", "PA", "LA") else rgb(shown)
        found = np.asarray(flat.convert("RGBA"))
        if not frames or found.shape == frames[0].shape:
            frames.append(found)
    return frames, clear


def _bounded(picture: Pil.Image) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise Unreadable(f"{picture.width} x {picture.height} pixels is over the limit of {MAX_PIXELS // 10**6} million")


def _decode(path: str | Path, least: int, most: int, mode: str) -> NDArray[np.uint8]:
    with Pil.open(path) as picture:
        _bounded(picture)
        if least > 0:
            picture.draft(mode, _box(picture.size, least))
        ImageOps.exif_transpose(picture, in_place=True)
        ready = picture.mode == mode and "transparency" not in picture.info
        shown = picture if ready else rgb(picture).convert(mode)
        if mode == "L" and most < min(shown.size) < 2 * most:
            return _averaged(shown, most)
        return np.asarray(_shrunk(shown, most) if most else shown)


def _averaged(picture: Pil.Image, side: int) -> NDArray[np.uint8]:
    """A grey picture as `shrink` makes it, but for rounding, twice as fast; for less than half, as a JPEG's scaled decode leaves to do."""
    scale, pixels = min(picture.size) / side, np.asarray(picture)
    for length, up in ((picture.height, False), (picture.width, True)):  # each axis in turn comes first: whole rows are copied fast
        found, last = (pixels.take(which, 0) for which in _covered(len(pixels), max(1, round(length / scale))))
        gap = found ^ last
        gap >>= np.uint8(1)
        if up:  # the mean in 8 bits: a | b less half of where they differ rounds up, a & b and that half rounds down
            found |= last
            found -= gap
        else:
            found &= last
            found += gap
        pixels = np.ascontiguousarray(found.T)
    return pixels


@lru_cache(maxsize=1024)
def _covered(many: int, few: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The first and the last of `many` pixels that each of `few` averages, which are more than half as many."""
    step = many / few
    middle = (np.arange(few) + 0.5) * step + 0.5
    return (middle - step / 2).astype(np.intp), np.minimum((middle + step / 2).astype(np.intp), many) - 1


def _box(size: tuple[int, int], least: int) -> tuple[int, int]:
    scale = min(1.0, least / min(size))
    return math.ceil(size[0] * scale), math.ceil(size[1] * scale)


def rgb(picture: Pil.Image) -> Pil.Image:
    """Any Pillow mode as RGB; transparency over white; 16-bit and float greys scaled, not clipped."""
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = np.asarray(picture, dtype=np.float64)
        top = 1.0 if grey.max(initial=0) <= 1 and picture.mode == "F" else 255.0 if grey.max(initial=0) <= 255 else 65535.0
        return Pil.fromarray(np.clip(grey / top * 255, 0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.getbands() or "transparency" in picture.info:
        top_layer = picture.convert("RGBA")
        return Pil.alpha_composite(Pil.new("RGBA", top_layer.size, (255, 255, 255, 255)), top_layer).convert("RGB")
    return picture.convert("RGB")


def shrink(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) or (H, W) uint8 with the shorter side brought down to `side` by area averaging; smaller pictures are left alone."""
    return pixels if min(pixels.shape[:2]) <= side else np.asarray(_shrunk(Pil.fromarray(pixels), side))


def _shrunk(picture: Pil.Image, side: int) -> Pil.Image:
    scale = side / min(picture.size)
    if scale >= 1:
        return picture
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Pil.Resampling.BOX)


def floats(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 -> float32 in [0, 1]."""
    return pixels.astype(np.float32) / np.float32(255)


def bytes8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """float32 in [0, 1] -> uint8, rounded."""
    return np.asarray(np.clip(pixels * 255 + 0.5, 0, 255), dtype=np.uint8)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 -> (H, W) float32 in [0, 255], ITU-R BT.601 weights."""
    return np.asarray(pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32), dtype=np.float32)


def sharpness(pixels: NDArray[np.uint8]) -> float:
    """Variance of the 4-neighbour Laplacian of the luma, in squared grey levels of 0..255, at REFERENCE_SIDE. Below 20 reads as blurred.

    pixels: (H, W, 3), or the luma as (H, W).
    """
    small = shrink(pixels, REFERENCE_SIDE)
    y = luma(small) if small.ndim == 3 else small.astype(np.int16)
    if min(y.shape) < 3:
        return 0.0
    wide, flat = y.shape[1], y.ravel()
    centre = slice(wide, flat.size - wide)  # whole rows at once are quickest; what wraps around at both sides is cut off
    edges = flat[centre] * y.dtype.type(-4)
    for by in (-wide, wide, -1, 1):
        edges += flat[centre.start + by:centre.stop + by]
    found = edges.reshape(-1, wide)[:, 1:-1].astype(np.float32).ravel()
    mean = float(found.mean())
    return max(0.0, float(found @ found) / found.size - mean * mean)


def colourfulness(pixels: NDArray[np.uint8]) -> float:
    """Hasler and Suesstrunk's M (Measuring colourfulness in natural images, 2003): 0 is grey, 15 slight, 60 strong, 100 extreme."""
    r, g, b = (pixels[..., i].astype(np.float32) for i in range(3))
    rg, yb = r - g, (r + g) / 2 - b
    return float(np.hypot(rg.std(), yb.std()) + 0.3 * np.hypot(rg.mean(), yb.mean()))


def histogram(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How many pixels of (H, W, 3), or of the luma (H, W), have each of the 256 greys."""
    picture = Pil.fromarray(pixels)
    return np.array((picture if pixels.ndim == 2 else picture.convert("L")).histogram(), dtype=np.int64)


def brightness(counts: NDArray[np.int64]) -> float:
    """Mean luma in [0, 1], of a histogram."""
    return float(counts @ np.arange(256) / counts.sum()) / 255


def contrast(counts: NDArray[np.int64]) -> float:
    """Standard deviation of the luma, in [0, 0.5], of a histogram."""
    return math.sqrt(counts @ (np.arange(256) / 255 - brightness(counts)) ** 2 / counts.sum())


def entropy(counts: NDArray[np.int64]) -> float:
    """Shannon entropy of a luma histogram in bits, 0 (one grey) to 8."""
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log2(share)).sum()) + 0.0


def square(pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (side, side, 3): the middle square, brought to size by area averaging (bicubic when it must grow)."""
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    middle = Pil.fromarray(pixels[top:top + edge, left:left + edge])
    return np.asarray(middle.resize((side, side), Pil.Resampling.BOX if edge > side else Pil.Resampling.BICUBIC))
