"""Pictures: from files, and a choice of them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from safelight.op import Knob, op
from safelight.values import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def _files(path: Path) -> list[Path]:
    path = path.expanduser()
    if path.is_dir():
        return sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    return [path]


def _content(given: Mapping[str, Any]) -> str:
    from safelight.values import Blob, digest

    return digest(*[Blob.of(p).sha256 for p in _files(given["path"]) if p.is_file()])


@op(group="image", version=1, loads=True, fingerprint=_content)
def load_image(path: Path) -> Image:
    """Read a picture, or all pictures of a folder by name, as one batch.

    Transparency is laid over white, EXIF orientation applied. What a picture says of its prompt and seed comes along.

    Args:
        path: a picture file, or a folder of pictures of one size
    """
    import numpy as np

    from safelight import embed, parameters
    from safelight.pictures import Unreadable, floats, read

    files = _files(path)
    if not files or not all(p.is_file() for p in files):
        raise ValueError(f"load_image: path: got {path}, expected a picture file or a folder with pictures")
    pixels, info = [], []
    for file in files:
        try:
            pixels.append(floats(read(file)))
        except Unreadable as e:
            raise ValueError(f"load_image: path: {file}: {e}") from e
        said = parameters.read(embed.texts_of(file).get("parameters", ""))
        info.append({"file": file.name} | {k.lower(): v for k, v in said.items() if v and k in ("prompt", "negative", "Seed")})
    sizes = {p.shape for p in pixels}
    if len(sizes) > 1:
        shown = ", ".join(sorted(f"{w} x {h}" for h, w, _ in sizes))
        raise ValueError(f"load_image: path: got pictures of {shown} pixels, expected one size; resize them, or load them one by one")
    return Image(np.stack(pixels), tuple(info))


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
