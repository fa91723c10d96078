"""The contact sheet: a batch of pictures on one dark page, numbered like frames of a film, each with its prompt and seed."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image as Pil
from PIL import ImageDraw

from safelight.pictures import floats
from safelight.reporting.lettering import width, wrap, write
from safelight.values import Image

PAPER, FRAME, RULE, INK, DIM, LAMP = "#161311", "#0c0a09", "#3a312b", "#efe7dd", "#a3978a", "#ff6a3d"


@dataclass(frozen=True)
class Layout:
    """All lengths in pixels, derived from the side of one picture on the sheet."""

    cell: tuple[int, int]
    columns: int
    rows: int
    lines: int

    @property
    def text(self) -> int:
        """Size of the prompt's letters."""
        return max(13, round(self.cell[0] / 17))

    @property
    def gap(self) -> int:
        """Between pictures."""
        return max(12, self.cell[0] // 16)

    @property
    def edge(self) -> int:
        """Around the sheet."""
        return self.gap * 2

    @property
    def head(self) -> int:
        """The strip above each picture, with its number."""
        return round(self.text * 1.9)

    @property
    def leading(self) -> int:
        """From baseline to baseline."""
        return round(self.text * 1.42)

    @property
    def step(self) -> tuple[int, int]:
        """From one cell to the next, across and down."""
        return self.cell[0] + self.gap, self.head + self.cell[1] + self.leading * self.lines + round(self.text * 0.9) + self.gap


def label_of(info: Mapping[str, Any]) -> str:
    """What a picture's info says, for its label: the prompt."""
    return str(info.get("prompt", ""))


def note_of(info: Mapping[str, Any]) -> str:
    """The second, dimmer part of the label: the seed, and the step for samples of a training."""
    return "  ".join(f"{name} {info[name]}" for name in ("seed", "step") if name in info)


def cell_of(height: int, width: int) -> tuple[int, int]:
    """(width, height) of a picture on the sheet: small ones are enlarged by whole factors to 256 or more, large ones brought to 512."""
    longest = max(height, width)
    if longest <= 512:
        factor = max(1, -(-256 // longest))
        return width * factor, height * factor
    return round(width * 512 / longest), round(height * 512 / longest)


def contact_sheet(image: Image, *, columns: int = 4, labels: Sequence[str] = (), title: str = "", most: int = 3) -> Image:
    """All pictures of the batch, `columns` a row, as one picture (1, H, W, 3).

    labels: one a picture instead of the prompts in its info. most: lines of label; longer ones end in an ellipsis. ValueError when there
    is no picture, or the labels are neither none nor one each.
    """
    n = len(image)
    if not n:
        raise ValueError("sheet: image: got an empty batch, expected at least one picture")
    if labels and len(labels) != n:
        raise ValueError(f"sheet: labels: got {len(labels)} for {n} pictures, expected one each")
    columns = min(columns, n)
    cell = cell_of(*image.pixels.shape[1:3])
    plan = Layout(cell, columns, -(-n // columns), 0)
    infos = image.info or ({},) * n
    said = [wrap(t, plan.text, cell[0], most) if t else [] for t in labels or [label_of(i) for i in infos]]
    notes = [note_of(i) for i in infos]
    plan = Layout(cell, columns, plan.rows, max(len(t) + bool(note) for t, note in zip(said, notes, strict=True)))
    top = plan.edge + (round(plan.text * 2.6) if title else 0)
    page = Pil.new("RGB", (plan.edge * 2 + plan.step[0] * columns - plan.gap, top + plan.step[1] * plan.rows - plan.gap + plan.edge), PAPER)
    draw = ImageDraw.Draw(page)
    if title:
        line = wrap(title, round(plan.text * 1.35), page.width - 2 * plan.edge, 1)[0]
        write(draw, (plan.edge, plan.edge + plan.text * 1.3), line, round(plan.text * 1.35), INK)
    for i, pixels in enumerate(image.bytes8()):
        at = plan.edge + i % columns * plan.step[0], top + i // columns * plan.step[1]
        page.paste(_fitted(Pil.fromarray(pixels), cell), _frame(draw, plan, at, str(i + 1)))
        _label(draw, plan, at, said[i], notes[i])
    return Image(floats(np.asarray(page))[None], ({"prompt": title, "pictures": n} if title else {"pictures": n},))


def _fitted(picture: Pil.Image, cell: tuple[int, int]) -> Pil.Image:
    return picture.resize(cell, Pil.Resampling.BICUBIC if cell[0] >= picture.width else Pil.Resampling.LANCZOS)


def _frame(draw: ImageDraw.ImageDraw, plan: Layout, at: tuple[int, int], number: str) -> tuple[int, int]:
    """The frame's number and outline; returns where the picture goes."""
    x, y = at
    small = round(plan.text * 0.82)
    base = y + plan.head - round(plan.text * 0.6)
    write(draw, (x, base), number, small, LAMP)
    draw.line([(x + width(number, small) + plan.text * 0.6, base - small // 3), (x + plan.cell[0] - 1, base - small // 3)], fill=RULE)
    draw.rectangle((x - 1, y + plan.head - 1, x + plan.cell[0], y + plan.head + plan.cell[1]), outline=FRAME)
    return x, y + plan.head


def _label(draw: ImageDraw.ImageDraw, plan: Layout, at: tuple[int, int], lines: Sequence[str], note: str) -> None:
    y = at[1] + plan.head + plan.cell[1] + round(plan.text * 1.5)
    for line in lines:
        write(draw, (at[0], y), line, plan.text, INK)
        y += plan.leading
    if note:
        write(draw, (at[0], y), note, round(plan.text * 0.86), DIM)
