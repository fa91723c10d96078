"""Pictures with transparency put together, side by side and in frames."""
from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from safelight.op import Knob, op
from safelight.values import Image, Mask

if TYPE_CHECKING:
    from torch import Tensor

Mode = Literal[
    "ADD", "CLEAR", "DARKEN", "DST", "DST_ATOP", "DST_IN", "DST_OUT", "DST_OVER", "LIGHTEN", "MULTIPLY", "OVERLAY", "SCREEN", "SRC",
    "SRC_ATOP", "SRC_IN", "SRC_OUT", "SRC_OVER", "XOR",
]
COLOURS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0), "red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}


def _layers(image: Image, mask: Mask, over: Image, over_mask: Mask) -> tuple[Tensor, ...]:
    """Colours times how solid they are, and that, of both, in the lower picture's size."""
    from safelight.sampling.resize import grid, plane, scaled

    n = min(len(image), len(over), len(mask.values), len(over_mask.values))
    high, wide = image.pixels.shape[1:3]

    def fitted(x: Tensor) -> Tensor:
        return x[:n] if x.shape[2:] == (high, wide) else scaled(x[:n], wide, high, method="bicubic", crop=True)

    below, above = 1 - fitted(plane(mask)), 1 - fitted(plane(over_mask))
    return grid(image)[:n] * below, below, fitted(grid(over)) * above, above


def _composed(layers: tuple[Tensor, ...], how: str) -> tuple[Tensor, Tensor]:
    """Colours (B, 3, H, W) and how solid they are (B, 1, H, W), by Porter and Duff (1984): each layer times a share of what is left."""
    import torch

    d, da, s, sa = layers
    shares = {
        "CLEAR": (0 * da, 0 * sa), "SRC": (1 + 0 * da, 0 * sa), "DST": (0 * da, 1 + 0 * sa), "SRC_OVER": (1 + 0 * da, 1 - sa),
        "DST_OVER": (1 - da, 1 + 0 * sa), "SRC_IN": (da, 0 * sa), "DST_IN": (0 * da, sa), "SRC_OUT": (1 - da, 0 * sa),
        "DST_OUT": (0 * da, 1 - sa), "SRC_ATOP": (da, 1 - sa), "DST_ATOP": (1 - da, sa), "XOR": (1 - da, 1 - sa),
        "ADD": (1 + 0 * da, 1 + 0 * sa),
    }
    if how in shares:
        mine, other = shares[how]
        colours, solid = (mine * s + other * d).clamp(0, 1), (mine * sa + other * da).clamp(0, 1)
    elif how == "MULTIPLY":
        colours, solid = s * d, sa * da
    else:
        alone = (1 - da) * s + (1 - sa) * d
        solid = sa + da - sa * da
        colours = {
            "DARKEN": lambda: alone + torch.minimum(s, d), "LIGHTEN": lambda: alone + torch.maximum(s, d), "SCREEN": lambda: s + d - s * d,
            # The last two factors are ComfyUI's; elsewhere each has its own layer.
            "OVERLAY": lambda: torch.where(2 * d < da, 2 * s * d, sa * da - 2 * (da - s) * (sa - d)),
        }[how]()
    return torch.where(solid > 1e-5, colours / solid, 0.0).clamp(0, 1), solid


@op(group="image", version=1, exact=True)
def compose_images(image: Image, over: Image, *, mask: Mask, over_mask: Mask, how: Mode = "SRC_OVER") -> Image:
    """Put two pictures with transparency together; `compose_masks` makes what is clear of the result.

    Args:
        image: the lower one (DST)
        over: the upper one (SRC), scaled and cut to the lower one's size
        mask: 1 where the lower one is clear
        over_mask: 1 where the upper one is clear
        how: by Porter and Duff's names
    """
    colours, _ = _composed(_layers(image, mask, over, over_mask), how)
    return Image(colours.movedim(1, -1).contiguous().numpy(), image.info if len(colours) == len(image) else ())


@op(group="mask", version=1)
def compose_masks(image: Image, over: Image, *, mask: Mask, over_mask: Mask, how: Mode = "SRC_OVER") -> Mask:
    """Where the result of `compose_images` is clear.

    Args:
        image: the lower one (DST)
        over: the upper one (SRC)
        mask: 1 where the lower one is clear
        over_mask: 1 where the upper one is clear
        how: by Porter and Duff's names
    """
    _, solid = _composed(_layers(image, mask, over, over_mask), how)
    return Mask((1 - solid)[:, 0].contiguous().numpy())


@op(group="image", version=1, exact=True)
def stitch_images(
    image: Image, other: Image, *, side: Literal["right", "down", "left", "up"] = "right", fit: bool = True,
    gap: Annotated[int, Knob(0, 1024, step=2)] = 0, colour: Literal["white", "black", "red", "green", "blue"] = "white",
) -> Image:
    """Put two pictures beside each other; of a shorter batch the last one is taken again.

    Args:
        image: the first one
        other: the second one
        side: on which side of the first one it goes
        fit: scale it to the first one's height, or width; otherwise the smaller one is framed
        gap: pixels between them, rounded up to an even number
        colour: of the gap, and of the frame if that is white or black
    """
    import numpy as np

    from safelight.sampling.resize import grid, scaled

    across = side in ("right", "left")
    n, two = max(len(image), len(other)), [image.pixels, other.pixels]
    if fit:
        (high, wide), (h, w) = two[0].shape[1:3], two[1].shape[1:3]
        size = (int(high * (w / h)), high) if across else (wide, int(wide / (w / h)))
        two[1] = scaled(grid(other), *size, method="lanczos").movedim(1, -1).numpy()
    two = [np.concatenate([p, *[p[-1:]] * (n - len(p))]) for p in two]
    axis, longest = (1 if across else 2), max(p.shape[1 if across else 2] for p in two)
    grey = np.float32(colour == "white")
    framed = []
    for p in two:
        short = longest - p.shape[axis]
        edges = [(0, 0)] * 4
        edges[axis] = (short // 2, short - short // 2)
        framed.append(np.pad(p, edges, constant_values=grey))
    if gap:
        shape = (n, longest, gap + gap % 2, 3) if across else (n, gap + gap % 2, longest, 3)
        framed.insert(1, np.broadcast_to(np.array(COLOURS[colour], np.float32), shape))
    return Image(np.concatenate(framed if side in ("right", "down") else framed[::-1], axis=2 if across else 1))


@op(group="image", version=1, exact=True)
def frame_image(
    image: Image, *, width: Annotated[int, Knob(1, 16384)] = 512, height: Annotated[int, Knob(1, 16384)] = 512,
    colour: Literal["white", "black"] = "white",
    method: Literal["area", "bicubic", "nearest-exact", "bilinear", "lanczos"] = "area",
) -> Image:
    """Scale pictures, in proportion, into a frame of one size.

    Args:
        width: in pixels
        height: in pixels
        colour: of what is left free
        method: as for scale_image
    """
    import numpy as np

    from safelight.sampling.resize import grid, scaled

    high, wide = image.pixels.shape[1:3]
    by = min(width / wide, height / high)
    small = scaled(grid(image), int(wide * by), int(high * by), method=method).movedim(1, -1).numpy()
    out = np.full((len(image), height, width, 3), colour == "white", np.float32)
    top, left = (height - small.shape[1]) // 2, (width - small.shape[2]) // 2
    out[:, top : top + small.shape[1], left : left + small.shape[2]] = small
    return Image(out, image.info)
