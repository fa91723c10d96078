"""What was brought for a request, line by line: a run that was killed goes on behind the last whole line."""
from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from safelight.data.sources import Item
from safelight.disk import place
from safelight.index import home
from safelight.locks import locked
from safelight.values import Blob, Caption, Row, digest

LINES = "journal.jsonl"
ANEW = "anew"  # how a request was asked anew, until that is finished
SHARD = "shard "  # keys of shards that were read to their end
Facts = dict[str, Any]


def folder(request: str) -> Path:
    """Where a request's journal lies."""
    return home() / "collected" / digest("collect", request)


def stamp(request: str) -> str:
    """Changes when running the request again would give another result: it was asked anew, or something could not be brought yet."""
    return _said(folder(request) / "stamp") + _said(folder(request) / ANEW)


def _said(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


class Journal:
    """Pictures by key: where each lies and how large it is, or why there is none.

    `final` losses are not tried again by themselves, unless they came of other `limits`.
    """

    def __init__(self, place: Path, out: TextIO, kept: dict[str, Facts], limits: str) -> None:
        self.folder, self._out, self._kept, self._limits = place, out, kept, limits
        self._told: dict[str, Item] = {}

    def had(self, key: str) -> bool:
        """Whether a picture is there, or lost for good."""
        facts = self._kept.get(key)
        if facts is None:
            return False
        return facts["final"] and facts.get("limits") == self._limits if "lost" in facts else os.path.isfile(facts["path"])

    def finished(self, shard: str) -> int | None:
        """How many pictures a shard has that was read to its end."""
        facts = self._kept.get(SHARD + shard)
        return None if facts is None else int(facts["pictures"])

    def finish(self, shard: str, pictures: int) -> None:
        """A shard was read to its end."""
        self._write(SHARD + shard, {"pictures": pictures})

    def tell(self, item: Item) -> None:
        """What the source says now of a picture that is there."""
        if item.url or item.lost or item.data is not None:
            self._told[item.key] = item

    def add(self, item: Item, facts: Facts) -> None:
        """A picture that came (`path`, `sha256`, `width`, `height`, `format`, `bytes`) or did not (`lost`, `final`)."""
        said = {"name": item.name, "captions": [[c.by, c.text] for c in item.captions], "origin": item.origin, "extra": item.extra}
        self._write(item.key, {**said, **facts} | ({"limits": self._limits} if "lost" in facts else {}))

    def _write(self, key: str, facts: Facts) -> None:
        self._kept[key] = facts
        self._out.write(json.dumps({"key": key, **facts}, ensure_ascii=False) + "\n")
        self._out.flush()

    def row(self, key: str) -> Row:
        """The row of a picture, with what the source said last of it."""
        facts, now = self._kept[key], self._told.get(key)
        captions = now.captions if now else tuple(Caption(by, text) for by, text in facts["captions"])
        info: Facts = {"origin": dict(now.origin if now else facts["origin"])}
        extra = now.extra if now else facts["extra"]
        info |= {"metadata": dict(extra)} if extra else {}
        if "lost" in facts:
            return Row(Blob(info["origin"]["url"] or key, ""), facts["name"], 0, 0, captions, facts["lost"], info)
        info |= {"format": facts["format"], "bytes": facts["bytes"]}
        name = f"{facts['name']}{Path(facts['path']).suffix}"
        return Row(Blob(facts["path"], facts["sha256"]), name, facts["width"], facts["height"], captions, "", info)

    def end(self, keys: Iterable[str]) -> None:
        """The request was answered. The stamp changes when it was asked anew, or when another try may bring one of these."""
        anew = self.folder / ANEW
        if anew.exists() or any("lost" in f and not f["final"] for f in map(self._kept.__getitem__, keys)):
            place(self.folder, self.folder / "stamp", lambda to: to.write_text(os.urandom(8).hex()))
            anew.unlink(missing_ok=True)


@contextmanager
def opened(where: Path, again: str = "no", limits: str = "") -> Iterator[Journal]:
    """The journal in a folder, for one process at a time.

    again: `all` forgets everything, `failed` what was not brought; once, when a run that did so was stopped.
    """
    where.mkdir(parents=True, exist_ok=True)
    with locked(where / "lock"):
        kept = _read(where / LINES)
        if again not in ("no", _said(where / ANEW)):
            place(where, where / ANEW, lambda to: to.write_text(again))
            good = {k: f for k, f in kept.items() if "lost" not in f and not k.startswith(SHARD)}
            kept = good if again == "failed" else {}
        text = "".join(json.dumps({"key": k, **f}, ensure_ascii=False) + "\n" for k, f in kept.items())
        place(where, where / LINES, lambda to: to.write_text(text, encoding="utf-8"))
        with open(where / LINES, "a", encoding="utf-8") as out:
            yield Journal(where, out, kept, limits)


def _read(path: Path) -> dict[str, Facts]:
    kept: dict[str, Facts] = {}
    if not path.is_file():
        return kept
    with open(path, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                facts = json.loads(line)
                kept[facts.pop("key")] = facts
            except (ValueError, KeyError, TypeError, AttributeError):  # the line at which a process died
                continue
    return kept
