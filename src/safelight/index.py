"""What was found out about files once and holds while they do not change, kept between processes: hashes, families, kinds. No torch.

An answer belongs to a path, a size and a time of change (nanoseconds). The index is a cache: when it is damaged or cannot be written,
answers are found anew.
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

from safelight.values import Blob

T = TypeVar("T")

log = logging.getLogger(__name__)

FRESH = 2 * 10**9
"""Nanoseconds in which a file may change again without its time of change showing it; answers about younger files are not kept."""

TABLE = "CREATE TABLE IF NOT EXISTS answers (question TEXT, path TEXT, stamp TEXT, answer TEXT, PRIMARY KEY (question, path)) WITHOUT ROWID"


def home() -> Path:
    """The folder for what Safelight keeps between runs: $SAFELIGHT_HOME or ~/.cache/safelight."""
    return Path(os.environ.get("SAFELIGHT_HOME") or "~/.cache/safelight").expanduser()


def remember(file: Path, question: str, answer: Callable[[Path], T], *, version: str = "") -> T:
    """The answer (JSON data) about a file: the kept one, or a new one that is then kept. `version` is that of whoever answers.

    OSError when the file cannot be read; what `answer` raises passes through and is not kept.
    """
    stamp = _stamp(file, version)
    kept = _ask("SELECT stamp, answer FROM answers WHERE question = ? AND path = ?", (question, os.path.abspath(file)))
    if kept and kept[0][0] == stamp:
        found: T = json.loads(kept[0][1])
        return found
    found = answer(file)
    if _stamp(file, version) == stamp and time.time_ns() - os.stat(file).st_mtime_ns > FRESH:
        _ask("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", (question, os.path.abspath(file), stamp, json.dumps(found)))
    return found


def recall(files: Iterable[Path], question: str, *, version: str = "") -> Mapping[Path, Any]:
    """The kept answers about many files at once, without those that have none or have changed."""
    rows = _ask("SELECT path, stamp, answer FROM answers WHERE question = ?", (question,))
    kept = {path: (stamp, answer) for path, stamp, answer in rows}
    found = {}
    for file in files:
        stamp, answer = kept.get(os.path.abspath(file), ("", ""))
        if stamp and stamp == _stamp(file, version):
            found[file] = json.loads(answer)
    return found


def sha256(file: Path) -> str:
    """64 hex digits; a file that did not change is read once, not once a process."""
    return remember(file, "sha256", lambda f: Blob.of(f).sha256)


def _stamp(file: Path, version: str) -> str:
    seen = os.stat(file)
    return f"{seen.st_size} {seen.st_mtime_ns} {version}"


def _ask(query: str, values: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Rows; none when the index cannot be used. One that is damaged is thrown away."""
    path = home() / "files.sqlite"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10)) as database, database:
            database.execute(TABLE)
            return database.execute(query, values).fetchall()
    except (sqlite3.OperationalError, PermissionError) as e:  # locked for long, full, or a folder that cannot be written
        log.info("%s: %s; going on without", path, e)
    except sqlite3.DatabaseError as e:
        log.warning("%s: %s; starting it anew", path, e)
        path.unlink(missing_ok=True)
    return []
