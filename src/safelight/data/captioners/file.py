"""Captions that came with the pictures."""
from __future__ import annotations

from collections.abc import Generator, Sequence

from safelight.data.captioners import Asked, captioner
from safelight.events import Event
from safelight.values import Row

FROM_SOURCE = ("human", "file", "metadata", "folder", "source", "renderer", "prompt")


def given(row: Row) -> str:
    """The newest caption that a person or a file gave, or the empty string."""
    return next((c.text for c in reversed(row.captions) if c.by in FROM_SOURCE), "")


@captioner("file")
def from_file(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """What the caption file, the table or the folder's name says."""
    yield from ()
    return [given(row) for row in rows]
