"""Measures of pictures that hold while the file does not change, kept between runs: a new threshold reads no picture again.

One SQLite file for all datasets, $SAFELIGHT_HOME/measures.sqlite. It is a cache: when it is damaged it is started anew, and when it
cannot be used, pictures are measured.
"""
from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from safelight.data.juicer.pictures import Picture

FRESH = 2 * 10**9
"""Nanoseconds in which a file may change again without its time of change showing it; measures of younger files are not kept."""
AT_ONCE = 500  # paths in one query
SECONDS = 2.0
"""How long answers wait before they are written."""
TABLE = ("CREATE TABLE IF NOT EXISTS answers (path TEXT, question TEXT, bytes INTEGER, changed INTEGER, answer, "
         "PRIMARY KEY (path, question)) WITHOUT ROWID")
Told = tuple[int, int, Any]
"""A file's length, when it changed (nanoseconds), and what was measured then: a whole number as it is, all else as JSON."""


_told = json.JSONEncoder().encode


@lru_cache(maxsize=2**14)
def _parsed(told: str) -> Any:
    return json.loads(told)


class Known:
    """The answers that a shard may need, read at once and written back at once. `file` None: nothing is kept."""

    def __init__(self, file: Path | None, paths: Iterable[str] = ()) -> None:
        self.file = file
        self._old: dict[str, dict[str, Told]] = {}
        self._new: list[tuple[str, str, int, int, Any]] = []
        self._latest = time.time_ns() - FRESH
        if file is not None and file.is_file():
            self._read(list(paths))

    def about(self, question: str) -> Mapping[str, Told]:
        """What is known by path; it holds while the file has that length and time of change."""
        return self._old.get(question, {})

    def answer(self, picture: Picture, question: str, measure: Callable[[Picture], Any]) -> Any:
        """JSON data: what is known of the picture as it is now, or what `measure` says, which is then kept."""
        if self.file is None:
            return measure(picture)
        size, changed, told = self.about(question).get(picture.path, (-1, 0, None))
        if size == picture.stat.st_size and changed == picture.stat.st_mtime_ns:
            return _parsed(told) if isinstance(told, str) else told
        found = measure(picture)
        self.note(picture.path, question, picture.stat, found)
        return found

    def note(self, path: str, question: str, stat: os.stat_result, found: Any) -> None:
        """Keep what was measured of the file when it was as `stat` says."""
        self.add(path, question, found, size=stat.st_size, changed=stat.st_mtime_ns)

    def add(self, name: str, question: str, found: Any, *, size: int = 0, changed: int = 0) -> None:
        """Keep an answer about a file, or about a content by its hash."""
        self._new.append((name, question, size, changed, found if found.__class__ is int else _told(found)))

    def everything(self) -> dict[tuple[str, str], Any]:
        """What was read, by (name, question)."""
        return {(name, q): _parsed(t) if isinstance(t, str) else t for q, told in self._old.items() for name, (_, _, t) in told.items()}

    def keep(self) -> None:
        """Write what is new."""
        new = [answer for answer in self._new if answer[3] < self._latest] if self.file is not None else []
        if new:
            self._ask(lambda database: database.executemany("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", new))
        self._new = []

    def _read(self, paths: list[str]) -> None:
        def read(database: sqlite3.Connection) -> None:
            for i in range(0, len(paths), AT_ONCE):
                some = paths[i:i + AT_ONCE]
                query = f"SELECT * FROM answers WHERE path IN ({', '.join('?' * len(some))})"
                for path, question, size, changed, told in database.execute(query, some):
                    self._old.setdefault(question, {})[path] = size, changed, told

        self._ask(read)

    def _ask(self, work: Callable[[sqlite3.Connection], object]) -> None:
        assert self.file is not None
        import logging
        import sqlite3

        log = logging.getLogger(__name__)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.file, timeout=10)) as database, database:
                database.execute("PRAGMA synchronous = OFF")  # losing it costs time only
                database.execute(TABLE)
                work(database)
        except (sqlite3.OperationalError, PermissionError) as e:
            log.info("%s: %s; going on without", self.file, e)
        except sqlite3.DatabaseError as e:
            log.warning("%s: %s; starting it anew", self.file, e)
            self.file.unlink(missing_ok=True)


class Contents(dict[tuple[str, str], Any]):
    """Answers about contents by (sha256, question). What is set is written every few seconds, so a process that is killed loses little."""

    def __init__(self, known: Known) -> None:
        super().__init__(known.everything())
        self._known, self._due = known, time.monotonic() + SECONDS

    def __setitem__(self, key: tuple[str, str], found: Any) -> None:
        super().__setitem__(key, found)
        self._known.add(*key, found)
        if time.monotonic() >= self._due:
            self._known.keep()
            self._due = time.monotonic() + SECONDS


@contextmanager
def contents(file: Path | None, hashes: Iterable[str]) -> Iterator[Contents]:
    """What is known of pictures by (sha256, question), wherever they lie; what the block adds is kept in the file, however it ends."""
    known = Known(file, set(hashes))
    try:
        yield Contents(known)
    finally:
        known.keep()
