"""Masks: of one value, from pictures, cut, grown, softened, put together."""
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from safelight.op import Knob, op
from safelight.values import Image, Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDE = Knob(0, 16384)
COLOURS = ("red", "green", "blue")


@op(group="mask", version=1)
def solid_mask(
    *, value: Annotated[float, Knob(0, 1, step=0.01)] = 1.0, width: Annotated[int, Knob(1, 16384)] = 512,
    height: Annotated[int, Knob(1, 16384)] = 512,
) -> Mask:
    """A mask of one value.

    Args:
        value: everywhere
        width: in pixels
        height: in pixels
    """
    import numpy as np

    return Mask(np.full((1, height, width), value, np.float32))


@op(group="mask", version=1)
def mask_of(
    image: Image, *, channel: Literal["red", "green", "blue", "grey", "colour"] = "red", colour: Annotated[int, Knob(0, 0xFFFFFF)] = 0,
) -> Mask:
    """A mask from pictures.

    Args:
        channel: how bright a colour is, or their mean; or, for `colour`, 1 where the picture has exactly the colour given
        colour: 65536 red + 256 green + blue, each 0 to 255
    """
    import numpy as np

    pixels = image.pixels
    if channel == "colour":
        levels = np.rint(np.clip(pixels, 0, 1) * np.float32(255)).astype(np.int64)
        return Mask((levels @ np.array([65536, 256, 1]) == colour).astype(np.float32))
    return Mask(pixels.mean(axis=-1, dtype=np.float32) if channel == "grey" else pixels[..., COLOURS.index(channel)].copy())


@op(group="mask", version=1)
def image_of(mask: Mask) -> Image:
    """A mask as grey pictures."""
    import numpy as np

    return Image(np.repeat(mask.values[..., None], 3, axis=-1))


@op(group="mask", version=1)
def invert_mask(mask: Mask) -> Mask:
    """1 for 0."""
    return Mask(1.0 - mask.values)


@op(group="mask", version=1)
def crop_mask(
    mask: Mask, *, x: Annotated[int, SIDE] = 0, y: Annotated[int, SIDE] = 0, width: Annotated[int, Knob(1, 16384)] = 512,
    height: Annotated[int, Knob(1, 16384)] = 512,
) -> Mask:
    """Cut a rectangle out of a mask, as much of it as there is.

    Args:
        x: its left edge
        y: its upper edge
        width: in pixels
        height: in pixels
    """
    high, wide = mask.values.shape[1:]
    if x >= wide or y >= high:
        raise ValueError(f"crop_mask: x, y: got {x}, {y}, expected a place inside {wide} x {high} pixels")
    return Mask(mask.values[:, y : y + height, x : x + width].copy())


@op(group="mask", version=1)
def combine_masks(
    mask: Mask, other: Mask, *, how: Literal["multiply", "add", "subtract", "and", "or", "xor"] = "multiply",
    x: Annotated[int, SIDE] = 0, y: Annotated[int, SIDE] = 0,
) -> Mask:
    """Put two masks together.

    Args:
        mask: stays as it is where the other does not reach
        other: with its corner at x, y
        how: and, or, xor round both first
        x: in pixels
        y: in pixels
    """
    import numpy as np

    out = mask.values.copy()
    high, wide = (min(n, m - at) for n, m, at in zip(other.values.shape[1:], out.shape[1:], (y, x), strict=True))
    if min(high, wide) < 1:
        raise ValueError(f"combine_masks: x, y: got {x}, {y}, expected a place inside {out.shape[2]} x {out.shape[1]} pixels")
    a, b = out[:, y : y + high, x : x + wide], other.values[:, :high, :wide]
    p, q = np.rint(a) != 0, np.rint(b) != 0
    made = {"multiply": a * b, "add": a + b, "subtract": a - b, "and": p & q, "or": p | q, "xor": p ^ q}[how]
    out[:, y : y + high, x : x + wide] = made
    return Mask(np.clip(out, 0, 1))


@op(group="mask", version=1)
def feather_mask(
    mask: Mask, *, left: Annotated[int, SIDE] = 0, top: Annotated[int, SIDE] = 0, right: Annotated[int, SIDE] = 0,
    bottom: Annotated[int, SIDE] = 0, wrapped: bool = False,
) -> Mask:
    """Let a mask fade out towards its edges.

    Args:
        left: over so many pixels
        top: over so many pixels
        right: over so many pixels
        bottom: over so many pixels
        wrapped: as ComfyUI's FeatherMask: from the right and from below the faintest place is the first column and row, then the last ones
    """
    import numpy as np

    high, wide = mask.values.shape[1:]
    across = _fade(wide, left) * np.roll(_fade(wide, right)[::-1], wrapped)
    down = _fade(high, top) * np.roll(_fade(high, bottom)[::-1], wrapped)
    return Mask(mask.values * across * down[:, None])


def _fade(n: int, over: int) -> NDArray[np.float32]:
    """(n,) rising from 1 / over to 1, then 1."""
    import numpy as np

    over = min(over, n)
    return np.concatenate([np.arange(1, over + 1) / over if over else np.ones(0), np.ones(n - over)]).astype(np.float32)


@op(group="mask", version=1)
def grow_mask(mask: Mask, *, by: Annotated[int, Knob(-16384, 16384)] = 0, tapered: bool = True) -> Mask:
    """Grow or shrink what a mask covers.

    Args:
        by: pixels; below 0 shrinks
        tapered: corners are cut; otherwise they stay square
    """
    import numpy as np
    from scipy import ndimage

    cross = np.array([[not tapered, True, not tapered], [True, True, True], [not tapered, True, not tapered]])
    grow = ndimage.grey_dilation if by > 0 else ndimage.grey_erosion
    out = mask.values.copy()
    for _ in range(abs(by)):
        out = grow(out, footprint=cross[None])
    return Mask(out)


@op(group="mask", version=1)
def threshold_mask(mask: Mask, *, value: Annotated[float, Knob(0, 1, step=0.01)] = 0.5) -> Mask:
    """1 where a mask is above a value, 0 elsewhere.

    Args:
        value: the value
    """
    import numpy as np

    return Mask((mask.values > np.float32(value)).astype(np.float32))


@op(group="mask", version=1)
def pad_mask(
    image: Image, *, left: Annotated[int, SIDE] = 0, top: Annotated[int, SIDE] = 0, right: Annotated[int, SIDE] = 0,
    bottom: Annotated[int, SIDE] = 0, feather: Annotated[int, SIDE] = 40,
) -> Mask:
    """The mask for what `pad_image` puts around pictures: 1 there, fading into the picture.

    Args:
        image: the picture before it is padded
        left: pixels there
        top: pixels there
        right: pixels there
        bottom: pixels there
        feather: how far into the picture it fades, if that is less than half of either side
    """
    import numpy as np

    high, wide = image.pixels.shape[1:3]
    inside = np.zeros((high, wide), np.float32)
    if 0 < feather * 2 < min(high, wide):
        rows, columns = np.arange(high)[:, None], np.arange(wide)[None]
        near = np.full((high, wide), max(high, wide))
        for put, distance in ((top, rows), (bottom, high - rows), (left, columns), (right, wide - columns)):
            near = np.minimum(near, distance) if put else near
        inside = (np.maximum(feather - near, 0) / feather).astype(np.float64) ** 2
    return Mask(np.pad(inside.astype(np.float32)[None], ((0, 0), (top, bottom), (left, right)), constant_values=1))
