"""Pictures from our own renderer: `render:person` or `render:scene`, with captions that are exactly true, `:zh` for Chinese ones."""
from __future__ import annotations

import importlib.util
import io
from collections.abc import Generator
from random import Random

from safelight.data.sources import Asked, Item, origin, source
from safelight.events import Event
from safelight.values import Caption

KINDS = ("person", "scene")
LANGUAGES = ("en", "zh")
ENDLESS = 100  # pictures when no limit is given
PEOPLE = 'remix of "Personas by Draftbit" (https://personas.draftbit.com), CC BY 4.0; drawn by Safelight through DiceBear'


@source("render")
def drawn(asked: Asked) -> Generator[Item | Event, None, None]:
    """The first pictures of an endless list that is the same everywhere; as many as the limit, or a hundred."""
    kind, _, language = asked.source.partition(":")
    language = language or "en"
    if kind not in KINDS or language not in LANGUAGES:
        raise ValueError(f"collect render:{asked.source}: expected {' or '.join(KINDS)}, and :en or :zh behind it, as in render:person:zh")
    if any(importlib.util.find_spec(module) is None for module in ("dicebear", "resvg_py")):
        raise ValueError("collect: drawing needs the renderer; `pip install 'safelight[render]'` brings it")
    for i in range(asked.limit or ENDLESS):
        key = f"{kind} {i}"
        yield Item(key) if asked.had(key) else _item(kind, language, i)


def _item(kind: str, language: str, i: int) -> Item:
    from safelight.embedded import captions, render

    rng = Random(f"collect/{kind}/{i}")
    attributes = render.draw(kind, rng)
    out = io.BytesIO()
    render.picture(attributes, rng).save(out, "PNG")
    said = captions.caption(attributes, Random(f"collect/{kind}/{i}/{language}"), language=language, full=True)
    licence, credit = ("CC BY 4.0", PEOPLE) if kind == "person" else ("Apache-2.0", "drawn by Safelight")
    known = origin(source=f"render:{kind}", licence=licence, author="Draftbit" if kind == "person" else "", attribution=credit)
    return Item(f"{kind} {i}", f"{kind}-{i:06}", data=out.getvalue(), captions=(Caption("renderer", said),), origin=known, extra=attributes)
