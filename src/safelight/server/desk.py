"""The durable queue and the history of prompts, in SQLite, written by one thread.

What a method returned is on the disk. Many calls that wait at the same time share one commit.
"""
from __future__ import annotations

import asyncio
import json
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
Do = Callable[[sqlite3.Connection], Any]
Publish = Callable[[], tuple[str, list[tuple[str, str]]]]

WAL_SOUND = (3, 51, 3)
"""The first SQLite whose write-ahead log cannot be damaged by a reset at the wrong moment (sqlite.org/wal.html#walresetbug)."""

TOGETHER = 64
"""Most calls that share a commit."""

NO_SPACE = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR}
ENDED = ("done", "failed", "cancelled")

TABLES = """
CREATE TABLE IF NOT EXISTS jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, number REAL NOT NULL, state TEXT NOT NULL, client TEXT NOT NULL,
    prompt TEXT NOT NULL, extra TEXT NOT NULL, ends TEXT NOT NULL, words TEXT NOT NULL, created REAL NOT NULL, started REAL, ended REAL,
    deaths INTEGER NOT NULL DEFAULT 0, suspect INTEGER NOT NULL DEFAULT 0, outputs TEXT NOT NULL DEFAULT '{}',
    messages TEXT NOT NULL DEFAULT '[]', moves TEXT NOT NULL DEFAULT ''
);
CREATE INDEX IF NOT EXISTS by_state ON jobs (state, number, seq);
CREATE INDEX IF NOT EXISTS by_end ON jobs (ended);
CREATE INDEX IF NOT EXISTS unmoved ON jobs (seq) WHERE moves != '';
CREATE TABLE IF NOT EXISTS told (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""
COLUMNS = "seq, id, number, state, client, prompt, extra, ends, created, started, ended, deaths, suspect, outputs, messages"


class Full(OSError):
    """There is no room on the disk; nothing was changed."""


class Taken(Exception):
    """There is one of that id already."""


@dataclass(frozen=True)
class Job:
    """A prompt on the desk. `prompt`, `extra`, `ends`, `outputs` and `messages` are JSON; times are seconds since 1970."""

    seq: int
    id: str
    number: float
    state: str
    client: str
    prompt: str
    extra: str
    ends: str
    created: float
    started: float | None = None
    ended: float | None = None
    deaths: int = 0
    suspect: int = 0
    outputs: str = "{}"
    messages: str = "[]"

    @property
    def item(self) -> str:
        """As it stands in ComfyUI's queue and history: [number, id, prompt, extra_data, outputs]."""
        number = int(self.number) if self.number == int(self.number) else self.number
        return f"[{number},{json.dumps(self.id)},{self.prompt},{self.extra},{self.ends}]"


@dataclass(frozen=True)
class Wanted:
    """Which jobs to list: states, words that all must be in the prompt, whether it must have run, when it came, order and part."""

    states: Sequence[str] = ENDED
    words: str = ""
    ran: bool = False
    since: float = 0.0
    until: float = 1e12
    by: str = "created"
    newest: bool = True
    limit: int = 1000
    offset: int = 0

    def where(self) -> tuple[str, list[Any]]:
        """The condition in SQL, and its values."""
        likes = ["%" + "".join("\\" + c if c in "\\%_" else c for c in w) + "%" for w in self.words.lower().split()]
        text = f"state IN ({','.join('?' * len(self.states))}) AND created BETWEEN ? AND ?" + " AND words LIKE ? ESCAPE '\\'" * len(likes)
        return text + " AND started IS NOT NULL" * self.ran, [*self.states, self.since, self.until, *likes]


ORDERS = {"created": "created", "ended": "ended", "duration": "ended - started", "queue": "number"}


@dataclass
class _Call:
    do: Do
    after: Callable[[], None] | None = None
    future: Future[Any] = field(default_factory=Future)


class Desk:
    """The queue and the history in the file `path`."""

    def __init__(self, path: Path) -> None:
        self.remaining = 0
        self.paused = False
        self.room: Callable[[], bool] = lambda: False
        """Whether a prompt that comes now can begin; asked on the desk's thread."""
        self._settled: list[str] = []
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(path, opened), name="desk", daemon=True)
        self._thread.start()
        opened.result()

    def close(self) -> None:
        """End the thread after what it has still to do."""
        self._calls.put(None)
        self._thread.join()

    # The thread.

    def _work(self, path: Path, opened: Future[None]) -> None:
        try:
            base = _open(path)
            self.paused = base.execute("SELECT 1 FROM told WHERE key = 'paused' AND value = '1'").fetchone() is not None
            self._count(base)
        except (sqlite3.Error, OSError) as e:
            opened.set_exception(e)
            return
        opened.set_result(None)
        calls: list[_Call | None] = []
        while None not in calls:
            calls = [self._calls.get()]
            while len(calls) < TOGETHER and calls[-1] is not None and not self._calls.empty():
                calls.append(self._calls.get())
            self._commit(base, [c for c in calls if c is not None])
        base.close()

    def _commit(self, base: sqlite3.Connection, calls: Sequence[_Call]) -> None:
        """One transaction; a call that fails leaves the others' work as it is, a full disk takes all back."""
        done: list[tuple[_Call, Any, BaseException | None]] = []
        try:
            base.execute("BEGIN IMMEDIATE")
            settled = len(self._settled)
            base.executemany("UPDATE jobs SET moves = '' WHERE id = ?", [(id,) for id in self._settled])
            for call in calls:
                done.append((call, *_tried(base, call.do)))
            self._count(base)
            base.execute("COMMIT")
        except sqlite3.Error as e:
            if base.in_transaction:
                base.execute("ROLLBACK")
            for call in calls:
                call.future.set_exception(_named(e))
            return
        del self._settled[:settled]
        for call, value, error in done:
            if error is not None:
                call.future.set_exception(error)
                continue
            if call.after is not None:
                call.after()
            call.future.set_result(value)

    def _count(self, base: sqlite3.Connection) -> None:
        self.remaining = base.execute("SELECT count(*) FROM jobs WHERE state IN ('pending', 'running')").fetchone()[0]

    async def do(self, what: Callable[[sqlite3.Connection], T], after: Callable[[], None] | None = None) -> T:
        """Run on the desk's thread, within a transaction that is committed when this returns; `after` runs there once it is, before
        anybody can read of it. Full when there is no room."""
        call = _Call(what, after)
        self._calls.put(call)
        found: T = await asyncio.shield(asyncio.wrap_future(call.future))  # a caller that goes does not take its call back
        return found

    # The queue.

    async def put(self, id: str, prompt: str, extra: str, ends: str, *, words: str = "", client: str = "", number: float | None = None,
                  front: bool = False) -> Job:
        """Take a prompt in. A lower number runs first; without one it is counted up, and `front` negates it. While there is `room` and none
        waits before it, it is running at once, which `take` would say in a commit of its own. Taken when the id is."""
        now = time.time()

        def do(base: sqlite3.Connection) -> Job:
            first = self.room() and not self.paused and not _jobs(base, "state = 'pending' LIMIT 1")
            state, started = ("running", now) if first else ("pending", None)
            row = (state, id, client, prompt, extra, ends, words.lower(), now, started)
            columns = "(number, state, id, client, prompt, extra, ends, words, created, started)"
            try:
                seq = int(base.execute(f"INSERT INTO jobs {columns} VALUES (0,?,?,?,?,?,?,?,?,?)", row).lastrowid or 0)
            except sqlite3.IntegrityError as e:
                raise Taken(f"there is a prompt {id!r} already") from e
            at = number if number is not None else -seq if front else seq
            base.execute("UPDATE jobs SET number = ? WHERE seq = ?", (at, seq))
            return Job(seq, id, at, state, client, prompt, extra, ends, now, started)

        return await self.do(do)

    async def take(self, most: int, *, idle: bool) -> list[Job]:
        """Up to `most` next ones, now running. One that was running when a worker died goes alone, to an idle worker."""

        def do(base: sqlite3.Connection) -> list[Job]:
            found = _jobs(base, "state = 'pending' ORDER BY number, seq LIMIT ?", [most]) if not self.paused else []
            alone = next((i for i, job in enumerate(found) if job.suspect), len(found))
            chosen = found[:alone] or (found[:1] if idle else [])
            now = time.time()
            base.executemany("UPDATE jobs SET state = 'running', started = ? WHERE seq = ?", [(now, j.seq) for j in chosen])
            return chosen

        return await self.do(do)

    async def give_back(self, ids: Sequence[str], *, died: bool = False) -> list[Job]:
        """Running ones wait again. `died`: their worker did; one that was alone with it is to blame, of several none."""
        sql = "UPDATE jobs SET state = 'pending', started = NULL, suspect = suspect OR ?, deaths = deaths + ? WHERE state = 'running'"
        given = [died, died and len(ids) == 1, *ids]
        return await self.do(lambda base: [Job(*row) for row in base.execute(f"{sql}{_among(ids)} RETURNING {COLUMNS}", given)])

    async def finish(self, id: str, state: str, messages: str, publish: Publish | None = None) -> Job | None:
        """End one; None when it has ended already. `publish` says on the desk's thread which outputs there are (JSON) and which files are
        to be moved for that; they are in place before anybody can read of them, after a crash at the next start."""
        moves: list[tuple[str, str]] = []

        def do(base: sqlite3.Connection) -> Job | None:
            if not _jobs(base, "id = ? AND state IN ('running', 'pending')", [id]):
                return None
            outputs, moves[:] = publish() if publish else ("{}", [])
            base.execute(
                "UPDATE jobs SET state = ?1, started = coalesce(started, ?2), ended = ?2, messages = ?3, outputs = ?4, moves = ?5 "
                "WHERE id = ?6",
                (state, time.time(), messages, outputs, json.dumps(moves) if moves else "", id),
            )
            return _jobs(base, "id = ?", [id])[0]

        def after() -> None:
            moved(moves)
            self._settled += [id] if moves else []

        return await self.do(do, after)

    async def cancel(self, ids: Sequence[str] | None) -> list[Job]:
        """Take waiting ones out of the queue (all of them without ids); those that were."""
        sql = f"UPDATE jobs SET state = 'cancelled', ended = ? WHERE state = 'pending'{_among(ids)} RETURNING {COLUMNS}"
        return await self.do(lambda base: [Job(*row) for row in base.execute(sql, [time.time(), *(ids or ())])])

    async def pause(self, paused: bool) -> None:
        """Hand nothing out, or go on."""
        await self.do(lambda base: base.execute("INSERT OR REPLACE INTO told VALUES ('paused', ?)", (str(int(paused)),)))
        self.paused = paused

    async def move(self, id: str, before: str | None) -> bool:
        """Put a waiting one before another, or last; False when one of them does not wait."""

        def do(base: sqlite3.Connection) -> bool:
            order = [j for j in _jobs(base, "state = 'pending' ORDER BY number, seq") if j.id != id]
            at = next((i for i, j in enumerate(order) if j.id == before), -1) if before is not None else len(order)
            low = order[at - 1].number if at > 0 else order[0].number - 2 if order else 0
            high = order[at].number if 0 <= at < len(order) else low + 2
            sql = "UPDATE jobs SET number = ? WHERE id = ? AND state = 'pending'"
            return at >= 0 and bool(base.execute(sql, ((low + high) / 2, id)).rowcount)

        return await self.do(do)

    # What there is.

    async def job(self, id: str) -> Job | None:
        """One by its id."""
        found = await self.do(lambda base: _jobs(base, "id = ?", [id]))
        return found[0] if found else None

    async def waiting(self) -> list[Job]:
        """Those that run, then those that wait, in order."""
        return await self.do(lambda base: _jobs(base, "state IN ('pending', 'running') ORDER BY state DESC, number, seq"))

    async def find(self, wanted: Wanted) -> tuple[list[Job], int]:
        """Those that fit, and how many there are in all."""
        where, values = wanted.where()
        order = f"{ORDERS[wanted.by]} {'DESC' if wanted.newest else 'ASC'}, seq {'DESC' if wanted.newest else 'ASC'}"

        def do(base: sqlite3.Connection) -> tuple[list[Job], int]:
            total = base.execute(f"SELECT count(*) FROM jobs WHERE {where}", values).fetchone()[0]
            return _jobs(base, f"{where} ORDER BY {order} LIMIT ? OFFSET ?", [*values, wanted.limit, wanted.offset]), total

        return await self.do(do)

    async def forget(self, ids: Sequence[str] | None) -> None:
        """Take ended ones out of the history (all of them without ids)."""
        await self.do(lambda base: base.execute(f"DELETE FROM jobs WHERE state IN {ENDED}{_among(ids)}", ids or []))

    async def recover(self) -> None:
        """After a start: put what a dead server left half done in order. What ran waits again, files are moved to their places."""

        def do(base: sqlite3.Connection) -> None:
            for id, moves in base.execute("SELECT id, moves FROM jobs WHERE moves != ''").fetchall():
                moved(json.loads(moves))
                self._settled.append(id)
            base.execute("UPDATE jobs SET state = 'pending', started = NULL WHERE state = 'running'")

        await self.do(do)


def moved(moves: Iterable[Sequence[str]]) -> None:
    """Rename files that are not renamed yet."""
    for source, target in moves:
        try:
            os.replace(source, target)
        except FileNotFoundError:
            continue


def _open(path: Path) -> sqlite3.Connection:
    base = sqlite3.connect(path, isolation_level=None)
    base.execute("PRAGMA locking_mode = EXCLUSIVE")  # the folder is this server's alone; so nothing is asked twice
    base.execute(f"PRAGMA journal_mode = {'WAL' if sqlite3.sqlite_version_info >= WAL_SOUND else 'DELETE'}")
    base.execute("PRAGMA synchronous = FULL")
    base.executescript(TABLES)
    return base


def _among(ids: Sequence[str] | None) -> str:
    return "" if ids is None else f" AND id IN ({','.join('?' * len(ids))})"


def _jobs(base: sqlite3.Connection, where: str, values: Sequence[Any] = ()) -> list[Job]:
    return [Job(*row) for row in base.execute(f"SELECT {COLUMNS} FROM jobs WHERE {where}", values)]


def _tried(base: sqlite3.Connection, do: Do) -> tuple[Any, BaseException | None]:
    """What the call returned, or what it raised, in which case it changed nothing. A full disk ends the whole transaction."""
    base.execute("SAVEPOINT one")
    try:
        return do(base), None
    except Exception as e:
        if isinstance(e, sqlite3.Error) and isinstance(_named(e), Full):
            raise
        base.execute("ROLLBACK TO one")
        return None, e


def _named(e: sqlite3.Error) -> Exception:
    code = getattr(e, "sqlite_errorcode", 0) & 0xFF
    return Full("no room on the disk for the queue; nothing was changed") if code in NO_SPACE else e
