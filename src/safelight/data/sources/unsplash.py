"""Photographs from Unsplash by search words (https://unsplash.com/documentation). The key is in $UNSPLASH_ACCESS_KEY.

As its guidelines ask, every picture that is taken is told to its `download_location`, and photographer and Unsplash are credited.
"""
from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, urlsplit

from safelight.data.metadata import plain
from safelight.data.sources import AGENT, Asked, Item, origin, source
from safelight.events import Event
from safelight.pulling.http import Http, Refused
from safelight.values import Caption

ENDPOINT = "https://api.unsplash.com"
PAGE = 30  # the most that one answer holds
REFERRAL = "utm_source=safelight&utm_medium=referral"


@source("unsplash")
def photographs(asked: Asked) -> Generator[Item | Event, None, None]:
    """The pictures that the words find, most fitting first. One request a page and one a picture count for the hourly quota."""
    api = Http(ENDPOINT, {**AGENT, "Accept-Version": "v1", "Authorization": f"Client-ID {key('UNSPLASH_ACCESS_KEY', 'unsplash')}"})
    for photo in _found(api, asked):
        yield _item(photo, api)


def key(variable: str, name: str) -> str:
    """The access key in the environment. ValueError saying where one gets it."""
    found = os.environ.get(variable, "").strip()
    if not found:
        raise ValueError(f"collect {name}: there is no key in ${variable}; one is free at https://{name}.com/developers or /api")
    return found


def answer(api: Http, url: str, name: str, variable: str) -> Mapping[str, Any]:
    """A page of the API. ValueError for a key that is not taken, UsedUp when the quota is."""
    try:
        told = api.json(url)
    except Refused as e:
        why = f"the key in ${variable} is not taken" if e.status in (401, 403) else str(e)
        raise ValueError(f"collect {name}: {why}") from e
    if not isinstance(told, dict):
        raise ValueError(f"collect {name}: {url} gives no table")
    return told


def _found(api: Http, asked: Asked) -> Iterator[Mapping[str, Any]]:
    number, pages = 1, 1
    while number <= pages:
        url = f"{ENDPOINT}/search/photos?query={quote(asked.source, safe='')}&page={number}&per_page={PAGE}"
        told = answer(api, url, "unsplash", "UNSPLASH_ACCESS_KEY")
        pages = int(told.get("total_pages") or 0)
        yield from (p for p in told.get("results") or () if "id" in p and p.get("urls"))
        number += 1


def _item(photo: Mapping[str, Any], api: Http) -> Item:
    user, links = photo.get("user") or {}, photo.get("links") or {}
    text = plain(str(photo.get("description") or photo.get("alt_description") or ""))
    author, home = str(user.get("name") or ""), _credit((user.get("links") or {}).get("html"))
    page = _credit(links.get("html"))
    url = str(photo["urls"].get("full") or photo["urls"]["raw"])
    told = str(links.get("download_location") or "")
    known = origin(
        source="unsplash", url=url, page=page, licence="Unsplash License (https://unsplash.com/license)", author=author,
        attribution=f"Photo by {author} ({home}) on Unsplash (https://unsplash.com/?{REFERRAL})",
    )
    ours = urlsplit(told)[:2] == urlsplit(ENDPOINT)[:2]  # the key goes nowhere else
    before = partial(api.json, told) if ours else None
    return Item(f"unsplash {photo['id']}", f"unsplash-{photo['id']}", url, captions=(Caption("source", text),) if text else (),
                origin=known, before=before)


def _credit(link: Any) -> str:
    return f"{link}{'&' if '?' in str(link) else '?'}{REFERRAL}" if link else ""
