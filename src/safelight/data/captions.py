"""Adding a layer of captions. Layers are never overwritten: the newest is in use, the older ones stay readable."""
from __future__ import annotations

import dataclasses
from collections.abc import Generator

from safelight.data.captioners import CAPTIONERS, Asked
from safelight.events import Event, Note
from safelight.values import Caption, Dataset, Row


def with_trigger(text: str, trigger: str, place: str) -> str:
    """`a fox` and `in ink style` -> `a fox, in ink style` (place `end`) or `in ink style, a fox` (`start`); once, however often applied."""
    if not trigger or trigger in text:
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
