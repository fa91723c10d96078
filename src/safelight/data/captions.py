"""Layers of captions. They are never overwritten: the newest is in use, the older ones stay readable, and any may be taken up again.

A layer says who wrote it: a person (`human`), what came with the picture (`file`, `metadata`, `folder`, ...), or a captioner by its name.
What an op changed of a layer is a new one, `file+reword`, that counts as the same kind.
"""
from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from pathlib import Path, PurePosixPath

from safelight.data.captioners import CAPTIONERS, Asked
from safelight.data.captioners.file import FROM_SOURCE
from safelight.data.metadata import read_table
from safelight.events import Event, Note
from safelight.values import Caption, Dataset, Row


def with_trigger(text: str, trigger: str, place: str) -> str:
    """`a fox` and `in ink style` -> `a fox, in ink style` (place `end`) or `in ink style, a fox` (`start`); once, however often applied."""
    if not trigger or re.search(rf"(?<![A-Za-z0-9_]){re.escape(trigger)}(?![A-Za-z0-9_])", text):  # Chinese has no blanks between words
        return text
    return ", ".join(part for part in ((text, trigger) if place == "end" else (trigger, text)) if part)


def caption(data: Dataset, by: str, asked: Asked, *, trigger: str = "", place: str = "end") -> Generator[Event, None, Dataset]:
    """One more caption layer on every kept row, by the captioner of that name, with the trigger words at `start` or `end`.

    A row about which the captioner says nothing, and that gets no trigger, keeps its layers; how many is said in a Note.
    """
    if by not in CAPTIONERS:
        raise ValueError(f"caption: no captioner {by!r}; expected one of {', '.join(sorted(CAPTIONERS))}")
    texts = yield from CAPTIONERS[by](data.kept, asked)
    if len(texts) != len(data.kept):
        raise ValueError(f"caption: {by} gave {len(texts)} captions for {len(data.kept)} pictures")
    said = iter(texts)
    rows = tuple(row if row.dropped else _layer(row, by, with_trigger(next(said), trigger, place)) for row in data.rows)
    out = dataclasses.replace(data, rows=rows)
    silent = sum(not text for text in texts)
    if silent:
        have = "only the trigger" if trigger else f"nothing new from {by!r}"
        yield Note(text=f"caption: {silent} of {len(texts)} pictures have {have} as caption", level="warning")
    return out


def _layer(row: Row, by: str, text: str) -> Row:
    if not text or text == row.caption:
        return row
    return dataclasses.replace(row, captions=(*row.captions, Caption(by, text)))


KINDS = ("human", "machine", "source")


def kind_of(layer: Caption) -> str:
    """`human`, `source` (it came with the picture) or `machine`."""
    by = layer.by.partition("+")[0]
    if by == "human":
        return "human"
    return "machine" if by in CAPTIONERS and by not in FROM_SOURCE else "source"


def choose(data: Dataset, order: Sequence[str]) -> Generator[Event, None, Dataset]:
    """The newest layer of the first kind in `order` that a picture has is laid on top again, and so is in use. A Note counts them.

    `order` names kinds (KINDS) or writers (`wd14`). A picture that has none of them keeps the caption it has.
    """
    if not order:
        raise ValueError(f"choose_caption: order is empty; expected kinds ({', '.join(KINDS)}) or who wrote them ({', '.join(CAPTIONERS)})")
    counts: Counter[str] = Counter()

    def chosen(row: Row) -> Row:
        found = next((c for name in order for c in reversed(row.captions) if name in (kind_of(c), c.by, c.by.partition("+")[0])), None)
        counts["none of them" if found is None else found.by] += 1
        return row if found is None or found == row.captions[-1] else dataclasses.replace(row, captions=(*row.captions, found))

    out = dataclasses.replace(data, rows=tuple(row if row.dropped else chosen(row) for row in data.rows))
    said = ", ".join(f"{n} {by}" for by, n in counts.most_common())
    yield Note(text=f"choose_caption: in use, by {' then '.join(order)}: {said or 'no picture'}")
    return out


def take(data: Dataset, path: Path) -> Generator[Event, None, Dataset]:
    """A layer of captions from a table's rows of the same names. A Note counts; ValueError when the table names none of the pictures."""
    table = read_table(path)
    said = {PurePosixPath(e.file).as_posix(): e.text for e in table.entries if e.text}
    rows = tuple(row if row.dropped else _layer(row, "human", said.get(row.name, "")) for row in data.rows)
    found = sum(row.name in said for row in data)
    if not found:
        raise ValueError(f"take_captions: {path} names none of the {len(data)} pictures; it names {', '.join(list(said)[:3]) or 'nothing'}")
    bad = f"; {len(table.problems)} lines cannot be used" if table.problems else ""
    yield Note(text=f"take_captions: {found} of {len(data)} pictures have a caption in it{bad}", level="warning" if bad else "info")
    return dataclasses.replace(data, rows=rows)


def edit(data: Dataset, op: str, change: Callable[[str, Row], str]) -> Dataset:
    """One more layer where `change` makes another text of the caption in use; it is named after the layer below: `wd14+edit_tags`."""

    def edited(row: Row) -> Row:
        text = change(row.caption, row)
        if row.dropped or text == row.caption:
            return row
        names = row.captions[-1].by.split("+") if row.captions else ["source"]
        by = "+".join([*names, *([op] if names[-1] != op else [])])
        return dataclasses.replace(row, captions=(*row.captions, Caption(by, text)))

    return dataclasses.replace(data, rows=tuple(edited(row) for row in data.rows))
