"""What changes the colours of pictures: blurred, sharpened, blended, in few colours."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.op import Knob, op
from safelight.values import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SPREAD = 2 * 256
"""How far a pattern of dots moves a pixel in all, in grey levels times the number of colours; ComfyUI's figure."""


def _folded(image: Image, weights: Tensor) -> NDArray[np.float32]:
    """Each pixel the weighted sum of those around it; beyond the edges the picture is mirrored."""
    from safelight.families.touch import folded
    from safelight.sampling.resize import grid

    radius = len(weights) // 2
    if min(image.pixels.shape[1:3]) <= radius:
        high, wide = image.pixels.shape[1:3]
        raise ValueError(f"blur: radius: got {radius} for a picture of {wide} x {high} pixels, expected less than either side")
    out: NDArray[np.float32] = folded(grid(image), weights).movedim(1, -1).contiguous().numpy()
    return out


@op(group="image", version=1, exact=True)
def blur_image(image: Image, *, radius: Annotated[int, Knob(1, 31)] = 1, sigma: Annotated[float, Knob(0.1, 10, step=0.1)] = 1.0) -> Image:
    """Blur pictures.

    Args:
        radius: how far around a pixel the others count, in pixels
        sigma: how slowly they count less with distance, in radii
    """
    from safelight.families.touch import bell

    return Image(_folded(image, bell(radius, sigma)), image.info)


@op(group="image", version=1, exact=True)
def sharpen_image(
    image: Image, *, radius: Annotated[int, Knob(1, 31)] = 1, sigma: Annotated[float, Knob(0.1, 10, step=0.01)] = 1.0,
    amount: Annotated[float, Knob(0, 5, step=0.01)] = 1.0,
) -> Image:
    """Sharpen pictures: take away ten times their blur, as much as `amount` says.

    Args:
        radius: of the blur, in pixels
        sigma: of the blur, in radii
        amount: how strongly
    """
    import numpy as np

    from safelight.families.touch import sharpening

    return Image(np.clip(_folded(image, sharpening(radius, sigma, amount)), 0, 1), image.info)


@op(group="image", version=1, exact=True)
def quantize_image(
    image: Image, *, colours: Annotated[int, Knob(1, 256)] = 256,
    dither: Literal["none", "floyd-steinberg", "bayer-2", "bayer-4", "bayer-8", "bayer-16"] = "none",
) -> Image:
    """Paint pictures in few colours of their own.

    Args:
        colours: how many for each picture
        dither: none; floyd-steinberg passes each pixel's error on; bayer puts dots between the colours in squares of so many pixels
    """
    import numpy as np
    from PIL import Image as Pil

    out = []
    for pixels in image.pixels:
        picture = Pil.fromarray((pixels * 255).astype(np.uint8))
        palette = picture.quantize(colors=colours)
        if dither.startswith("bayer"):
            picture = _dotted(picture, len(palette.getpalette() or ()) // 3, int(dither[6:]))
        by = Pil.Dither.FLOYDSTEINBERG if dither == "floyd-steinberg" else Pil.Dither.NONE
        out.append(np.asarray(picture.quantize(palette=palette, dither=by).convert("RGB"), dtype=np.float32) / 255)
    return Image(np.stack(out), image.info)


def _dotted(picture: Any, colours: int, order: int) -> Any:
    import numpy as np
    from PIL import Image as Pil

    high, wide = picture.height, picture.width
    dots = (SPREAD / colours * _bayer(int(math.log2(order))) + 0.5)[..., None]
    tiled = np.tile(dots, (math.ceil(high / order), math.ceil(wide / order), 1))[:high, :wide]
    moved = np.clip(np.asarray(picture).astype(np.float32) + tiled.astype(np.float32), 0, 255)
    return Pil.fromarray(moved.astype(np.uint8))


def _bayer(n: int) -> NDArray[np.float64]:
    """(2^n, 2^n), the thresholds of ordered dithering around 0: each quarter is the smaller pattern, moved by a quarter of its step."""
    import numpy as np

    if n == 0:
        return np.zeros((1, 1))
    cells = 4**n
    inner = cells * _bayer(n - 1)
    whole: NDArray[np.float64] = np.block([[inner - 1.5, inner + 0.5], [inner + 1.5, inner - 0.5]]) / cells
    return whole


@op(group="image", version=1, exact=True)
def invert_image(image: Image) -> Image:
    """Black for white, each colour for its opposite."""
    return Image(1.0 - image.pixels, image.info)


@op(group="image", version=1, exact=True)
def blend_images(
    image: Image, other: Image, *, amount: Annotated[float, Knob(0, 1, step=0.01)] = 0.5,
    how: Literal["normal", "multiply", "screen", "overlay", "soft_light", "difference"] = "normal",
) -> Image:
    """Blend two pictures.

    Args:
        image: the lower one
        other: the upper one; scaled and cut to the lower one's size
        amount: how much of the blend; 0 leaves the lower one as it is
        how: normal is the upper one itself
    """
    from safelight.sampling.resize import grid, scaled

    a, b = grid(image), grid(other)
    if a.shape[2:] != b.shape[2:]:
        b = scaled(b, a.shape[3], a.shape[2], method="bicubic", crop=True)
    mixed = (a * (1 - amount) + _blended(a, b, how) * amount).clamp(0, 1)
    return Image(mixed.movedim(1, -1).contiguous().numpy(), image.info if len(mixed) == len(image) else ())


def _blended(a: Tensor, b: Tensor, how: str) -> Tensor:
    import torch

    if how == "multiply":
        return a * b
    if how == "screen":
        return 1 - (1 - a) * (1 - b)
    if how == "overlay":
        return torch.where(a <= 0.5, 2 * a * b, 1 - 2 * (1 - a) * (1 - b))
    if how == "soft_light":
        bright = torch.where(a <= 0.25, ((16 * a - 12) * a + 4) * a, a.sqrt())
        return torch.where(b <= 0.5, a - (1 - 2 * b) * a * (1 - a), a + (2 * b - 1) * (bright - a))
    return a - b if how == "difference" else b


@op(group="image", version=1, exact=True)
def add_grain(
    image: Image, *, seed: Annotated[int, Knob(0, 2**64 - 1, draw=True)] = -1, strength: Annotated[float, Knob(0, 1, step=0.01)] = 0.5,
) -> Image:
    """Put noise on pictures.

    Args:
        seed: of the noise; -1 draws one and records it
        strength: its standard deviation
    """
    import numpy as np
    import torch

    noise = torch.randn(image.pixels.shape, generator=torch.Generator().manual_seed(seed)).numpy()
    return Image(np.clip(image.pixels + np.float32(strength) * noise, 0, 1), image.info)


@op(group="image", version=1, exact=True)
def morph_image(
    image: Image, *, how: Literal["erode", "dilate", "open", "close", "gradient", "top_hat", "bottom_hat"] = "erode",
    size: Annotated[int, Knob(1, 999)] = 3,
) -> Image:
    """Let dark or bright places of pictures grow, colour by colour, within squares; beyond the edges there is nothing.

    Args:
        how: erode: dark grows; dilate: bright grows; open and close: one, then the other; gradient: dilated less eroded; top_hat: what open
            takes away; bottom_hat: what close adds
        size: side of the squares, in pixels
    """
    import numpy as np
    from scipy import ndimage

    square = (1, size, size, 1)

    def eroded(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(ndimage.minimum_filter(x, square, mode="constant", cval=np.inf), dtype=np.float32)

    def dilated(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(ndimage.maximum_filter(x, square, mode="constant", cval=-np.inf), dtype=np.float32)

    x = image.pixels
    made: dict[str, Callable[[], NDArray[np.float32]]] = {
        "erode": lambda: eroded(x), "dilate": lambda: dilated(x), "open": lambda: dilated(eroded(x)), "close": lambda: eroded(dilated(x)),
        "gradient": lambda: dilated(x) - eroded(x), "top_hat": lambda: x - dilated(eroded(x)), "bottom_hat": lambda: eroded(dilated(x)) - x,
    }
    return Image(made[how](), image.info)
