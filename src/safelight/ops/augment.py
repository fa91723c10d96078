"""Pictures changed into more pictures."""
from __future__ import annotations

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
