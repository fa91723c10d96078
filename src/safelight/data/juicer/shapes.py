"""Filters by a picture's size and length, and the blur: what Pillow and the header alone can do."""
from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from safelight.data.juicer.pictures import Picture
from safelight.data.juicer.registry import MAX, Param, Pictures, Sample, Settings, mapper, picture_filter

UNITS = {"": 0, **{f"{letter}{unit}": 10 * (i + 1) for i, letter in enumerate("kmgtpezy") for unit in ("b", "ib")}}


@picture_filter(
    {"image_width": ("min_width", "max_width"), "image_height": ("min_height", "max_height")}, needs="header",
    min_width=1, max_width=MAX, min_height=1, max_height=MAX,
)
def image_shape_filter(picture: Picture, _: Settings) -> tuple[int, int]:
    """Width and height in pixels, after EXIF orientation."""
    return picture.size


@picture_filter({"aspect_ratios": ("min_ratio", "max_ratio")}, needs="header", min_ratio=0.333, max_ratio=3.0)
def image_aspect_ratio_filter(picture: Picture, _: Settings) -> tuple[float]:
    """Width over height."""
    width, height = picture.size
    return (width / height,)


@picture_filter({"image_sizes": ("min_size", "max_size")}, needs="stat", min_size=Param("0", (str,)), max_size=Param("1TB", (str,)))
def image_size_filter(picture: Picture, _: Settings) -> tuple[int]:
    """The file's length in bytes."""
    return (picture.stat.st_size,)


@cache
def parse_bytes(text: str) -> int:
    """`10kb`, `1 MiB`, `1TB` in bytes; the units are powers of 1024. ValueError for others."""
    digits, unit = "".join(filter(str.isdigit, text)), "".join(filter(str.isalpha, text)).lower()
    if not digits or unit not in UNITS:
        raise ValueError(f"image_size_filter: got {text!r}, expected a whole number and a unit, as in 10kb, 5MB or 1TiB")
    return int(digits) << UNITS[unit]


@mapper(needs="pixels", p=0.2, blur_type=("gaussian", "mean", "box"), radius=Param(2.0, (float,), low=0.0), save_dir=Param(None, (str,)))
def image_blur_mapper(sample: Sample, pictures: Pictures, s: Settings) -> None:
    """Replace each picture, with probability p, by a blurred copy in save_dir or in `__dj__produced_data__/image_blur_mapper` beside it.

    The draw depends on the row and the picture, so that a second run makes the same copies; the originals stay.
    """
    import random

    from PIL import ImageFilter

    blur: dict[str, ImageFilter.Filter | type[ImageFilter.Filter]] = {
        "mean": ImageFilter.BLUR, "box": ImageFilter.BoxBlur(s["radius"]), "gaussian": ImageFilter.GaussianBlur(s["radius"])}
    made: dict[str, str] = {}
    for picture in pictures:
        path = Path(picture.path)
        if random.Random(f"{sample.number} {picture.path}").random() < s["p"] and picture.path not in made:
            folder = Path(s["save_dir"]).absolute() if s["save_dir"] else path.parent / "__dj__produced_data__" / "image_blur_mapper"
            folder.mkdir(parents=True, exist_ok=True)
            copy = folder / f"{path.stem}__dj_hash_#{s['blur_type']}-{s['radius']:g}#{path.suffix}"
            part = copy.with_name(f".{os.getpid()}.{copy.name}")  # another row, perhaps another process, may look at the copy
            picture.pixels.filter(blur[s["blur_type"]]).save(part)
            os.replace(part, copy)
            made[picture.path] = str(copy)
    sample.row.setdefault("__dj__source_file__", [p.path for p in pictures])
    if pictures:
        sample.row[s["image_key"]] = [made.get(p.path, p.path) for p in pictures]
