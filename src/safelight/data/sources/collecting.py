"""From a source to a dataset: bring what is missing, keep it, list what did not come, in the source's order."""
from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

from safelight.data.folder import fingerprint, read_folder
from safelight.data.request import FETCH, PICK, Fetch, Pick
from safelight.data.sources import SOURCES, Asked, Item, origin, spelled
from safelight.data.sources.fetching import Crew, Keep, facts, lost
from safelight.data.sources.journal import Journal, folder, opened, stamp
from safelight.events import Event, Note, Progress
from safelight.pictures import Unreadable
from safelight.values import Blob, Dataset, Row, canonical

EVERY = 20  # pictures between two progress events


def request(text: str, pick: Pick) -> str:
    """What makes two requests the same one, however much of it is asked for and however it is fetched."""
    kind, rest = spelled(text)
    return canonical([kind, str(Path(rest).resolve()) if Path(rest).is_file() else rest, pick])


def outside(text: str, pick: Pick) -> str:
    """The fingerprint: files on this machine by content, the network by what was brought before."""
    kind, rest = spelled(text)
    if kind == "folder":
        return fingerprint(Path(rest))
    listed = Blob.of(rest).sha256 if Path(rest).is_file() else ""
    return listed + stamp(request(text, pick))


def collect(
    text: str, keep: Keep, *, pick: Pick = PICK, fetch: Fetch = FETCH, limit: int = 0, licence: str = "", again: str = "no",
) -> Generator[Event, None, Dataset]:
    """The dataset of a source. `keep(bytes, suffix)` puts a picture where it stays. `licence` counts for rows whose source tells none.

    What does not come is a row with `dropped` set. OSError when the source itself breaks off; what came is kept.
    """
    kind, rest = spelled(text)
    if kind == "folder":
        data = yield from read_folder(Path(rest))
        rows = data.rows[:limit] if limit else data.rows
        return dataclasses.replace(data, rows=tuple(_licensed(_from_folder(r, text), licence) for r in rows))
    name = request(text, pick)
    limits = canonical([fetch.max_mb, fetch.allow_private, fetch.heed_robots])
    with opened(folder(name), again, limits) as journal, closing(Crew(fetch, keep)) as crew:
        asked = Asked(rest, journal.folder, limit, pick, fetch, journal.had, journal.finished, journal.finish)
        keys = yield from _bring(SOURCES[kind](asked), crew, journal, limit)
        rows = _apart(_licensed(journal.row(key), licence) for key in keys)
        journal.end(keys)
    if not rows:
        raise ValueError(f"collect: {text} has no pictures")
    yield from _told(rows)
    return Dataset(rows, {"source": text})


def _told(rows: Sequence[Row]) -> Iterator[Note]:
    """How many did not come, and why the first did not."""
    out = [r.dropped for r in rows if r.dropped]
    if out:
        counts = Counter(reason.partition(":")[0] for reason in out)
        told = ", ".join(f"{n} {reason}" for reason, n in counts.most_common())
        more = ". Run it again to try again what was not fetched yet" if "not fetched yet" in counts else ""
        yield Note(text=f"collect: {told} of {len(rows)} pictures (each is listed; the first: {out[0]}){more}", level="warning")


def _bring(items: Iterator[Item | Event], crew: Crew, journal: Journal, limit: int) -> Generator[Event, None, list[str]]:
    """Keys in the source's order; everything is in the journal when this returns. OSError once that is so, if the source breaks off."""
    keys: list[str] = []
    broken: list[OSError] = []
    came = 0
    for item in _until(items, broken):
        if isinstance(item, Event):
            yield item
            continue
        keys.append(item.key)
        journal.tell(item)
        there = journal.had(item.key)
        if there or item.lost or item.data is not None:
            if not there:
                journal.add(item, _checked(item, crew.keep, crew.limits))
            came += 1
            if came % EVERY == 0:
                yield _progress(came, limit)
        else:
            crew.add(item)
            came = yield from _settled(crew, journal, came, limit, patience=0)
        while not crew.room(item):
            came = yield from _settled(crew, journal, came, limit)
        if len(keys) == limit:
            break
    while crew.busy:
        came = yield from _settled(crew, journal, came, limit or len(keys))
    yield _progress(came, len(keys))
    if broken:
        raise broken[0]
    return keys


def _until(items: Iterator[Item | Event], broken: list[OSError]) -> Iterator[Item | Event]:
    """The items, up to where the source breaks off."""
    try:
        yield from items
    except OSError as e:
        broken.append(e)


def _settled(crew: Crew, journal: Journal, came: int, total: int, *, patience: float = 0.1) -> Generator[Event, None, int]:
    for item, found in crew.done(patience=patience):
        journal.add(item, found)
        came += 1
        yield _progress(came, total)
    return came


def _progress(came: int, total: int) -> Progress:
    return Progress(step=came, total=total, what="collecting pictures", unit="picture")


def _checked(item: Item, keep: Keep, limits: Fetch) -> dict[str, Any]:
    data = item.data or b""
    if why := item.lost or limits.refused(len(data)):
        return lost(item.lost or f"not fetched: {why}", final=True)
    try:
        return facts(data, item.hash, keep)
    except Unreadable as e:
        return lost(f"unreadable: {e}", final=True)


def _from_folder(row: Row, text: str) -> Row:
    """A folder's row with where it is from: the columns of its table where they say so, else the folder."""
    said = {k: str(v) for k, v in row.info.get("metadata", {}).items()}
    told = origin(**{**said, "source": said.get("source") or text, "licence": said.get("licence") or said.get("license")})
    return dataclasses.replace(row, info={**row.info, "origin": told})


def _apart(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows under names of their own, on systems too that know no capitals."""
    times: Counter[str] = Counter()
    out = []
    for row in rows:
        times[row.name.casefold()] += 1
        n, name = times[row.name.casefold()], PurePosixPath(row.name)
        out.append(row if n == 1 else dataclasses.replace(row, name=str(name.with_stem(f"{name.stem}~{n}"))))
    return tuple(out)


def _licensed(row: Row, licence: str) -> Row:
    known = row.info["origin"]
    if known["licence"] or not licence:
        return row
    return dataclasses.replace(row, info={**row.info, "origin": {**known, "licence": licence}})
