"""Pictures: from files, and a choice of them."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from safelight.op import Knob, op
from safelight.values import Image, Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

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


def load_pixels(op_name: str, path: Path) -> NDArray[np.float32]:
    """(B, H, W, 3) float32 of the picture or the folder's pictures. ValueError when one cannot be read or the sizes differ."""
    import numpy as np

    from safelight.pictures import Unreadable, floats, read

    files = _files(path)
    if not files or not all(p.is_file() for p in files):
        raise ValueError(f"{op_name}: path: got {path}, expected a picture file or a folder with pictures")
    pixels = []
    for file in files:
        try:
            pixels.append(floats(read(file)))
        except Unreadable as e:
            raise ValueError(f"{op_name}: path: {file}: {e}") from e
    sizes = {p.shape for p in pixels}
    if len(sizes) > 1:
        shown = ", ".join(sorted(f"{w} x {h}" for h, w, _ in sizes))
        raise ValueError(f"{op_name}: path: got pictures of {shown} pixels, expected one size; resize them, or load them one by one")
    return np.stack(pixels)


@op(group="image", version=1, loads=True, fingerprint=_content)
def load_image(path: Path) -> Image:
    """Read a picture, or all pictures of a folder by name, as one batch.

    Transparency is laid over white, EXIF orientation applied. What a picture says of its prompt and seed comes along.

    Args:
        path: a picture file, or a folder of pictures of one size
    """
    from safelight import embed, parameters

    pixels = load_pixels("load_image", path)
    info = []
    for file in _files(path):
        said = parameters.read(embed.texts_of(file).get("parameters", ""))
        info.append({"file": file.name} | {k.lower(): v for k, v in said.items() if v and k in ("prompt", "negative", "Seed")})
    return Image(pixels, tuple(info))


@op(group="image", version=1, loads=True, fingerprint=_content)
def load_mask(path: Path, *, invert: bool = False) -> Mask:
    """Read a mask, or all masks of a folder, as one batch: white is where something happens.

    Args:
        path: a grey picture, or a folder of them
        invert: black is where something happens
    """
    import numpy as np

    white = load_pixels("load_mask", path).mean(axis=-1, dtype=np.float32)
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
