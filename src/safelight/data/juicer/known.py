"""Measures of pictures that hold while the file does not change, kept between runs: a new threshold reads no picture again.

One SQLite file for all datasets, $SAFELIGHT_HOME/measures.sqlite. It is a cache: when it is damaged it is started anew, and when it
cannot be used, pictures are measured.
"""
from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import sqlite3

    from safelight.data.juicer.pictures import Picture

FRESH = 2 * 10**9
"""Nanoseconds in which a file may change again without its time of change showing it; measures of younger files are not kept."""
AT_ONCE = 500  # paths in one query
TABLE = ("CREATE TABLE IF NOT EXISTS measures (path TEXT, question TEXT, stamp TEXT, answer TEXT, PRIMARY KEY (path, question)) "
         "WITHOUT ROWID")


_told = json.JSONEncoder().encode


@lru_cache(maxsize=2**14)  # many pictures have one size
def _parsed(told: str) -> Any:
    return json.loads(told)


class Known:
    """The answers that a shard may need, read at once and written back at once. `file` None: nothing is kept."""

    def __init__(self, file: Path | None, paths: Iterable[str] = ()) -> None:
        self.file = file
        self._old: dict[tuple[str, str], tuple[str, str]] = {}
        self._new: list[tuple[str, str, str, str]] = []
        self._latest = time.time_ns() - FRESH
        if file is not None and file.is_file():
            self._read(sorted(set(paths)))

    def answer(self, picture: Picture, question: str, measure: Callable[[Picture], Any]) -> Any:
        """JSON data: what is known of the picture as it is now, or what `measure` says, which is then kept."""
        if self.file is None:
            return measure(picture)
        kept = self._old.get((picture.path, question))
        if kept is not None and kept[0] == picture.stamp:
            return _parsed(kept[1])
        found = measure(picture)
        if picture.stat.st_mtime_ns < self._latest:
            self._new.append((picture.path, question, picture.stamp, _told(found)))
        return found

    def keep(self) -> None:
        """Write what is new."""
        if self._new:
            self._ask(lambda database: database.executemany("INSERT OR REPLACE INTO measures VALUES (?, ?, ?, ?)", self._new))
        self._new = []

    def _read(self, paths: list[str]) -> None:
        def read(database: sqlite3.Connection) -> None:
            for i in range(0, len(paths), AT_ONCE):
                some = paths[i:i + AT_ONCE]
                query = f"SELECT * FROM measures WHERE path IN ({', '.join('?' * len(some))})"
                self._old.update([((p, q), (stamp, told)) for p, q, stamp, told in database.execute(query, some)])

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
