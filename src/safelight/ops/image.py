"""Pictures: from files, a choice of them, and what changes where their pixels are. Colours change in `retouch`."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.events import Progress
from safelight.op import Knob, Work, op
from safelight.values import Image, Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SIDE = Knob(0, 16384)
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def _by_number(path: Path) -> list[tuple[int, str]]:
    """2.png before 10.png."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def _files(path: Path) -> list[Path]:
    path = path.expanduser()
    if path.is_dir():
        return sorted((p for p in path.iterdir() if p.suffix.lower() in SUFFIXES), key=_by_number)
    return [path]


def _content(given: Mapping[str, Any]) -> str:
    from safelight.values import Blob, digest

    return digest(*[Blob.of(p).sha256 for p in _files(given["path"]) if p.is_file()])


def _frames(op_name: str, path: Path, *, raw: bool) -> list[tuple[Path, NDArray[np.float32], bool]]:
    """(file, RGBA (H, W, 4), whether it has transparency) of each picture or frame. ValueError for an unreadable one or other sizes."""
    import numpy as np

    from safelight.pictures import Unreadable, floats, layers, read

    files = _files(path)
    if not files or not all(p.is_file() for p in files):
        raise ValueError(f"{op_name}: path: got {path}, expected a picture file or a folder with pictures")
    out = []
    for file in files:
        try:
            frames, clear = layers(file) if raw else ([np.dstack([p := read(file), np.full_like(p[..., :1], 255)])], False)
        except Unreadable as e:
            raise ValueError(f"{op_name}: path: {file}: {e}") from e
        out += [(file, floats(frame), clear) for frame in frames]
    sizes = {p.shape for _, p, _ in out}
    if len(sizes) > 1:
        shown = ", ".join(sorted(f"{w} x {h}" for h, w, _ in sizes))
        raise ValueError(f"{op_name}: path: got pictures of {shown} pixels, expected one size; resize them, or load them one by one")
    return out


@op(group="image", version=1, loads=True, fingerprint=_content)
def load_image(path: Path, *, raw: bool = False) -> Image:
    """Read a picture, or all pictures of a folder by name, as one batch.

    Transparency is laid over white, EXIF orientation applied. What a picture says of its prompt and seed comes along.

    Args:
        path: a picture file, or a folder of pictures of one size
        raw: drop transparency and keep the colours under it, and read every frame of an animation
    """
    import numpy as np

    from safelight import embed, parameters

    frames = _frames("load_image", path, raw=raw)
    info = []
    for file, _, _ in frames:
        said = parameters.read(embed.texts_of(file).get("parameters", ""))
        info.append({"file": file.name} | {k.lower(): v for k, v in said.items() if v and k in ("prompt", "negative", "Seed")})
    return Image(np.stack([p[..., :3] for _, p, _ in frames]), tuple(info))


@op(group="image", version=1, loads=True, fingerprint=_content)
def load_mask(
    path: Path, *, channel: Literal["grey", "transparency", "red", "green", "blue"] = "grey", invert: bool = False,
) -> Mask:
    """Read a mask, or all masks of a folder, as one batch: white is where something happens.

    Args:
        path: a grey picture, or a folder of them
        channel: what counts as white: the mean of the colours, one of them, or where nothing is; a picture without transparency then gives
            an empty mask of 64 x 64
        invert: black is where something happens
    """
    import numpy as np

    frames = _frames("load_mask", path, raw=channel != "grey")
    if channel == "grey":
        white = np.stack([p[..., :3].mean(axis=-1, dtype=np.float32) for _, p, _ in frames])
    elif channel == "transparency":
        white = np.stack([1 - p[..., 3] if clear else np.zeros((64, 64), np.float32) for _, p, clear in frames])
    else:
        white = np.stack([p[..., ("red", "green", "blue").index(channel)] for _, p, _ in frames])
    return Mask(1 - white if invert else white)


@op(group="image", version=1, exact=True)
def pick(image: Image, indices: Sequence[Annotated[int, Knob(0)]]) -> Image:
    """Choose pictures of a batch, in the order given.

    Args:
        image: the batch
        indices: places in the batch, counted from 0
    """
    beyond = [i for i in indices if i >= len(image)]
    if not indices or beyond:
        got = f"{beyond[0]}" if beyond else "no index"
        raise ValueError(f"pick: indices: got {got}, expected places from 0 to {len(image) - 1}")
    chosen = list(indices)
    return Image(image.pixels[chosen], tuple(image.info[i] for i in chosen) if image.info else ())


def _image(x: Tensor, like: Image | None = None) -> Image:
    """The picture of a (B, 3, H, W) tensor, with what `like` says of itself where the batch is the same."""
    pixels = x.movedim(1, -1).contiguous().numpy()
    return Image(pixels, like.info if like is not None and len(like) == len(pixels) else ())


@op(group="image", version=1, exact=True)
def scale_image(
    image: Image, *,
    width: Annotated[int, SIDE] = 0,
    height: Annotated[int, SIDE] = 0,
    by: Annotated[float, Knob(0.01, 8, step=0.01)] = 1.0,
    longest: Annotated[int, SIDE] = 0,
    megapixels: Annotated[float, Knob(0, 64, step=0.01)] = 0.0,
    method: Literal["nearest-exact", "bilinear", "area", "bicubic", "lanczos"] = "lanczos",
    crop: bool = False,
) -> Image:
    """Scale pictures: to a size, or one side in proportion, or by a factor.

    Args:
        width: in pixels; 0 with a height: in proportion
        height: in pixels; 0 with a width: in proportion
        by: how many times larger, where nothing else is given
        longest: instead, pixels of the longer side
        megapixels: instead, so many times 1024 x 1024 pixels
        method: area is best for making smaller; lanczos is sharp, and rounds to 8 bits
        crop: cut the middle to the new shape; otherwise it is stretched
    """
    from safelight.sampling.resize import grid, scaled, shape_of

    high, wide = image.pixels.shape[1:3]
    if longest:
        size = (longest, round(high / wide * longest)) if wide > high else (round(wide / high * longest), longest)
    elif megapixels:
        by = (megapixels * 1024 * 1024 / (wide * high)) ** 0.5
        size = round(wide * by), round(high * by)
    else:
        size = shape_of((high, wide), width=width, height=height, by=by)
    if not (width or height or longest or megapixels) and by == 1:
        return image
    return _image(scaled(grid(image), *size, method=method, crop=crop), image)


def _upscaler(given: Mapping[str, Any]) -> str:
    from safelight import folders, index

    return index.sha256(folders.place("upscale_image", "upscale_models", given["network"], whole=False))


@op(group="image", version=1, fingerprint=_upscaler)
def upscale_image(
    image: Image, *, network: Path, tile: Annotated[int, Knob(64, 8192, step=32)] = 512, overlap: Annotated[int, Knob(0, 512, step=8)] = 32,
) -> Work[Image]:
    """Make pictures larger by a network that was trained for it: ESRGAN, Real-ESRGAN.

    Args:
        network: its file, or its name in models/upscale_models: .safetensors, or .pth and .pt, of which only the tensors are taken
        tile: pixels a side that it sees at once; less saves memory
        overlap: pixels that neighbouring tiles share, at most half a tile
    """
    import torch

    from safelight import folders, runtime
    from safelight.computing import chosen
    from safelight.families.upscaler import Upscaler
    from safelight.sampling.resize import grid
    from safelight.weights.pickles import convert

    file = yield from convert(folders.place("upscale_image", "upscale_models", network, whole=False))
    device, dtype = torch.device(chosen().device or runtime.choose_device()), getattr(torch, chosen().dtype or "float32")
    made, out = Upscaler(file, device=device, dtype=dtype), []
    for i, picture in enumerate(grid(image).split(1), 1):
        out.append(made(picture, tile=tile, overlap=min(overlap, tile // 2)))
        yield Progress(step=i, total=len(image), what="pictures")
    return _image(torch.cat(out), image)


@op(group="image", version=1, exact=True)
def crop_image(
    image: Image, *, width: Annotated[int, Knob(1, 16384)] = 512, height: Annotated[int, Knob(1, 16384)] = 512,
    x: Annotated[int, SIDE] = 0, y: Annotated[int, SIDE] = 0,
) -> Image:
    """Cut a rectangle out of pictures, as much of it as there is.

    Args:
        width: in pixels
        height: in pixels
        x: its left edge, at most the picture's last column
        y: its upper edge, at most the picture's last row
    """
    left, top = min(x, image.pixels.shape[2] - 1), min(y, image.pixels.shape[1] - 1)
    return Image(image.pixels[:, top : top + height, left : left + width].copy(), image.info)


@op(group="image", version=1, exact=True)
def turn_image(
    image: Image, *, degrees: Literal[0, 90, 180, 270] = 0, mirror: Literal["no", "upside-down", "left-right"] = "no",
) -> Image:
    """Turn pictures clockwise, or mirror them.

    Args:
        degrees: how far to turn
        mirror: which way to mirror, after turning
    """
    from safelight.sampling.resize import grid, turned

    return _image(turned(grid(image), degrees, mirror), image)


@op(group="image", version=1, exact=True)
def pad_image(
    image: Image, *, left: Annotated[int, SIDE] = 0, top: Annotated[int, SIDE] = 0, right: Annotated[int, SIDE] = 0,
    bottom: Annotated[int, SIDE] = 0,
) -> Image:
    """Put grey around pictures, for drawing on beyond their edges; `pad_mask` makes the mask for it.

    Args:
        left: pixels there
        top: pixels there
        right: pixels there
        bottom: pixels there
    """
    import numpy as np

    pixels = np.pad(image.pixels, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=np.float32(0.5))
    return Image(pixels, image.info)


@op(group="image", version=1)
def empty_image(
    *, width: Annotated[int, Knob(1, 16384)] = 512, height: Annotated[int, Knob(1, 16384)] = 512, count: Annotated[int, Knob(1, 4096)] = 1,
    colour: Annotated[int, Knob(0, 0xFFFFFF)] = 0,
) -> Image:
    """Pictures of one colour.

    Args:
        width: in pixels
        height: in pixels
        count: how many
        colour: red, green and blue as one number: 65536 red + 256 green + blue, each 0 to 255
    """
    import numpy as np

    row = np.array([(colour >> shift & 0xFF) / 0xFF for shift in (16, 8, 0)], np.float32)
    return Image(np.broadcast_to(row, (count, height, width, 3)).copy())


@op(group="image", version=1, exact=True)
def join_images(images: Sequence[Image]) -> Image:
    """Put pictures into one batch.

    Args:
        images: the others are scaled to the first one's size and cut to its shape
    """
    import numpy as np

    from safelight.sampling.resize import grid, scaled

    if not images:
        raise ValueError("join_images: images: got none, expected at least one")
    high, wide = images[0].pixels.shape[1:3]
    same = [i if i.pixels.shape[1:3] == (high, wide) else _image(scaled(grid(i), wide, high, crop=True), i) for i in images]
    info = tuple(row for i in same for row in (i.info or ({},) * len(i))) if any(i.info for i in same) else ()
    return Image(np.concatenate([i.pixels for i in same]), info)


@op(group="image", version=1, exact=True)
def paste_image(
    image: Image, over: Image, *,
    x: Annotated[int, SIDE] = 0,
    y: Annotated[int, SIDE] = 0,
    mask: Mask | None = None,
    fit: bool = False,
) -> Image:
    """Lay a picture on another.

    Args:
        image: what lies below
        over: what is laid on it
        x: where its left edge goes
        y: where its upper edge goes
        mask: how much of each place of `over`; scaled to it
        fit: scale `over` to the lower picture first
    """
    from safelight.sampling.resize import grid, pasted, plane, repeated, scaled

    under, top = grid(image), grid(over)
    if fit:
        top = scaled(top, under.shape[-1], under.shape[-2])
    weight = None
    if mask is not None:
        weight = repeated(scaled(plane(mask), top.shape[-1], top.shape[-2]), len(under))
    return _image(pasted(under, top, left=x, top=y, weight=weight), image)
