"""Where pictures come from: one file, one registry entry a source. A source is a generator of items and events; who asks brings them.

A source only says what there is: an address with what is known about it, or the bytes themselves. Fetching, checking, keeping and going on
after an interruption are the same for all (`collecting`).
"""
from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.data.request import FETCH, PICK, Fetch, Pick
from safelight.events import Event
from safelight.pulling.http import Http
from safelight.spec import near
from safelight.values import Caption

AGENT = {"User-Agent": "safelight"}
FACTS = ("source", "url", "page", "licence", "author", "attribution")
BAD = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\\ud800-\udfff]')
LONGEST = 200  # bytes of one part of a name; file systems take 255, and a suffix comes behind


@dataclass(frozen=True)
class Item:
    """One picture that a source has. `key` is the same in every run; with neither `url` nor `data` it is one that was brought before.

    `name` is its path below the dataset without suffix. `hash` is `sha256:`, `md5:` or `git:` and hex digits, or nothing. `lost` says why
    the source has it and cannot give it. `http` asks for it with a login; without, the address is a stranger's. `before` is called before
    the picture is fetched.
    """

    key: str
    name: str = ""
    url: str = ""
    data: bytes | None = field(default=None, repr=False)
    captions: tuple[Caption, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    hash: str = ""
    lost: str = ""
    http: Http | None = None
    before: Callable[[], object] | None = None


@dataclass(frozen=True)
class Asked:
    """What a source is asked for: the text after its prefix, at most `limit` pictures (0: all), and what was brought before.

    `folder` is a place for what a source needs to keep. `finished(shard)` is the number of pictures of a shard that was read to its end,
    or None; `had(key)` whether a picture is there. A source calls `finish(shard, n)` at a shard's end.
    """

    source: str
    folder: Path
    limit: int = 0
    pick: Pick = PICK
    fetch: Fetch = FETCH
    had: Callable[[str], bool] = lambda key: False
    finished: Callable[[str], int | None] = lambda shard: None
    finish: Callable[[str, int], None] = lambda shard, n: None


Source = Callable[[Asked], Generator[Item | Event, None, None]]
SOURCES: dict[str, Source] = {}


def source(name: str) -> Callable[[Source], Source]:
    """Register a source: `name:rest` asks it for `rest`."""

    def register(fn: Source) -> Source:
        SOURCES[name] = fn
        return fn

    return register


def origin(**known: str | None) -> dict[str, str]:
    """What is known of where a picture is from, always with the keys FACTS; the empty string where nobody says."""
    return {fact: str(known.get(fact) or "") for fact in FACTS}


def safe(name: str) -> str:
    """A name that leads into no other folder and can be written on every system."""
    parts = [BAD.sub("_", p).encode()[-LONGEST:].decode("utf-8", "ignore").strip(" .") for p in name.replace("\\", "/").split("/")]
    return "/".join(filter(None, parts)) or "picture"


def spelled(text: str) -> tuple[str, str]:
    """(`hf`, `owner/name`) from `hf:owner/name`; `folder` or `urls` and the path from a path. ValueError naming what may be given."""
    name, colon, rest = text.partition(":")
    if text.startswith(("http://", "https://")):
        return "urls", text
    if colon and name in SOURCES:
        if not rest.strip():
            raise ValueError(f"collect: {text!r} says nothing after {name}:; {SPELLINGS}")
        return name, rest.strip()
    path = Path(text).expanduser()
    if path.is_dir():
        return "folder", str(path)
    if path.is_file() and path.suffix.lower() not in urls.READERS:
        raise ValueError(f"collect: {text!r} is no folder and no table; {SPELLINGS}")
    if path.is_file():
        return ("urls" if urls.names_addresses(path) else "folder"), str(path)
    raise ValueError(f"collect: there is no {text!r}; {near(name, sorted(SOURCES)) or SPELLINGS}")


SPELLINGS = ("expected a folder, a table (.txt, .csv, .jsonl, .parquet), an address, hf:owner/name, ms:owner/name, unsplash:words, "
             "pexels:words or render:person")

from safelight.data.sources import hubs, pexels, renderer, unsplash, urls  # noqa: E402  (they register themselves)

__all__ = ["AGENT", "SOURCES", "Asked", "Item", "Source", "hubs", "origin", "pexels", "renderer", "safe", "source", "spelled", "unsplash",
           "urls"]
