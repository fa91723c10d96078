"""A dataset at a glance as one picture: the contact sheet, with the histograms above it."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw

from safelight.pictures import Unreadable, floats, read
from safelight.reporting.lettering import width, wrap, write
from safelight.reporting.overview import Histogram, Overview
from safelight.reporting.sheet import DIM, FRAME, INK, LAMP, PAPER, RULE, contact_sheet
from safelight.values import Image, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

CELL = 256
COLUMNS = 6
MOST = 60
PANEL = 300
TEXT = 17


def sheet(story: Overview) -> Image:
    """(1, H, W, 3): title and facts, a panel a histogram, the most frequent tags, the first MOST pictures with their captions.

    ValueError when there is no picture.
    """
    rows = story.data.kept
    if not rows:
        raise ValueError(f"overview: data has no picture left ({len(story.data.rows)} were dropped); expected at least one")
    columns = min(COLUMNS, max(4, len(rows)))
    cells = np.stack([_cell(r) for r in rows[:MOST]] + [np.full((CELL, CELL, 3), 12, np.uint8)] * (columns - len(rows)))
    labels = [r.caption or "no caption" for r in rows[:MOST]] + [""] * (columns - len(rows))
    below = Pil.fromarray(contact_sheet(Image(floats(cells)), columns=columns, labels=labels, most=3).bytes8()[0])
    shown = [h for h in story.histograms if h.bars]
    tags = wrap(", ".join(f"{t} {n}" for t, n in story.tags[:40]), TEXT, below.width - 64, 2) if story.tags else []
    top = 120 + (PANEL if shown else 0) + 28 * len(tags)
    page = Pil.new("RGB", (below.width, top + below.height), PAPER)
    draw = ImageDraw.Draw(page)
    write(draw, (32, 66), wrap(story.title, 36, page.width - 64, 1)[0], 36, INK)
    write(draw, (32, 98), _said(story), TEXT, DIM)
    room = (page.width - 64 + 40) // max(1, len(shown))
    for i, histogram in enumerate(shown):
        _panel(draw, (32 + i * room, 130, room - 40, PANEL - 60), histogram)
    for i, line in enumerate(tags):
        write(draw, (32, top - 28 * (len(tags) - i) + 12), line, TEXT, DIM)
    page.paste(below, (0, top))
    return Image(floats(np.asarray(page))[None], ({"prompt": story.title, "pictures": len(rows)},))


def _said(story: Overview) -> str:
    rows = story.data.kept
    said = [f"{len(rows)} pictures", f"{sum(bool(r.caption) for r in rows)} captioned"]
    said += [f"{len(story.data.rows) - len(rows)} left out"] if len(story.data.rows) > len(rows) else []
    return ",  ".join([*said, *([f"the first {MOST} shown"] if len(rows) > MOST else [])])


def _cell(row: Row) -> NDArray[np.uint8]:
    """The whole picture in the middle of a dark square; an empty one when it cannot be read."""
    page = Pil.new("RGB", (CELL, CELL), FRAME)
    try:
        picture = Pil.fromarray(read(row.picture.path, least=CELL))
    except Unreadable:
        return np.asarray(page)
    scale = CELL / max(picture.size)
    picture = picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))), Pil.Resampling.LANCZOS)
    page.paste(picture, ((CELL - picture.width) // 2, (CELL - picture.height) // 2))
    return np.asarray(page)


def _panel(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], shown: Histogram) -> None:
    """A histogram in (left, top, width, height)."""
    left, top, across, down = box
    write(draw, (left, top + 22), wrap(shown.title, TEXT, across, 1)[0], TEXT, INK)
    base, step, most = top + down - 12, min(90.0, across / len(shown.bars)), max(n for _, n in shown.bars)
    draw.line([(left, base), (left + across, base)], fill=RULE)
    every = _every([label for label, _ in shown.bars], step)
    for i, (label, n) in enumerate(shown.bars):
        x = left + i * step
        high = round((down - 80) * n / most)
        if n:
            draw.rectangle((x + 1, base - max(2, high), x + max(step - 3, 2), base - 1), fill=LAMP)
            _middle(draw, x + step / 2, base - high - 6, str(n), step)
        if i % every == 0:
            _middle(draw, x + step / 2, base + 20, label, step * every)


def _every(labels: Sequence[str], step: float) -> int:
    """Which labels have room: every, every second, ..."""
    widest = max(width(label, 13) for label in labels) + 6
    return max(1, -(-int(widest) // max(1, int(step))))


def _middle(draw: ImageDraw.ImageDraw, x: float, y: float, text: str, room: float) -> None:
    wide = width(text, 13)
    if wide <= room + 4:
        write(draw, (x - wide / 2, y), text, 13, DIM)
