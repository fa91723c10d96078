"""White lines on black: where a picture changes, and where it is darker than what surrounds it."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from safelight.data.hints import Picture, hint

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEIGHBOURS = ((0, 1), (1, 1), (1, 0), (1, -1))
"""(down, right) of the pixel that a gradient at 0, 45, 90 and 135 degrees points at."""

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)

PENCIL = 16 / 255
"""A pixel this much darker than its surroundings is a stroke; the figure of the usual scribble filter."""


@hint
def canny(picture: Picture) -> NDArray[np.float32]:
    """Edges one pixel wide (Canny, A computational approach to edge detection, 1986).

    `low` and `high` are slopes by Sobel's operator on values in [0, 1], where a step from black to white has 4: an edge is above `high`
    somewhere and above `low` all along. 0.4 and 0.8 are OpenCV's 100 and 200. Each pixel is judged in its steepest colour.
    """
    from scipy.ndimage import binary_propagation, gaussian_filter, sobel

    if picture.asked.low > picture.asked.high:
        raise ValueError(f"hint: low: got {picture.asked.low:g}, expected at most high, which is {picture.asked.high:g}")
    smooth = gaussian_filter(picture.pixels, (1.0, 1.0, 0.0), mode="mirror", radius=(2, 2, 0))
    slopes = np.array([[sobel(smooth[..., c], axis=axis, mode="nearest") for c in range(3)] for axis in (0, 1)])  # (2, 3, H, W)
    steepest = np.hypot(*slopes).argmax(axis=0)
    down, right = np.take_along_axis(slopes, steepest[None, None], axis=1)[:, 0]
    slope = np.hypot(right, down)
    ridge = _ridges(slope, np.rint(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4)
    strong, weak = ridge & (slope > picture.asked.high), ridge & (slope > picture.asked.low)
    return np.asarray(binary_propagation(strong, np.ones((3, 3)), mask=weak), dtype=np.float32)


def _ridges(slope: NDArray[np.float32], direction: NDArray[np.int_]) -> NDArray[np.bool_]:
    """Where the slope is largest along its direction. Of two equal neighbours the second counts, so that a line has one pixel."""
    padded = np.pad(slope, 1)
    rows, columns = np.indices(slope.shape) + 1
    down, right = np.array(NEIGHBOURS)[direction].transpose(2, 0, 1)
    return np.asarray((slope >= padded[rows - down, columns - right]) & (slope > padded[rows + down, columns + right]))


@hint
def scribble(picture: Picture) -> NDArray[np.float32]:
    """Thick strokes, as if drawn by hand: a difference of Gaussians, cut (Winnemöller, XDoG, 2011). `size` is the wider Gaussian's, 5."""
    wide = picture.size(5.0)
    return (_darker(picture.pixels, wide / 10, wide) > PENCIL).astype(np.float32)


@hint
def lineart(picture: Picture) -> NDArray[np.float32]:
    """Soft lines: how much darker each pixel is than its surroundings, brought to the strength of the picture's own lines. `size` is
    how far the surroundings reach, 6."""
    depth = _darker(picture.pixels, 0.0, picture.size(6.0))
    seen = depth[depth > PENCIL / 2]
    return np.asarray(depth / max(PENCIL, float(np.median(seen)) if seen.size else 0.0) / 2, dtype=np.float32)


def _darker(pixels: NDArray[np.float32], narrow: float, wide: float) -> NDArray[np.float32]:
    """(H, W): how much darker than its surroundings a pixel is, in grey; not below 0."""
    from scipy.ndimage import gaussian_filter

    near, far = (gaussian_filter(pixels @ GREY, sigma) for sigma in (narrow, wide))
    return np.asarray((far - near).clip(0), dtype=np.float32)
