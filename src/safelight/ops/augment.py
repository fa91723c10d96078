"""Pictures changed into more pictures, and what training will cut them to."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

from safelight.op import Knob, Work, op
from safelight.values import Blob, Dataset


def _keep(content: bytes, suffix: str) -> Blob:
    from safelight.store import current

    return current().blob(content, suffix)


@op(group="data", exact=True)
def augment(
    data: Dataset, *,
    copies: Annotated[int, Knob(1, 100)] = 1,
    flip: Literal["no", "skip", "swap"] = "no",
    rotate: Annotated[float, Knob(0.0, 45.0, step=1.0)] = 0.0,
    scale: Annotated[float, Knob(0.0, 0.9, step=0.05)] = 0.0,
    crop: Annotated[float, Knob(0.0, 0.5, step=0.05)] = 0.0,
    colour: Annotated[float, Knob(0.0, 0.9, step=0.05)] = 0.0,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Dataset]:
    """Add changed copies of every picture as rows of their own; the originals stay.

    Mirroring is off unless asked for, and is never done where the caption speaks of writing, dials, maps or flags: no caption would be true
    of that. The others have each a true caption. What is drawn depends on the seed and the picture alone.

    Args:
        copies: how many a picture
        flip: mirror half of the copies (all, when nothing else is asked for): `skip` leaves out pictures whose caption says left or right
            (左, 右), `swap` exchanges these words in the caption
        rotate: at most so many degrees to either side; the largest upright part of the same shape is kept
        scale: the size changes by at most this share
        crop: at most this share of each side is cut away, anywhere
        colour: brightness, contrast and saturation change by at most this share; hues stay, because captions name them
        seed: of all that is drawn; -1 draws one
    """
    from safelight.data.augment import Ways
    from safelight.data.augment import augment as work

    return (yield from work(data, Ways(copies, flip, rotate, scale, crop, colour, seed), _keep))


@op(group="data", exact=True)
def fill_background(data: Dataset, *, colours: Sequence[str] = ("white",), say: bool = False) -> Work[Dataset]:
    """Lay transparent pictures over a colour. Without it they count as lying on white; the files stay as they are.

    Args:
        colours: names such as white or #808080; with several, a picture's own content decides which one it gets
        say: add `white background` to captions that mention none
    """
    from safelight.data.augment import fill

    return (yield from fill(data, tuple(colours), _keep, say=say))


@op(group="data", exact=True)
def buckets(
    data: Dataset, *,
    size: Annotated[int, Knob(64, 4096)] = 512,
    least: Annotated[int, Knob(8, 4096)] = 256,
    most: Annotated[int, Knob(64, 8192)] = 1024,
    step: Annotated[int, Knob(8, 256)] = 64,
    upscale: bool = True,
) -> Work[Dataset]:
    """Say which aspect bucket each picture goes into, how much of it is cut off, and how many pictures each bucket has.

    The table is the one that sd-scripts makes from the same numbers. Nothing is cut here: the rows say `bucket`, `cut` and `factor`.

    Args:
        size: a bucket has at most the area of a square of this side, in pixels
        least: shortest side of a bucket
        most: longest side of a bucket
        step: sides are multiples of this
        upscale: enlarge pictures that are smaller than their bucket; otherwise they get a smaller bucket of their own
    """
    from safelight.data.buckets import place, preview, table
    from safelight.events import Note

    sizes = table(size, least=least, most=most, step=step)
    rows = []
    for row in data.rows:
        placed = None if row.dropped else place(row.width, row.height, sizes, upscale=upscale, step=step)
        rows.append(row if placed is None else dataclasses.replace(row, info={
            **row.info, "bucket": list(placed.bucket), "cut": round(placed.cut, 4), "factor": round(placed.factor, 4)}))
    found = preview(data.kept, sizes, upscale=upscale, step=step)
    said = ", ".join(f"{f.bucket[0]}x{f.bucket[1]}: {f.count} ({f.cut:.0%} cut off)" for f in found)
    yield Note(text=f"buckets: {said or 'no picture'}")
    return dataclasses.replace(data, rows=tuple(rows))
