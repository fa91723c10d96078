"""Hints of tone and colour: the picture with less in it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pil

from safelight.data.hints import Picture, hint

if TYPE_CHECKING:
    from numpy.typing import NDArray


@hint
def blur(picture: Picture) -> NDArray[np.float32]:
    """The picture out of focus; `size` is the Gaussian's standard deviation, 9."""
    from scipy.ndimage import gaussian_filter

    sigma = picture.size(9.0)
    return np.asarray(gaussian_filter(picture.pixels, (sigma, sigma, 0.0), mode="nearest"))


@hint
def tile(picture: Picture) -> NDArray[np.float32]:
    """The picture at a lower resolution: squares of `size` (8) pixels averaged, then drawn large again, smoothly."""
    return _resized(_cells(picture, 8.0), picture.pixels.shape[:2], Pil.Resampling.BICUBIC)


@hint
def colour(picture: Picture) -> NDArray[np.float32]:
    """A grid of squares of one colour each, `size` (64) pixels wide, as T2I-Adapter's colour hint (arXiv:2302.08453)."""
    return _resized(_cells(picture, 64.0), picture.pixels.shape[:2], Pil.Resampling.NEAREST)


@hint
def invert(picture: Picture) -> NDArray[np.float32]:
    """Black for white: for lines that are drawn dark on light paper."""
    return np.asarray(1 - picture.pixels)


def _cells(picture: Picture, usual: float) -> NDArray[np.float32]:
    """The mean colours of squares that fill the picture, one pixel each."""
    side = max(picture.size(usual), 1.0)
    height, width = (max(round(n / side), 1) for n in picture.pixels.shape[:2])
    return _resized(picture.pixels, (height, width), Pil.Resampling.BOX)


def _resized(pixels: NDArray[np.float32], shape: tuple[int, ...], how: Pil.Resampling) -> NDArray[np.float32]:
    """(H, W, 3) float32 of another height and width; channel by channel, since Pillow's colours have 8 bits."""
    height, width = shape
    channels = [Pil.fromarray(np.ascontiguousarray(pixels[..., c])).resize((width, height), how) for c in range(3)]
    return np.stack([np.asarray(c) for c in channels], axis=-1)
