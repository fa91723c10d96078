"""What was found out about files once and holds while they do not change, kept between processes: hashes, families, kinds. No torch.

An answer belongs to a path, a size and a time of change (nanoseconds). The index is a cache: when it is damaged or cannot be written,
answers are found anew. What a process was told it goes on knowing while the file's inode and times are the same. New bytes are not seen
when length and times are those before: in a folder on another machine that tells them late, or when somebody sets the clock back.
"""
from __future__ import annotations

import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

FRESH = 2 * 10**9
"""Nanoseconds in which a file may change again without its time of change showing it; answers about younger files are not kept."""

TABLE = "CREATE TABLE IF NOT EXISTS answers (question TEXT, path TEXT, stamp TEXT, answer TEXT, PRIMARY KEY (question, path)) WITHOUT ROWID"
KEEP = "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)"
_told: dict[tuple[str, str], tuple[tuple[int | str, ...], str]] = {}
"""What this process was told, by question and path: the file's marks, and the answer as JSON."""


def home() -> Path:
    """The folder for what Safelight keeps between runs: $SAFELIGHT_HOME or ~/.cache/safelight."""
    return Path(os.environ.get("SAFELIGHT_HOME") or "~/.cache/safelight").expanduser()


def remember(file: Path, question: str, answer: Callable[[Path], T], *, version: str = "") -> T:
    """The answer (JSON data) about a file: the kept one, or a new one that is then kept. `version` is that of whoever answers.

    OSError when the file cannot be read; what `answer` raises passes through and is not kept.
    """
    path, seen = os.path.abspath(file), os.stat(file)
    marks = (version, seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    known = _told.get((question, path))
    if known is None or known[0] != marks:
        kept = _ask("SELECT stamp, answer FROM answers WHERE question = ? AND path = ?", [(question, path)])
        if not kept or kept[0][0] != _stamp(seen, version):
            found = answer(file)
            if not _settled(file, seen):
                return found
            kept = [(_stamp(seen, version), json.dumps(found))]
            _ask(KEEP, [(question, path, *kept[0])])
        known = _told[question, path] = marks, kept[0][1]
    told: T = json.loads(known[1])
    return told


def survey(files: Mapping[str, os.stat_result], question: str, answer: Callable[[Path], T], *, version: str = "") -> dict[str, T]:
    """The answers about many files by path, each with what `os.stat` says of it now; new ones are kept all at once at the end."""
    rows = _ask("SELECT path, stamp, answer FROM answers WHERE question = ?", [(question,)])
    kept = {path: (stamp, told) for path, stamp, told in rows}
    found: dict[str, T] = {}
    fresh = []
    for file, seen in files.items():
        path, stamp = os.path.abspath(file), _stamp(seen, version)
        known, told = kept.get(path, ("", ""))
        if known == stamp:
            found[file] = json.loads(told)
            continue
        found[file] = answer(Path(file))
        if _settled(Path(file), seen):
            fresh.append((question, path, stamp, json.dumps(found[file])))
    if fresh:
        _ask(KEEP, fresh)
    return found


def sha256(file: Path) -> str:
    """64 hex digits; a file that did not change is read once, not once a process."""
    from safelight.values import Blob

    return remember(file, "sha256", lambda f: Blob.of(f).sha256)


def _stamp(seen: os.stat_result, version: str) -> str:
    return f"{seen.st_size} {seen.st_mtime_ns} {version}"


def _settled(file: Path, seen: os.stat_result) -> bool:
    """Whether it did not change while it was looked into, nor so lately that a change would not show."""
    return _stamp(os.stat(file), "") == _stamp(seen, "") and time.time_ns() - seen.st_mtime_ns > FRESH


def _ask(query: str, values: Iterable[tuple[str, ...]]) -> list[tuple[Any, ...]]:
    """Rows of the last value's query; none when the index cannot be used. One that is damaged is thrown away."""
    path = home() / "files.sqlite"
    rows: list[tuple[Any, ...]] = []
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10)) as database, database:
            database.execute(TABLE)
            for value in values:
                rows = database.execute(query, value).fetchall()
    except (sqlite3.OperationalError, PermissionError) as e:  # locked for long, full, or a folder that cannot be written
        log.info("%s: %s; going on without", path, e)
    except sqlite3.DatabaseError as e:
        log.warning("%s: %s; starting it anew", path, e)
        path.unlink(missing_ok=True)
    return rows
