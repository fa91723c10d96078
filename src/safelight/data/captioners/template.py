"""Captions made from a pattern and what is known of the picture."""
from __future__ import annotations

import string
from collections.abc import Generator, Mapping, Sequence
from pathlib import PurePosixPath

from safelight.data.captioners import Asked, captioner
from safelight.events import Event
from safelight.values import Row


def fields(row: Row) -> Mapping[str, str]:
    """What a template may name: caption, name, stem, folder, width, height, and the columns of the picture's table."""
    path = PurePosixPath(row.name)
    table = {k: str(v) for k, v in row.info.get("metadata", {}).items()}
    return {**table, "caption": row.caption, "name": path.name, "stem": path.stem, "folder": path.parent.name,
            "width": str(row.width), "height": str(row.height)}


def _check(template: str) -> list[str]:
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"caption: template {template!r}: {error}; write {{caption}}, and {{{{ for a brace") from error
    names = [name for _, name, _, _ in parts if name is not None]
    wrong = next((n for n in names if not n.isidentifier()), None)
    if wrong is not None:
        raise ValueError(f"caption: template {template!r} has {{{wrong}}}; expected a plain name such as {{caption}} or {{stem}}")
    return names


@captioner("template")
def from_template(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """`a photo of {folder}, {caption}`: each name replaced by the row's value. ValueError names one that no picture has."""
    yield from ()
    names = _check(asked.template)
    texts = []
    for row in rows:
        known = fields(row)
        missing = next((n for n in names if n not in known), None)
        if missing is not None:
            raise ValueError(f"caption: template names {{{missing}}}, which {row.name} does not have; it has {', '.join(sorted(known))}")
        texts.append(" ".join(asked.template.format_map(known).split()))
    return texts
