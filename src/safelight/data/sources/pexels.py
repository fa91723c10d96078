"""Photographs from Pexels by search words (https://www.pexels.com/api/documentation). The key is in $PEXELS_API_KEY."""
from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any
from urllib.parse import quote

from safelight.data.metadata import plain
from safelight.data.sources import AGENT, Asked, Item, origin, source
from safelight.data.sources.unsplash import answer, key
from safelight.events import Event
from safelight.pulling.http import Http
from safelight.values import Caption

ENDPOINT = "https://api.pexels.com"
PAGE = 80  # the most that one answer holds


@source("pexels")
def photographs(asked: Asked) -> Generator[Item | Event, None, None]:
    """The pictures that the words find, most fitting first. One request a page counts for the hourly quota."""
    api = Http(ENDPOINT, {**AGENT, "Authorization": key("PEXELS_API_KEY", "pexels")})
    number, more = 1, True
    while more:
        url = f"{ENDPOINT}/v1/search?query={quote(asked.source, safe='')}&page={number}&per_page={PAGE}"
        told = answer(api, url, "pexels", "PEXELS_API_KEY")
        yield from (_item(p) for p in told.get("photos") or () if "id" in p and p.get("src"))
        number, more = number + 1, bool(told.get("next_page"))


def _item(photo: Mapping[str, Any]) -> Item:
    author, text, page = str(photo.get("photographer") or ""), plain(str(photo.get("alt") or "")), str(photo.get("url") or "")
    url = str(photo["src"].get("original") or photo["src"].get("large2x"))
    known = origin(
        source="pexels", url=url, page=page, licence="Pexels License (https://www.pexels.com/license/)", author=author,
        attribution=f"Photo by {author} ({photo.get('photographer_url') or page}) on Pexels (https://www.pexels.com)",
    )
    return Item(f"pexels {photo['id']}", f"pexels-{photo['id']}", url, captions=(Caption("source", text),) if text else (), origin=known)
