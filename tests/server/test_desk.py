"""The queue: order, states, what survives an end, and a full disk."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from safelight.server.desk import Desk, Full, Job, Taken, Wanted


def on(path: Path, work: Callable[[Desk], Coroutine[Any, Any, Any]]) -> Any:
    desk = Desk(path)
    try:
        return asyncio.run(work(desk))
    finally:
        desk.close()


async def put(desk: Desk, *ids: str, **more: Any) -> list[Job]:
    return [await desk.put(id, '{"1":{}}', "{}", '["1"]', words=f"words of {id}", **more) for id in ids]


def ids(jobs: list[Job]) -> list[str]:
    return [j.id for j in jobs]


def test_lower_numbers_run_first_and_front_goes_before_all(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await put(desk, "a", "b")
        await put(desk, "front", front=True)
        await put(desk, "half", number=1.5)
        assert ids(await desk.waiting()) == ["front", "a", "half", "b"]
        assert await desk.move("b", "a") and await desk.move("front", None)
        assert ids(await desk.waiting()) == ["b", "a", "half", "front"]
        assert not await desk.move("b", "nobody") and not await desk.move("nobody", "a")
        assert ids(await desk.take(2, idle=True)) == ["b", "a"]
        assert desk.remaining == 4

    on(tmp_path / "q", work)


def test_what_was_acknowledged_is_there_after_an_end(tmp_path: Path) -> None:
    async def first(desk: Desk) -> None:
        await put(desk, "a", "b", "c")
        await desk.take(1, idle=True)
        await desk.finish("a", "done", "[]", lambda: ('{"1":{}}', []))
        await desk.take(1, idle=True)
        await desk.pause(True)

    async def second(desk: Desk) -> None:
        assert desk.paused
        await desk.recover()
        assert [(j.id, j.state) for j in await desk.waiting()] == [("b", "pending"), ("c", "pending")]
        assert await desk.take(5, idle=True) == []
        await desk.pause(False)
        assert ids(await desk.take(5, idle=True)) == ["b", "c"]
        with pytest.raises(Taken):
            await put(desk, "a")
        assert (await put(desk, "d"))[0].number == 4

    on(tmp_path / "q", first)
    on(tmp_path / "q", second)


def test_files_are_in_place_when_the_history_tells_of_them(tmp_path: Path) -> None:
    (tmp_path / "staged").write_text("picture")
    moves = [(str(tmp_path / "staged"), str(tmp_path / "final"))]

    async def crashed(desk: Desk) -> None:
        await put(desk, "a")
        await desk.take(1, idle=True)
        text = json.dumps(moves)
        await desk.do(lambda base: base.execute("UPDATE jobs SET state = 'done', moves = ?", (text,)))

    async def next_time(desk: Desk) -> None:
        await desk.recover()
        assert (tmp_path / "final").read_text() == "picture" and not (tmp_path / "staged").exists()
        await desk.take(1, idle=True)
        assert (await desk.do(lambda base: base.execute("SELECT moves FROM jobs").fetchall())) == [("",)]

    on(tmp_path / "q", crashed)
    on(tmp_path / "q", next_time)


def test_finishing_moves_files_and_happens_once(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await put(desk, "a")
        await desk.take(1, idle=True)
        (tmp_path / "s").write_text("x")
        done = await desk.finish("a", "done", "[]", lambda: ('{"1":{}}', [(str(tmp_path / "s"), str(tmp_path / "f"))]))
        assert done is not None and done.state == "done" and (tmp_path / "f").exists()
        assert await desk.finish("a", "failed", "[]") is None
        assert (await desk.job("a")).state == "done"  # type: ignore[union-attr]

    on(tmp_path / "q", work)


def test_who_was_alone_with_a_dead_worker_is_to_blame_and_of_several_nobody(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await put(desk, "a", "b", "c")
        await desk.take(2, idle=True)
        assert [(j.deaths, j.suspect) for j in await desk.give_back(["a", "b"], died=True)] == [(0, 1), (0, 1)]
        assert await desk.take(8, idle=False) == []  # suspects wait for a worker of their own
        assert ids(await desk.take(8, idle=True)) == ["a"]
        assert [j.deaths for j in await desk.give_back(["a"], died=True)] == [1]
        assert await desk.finish("a", "failed", "[]") is not None
        assert ids((await desk.find(Wanted(ran=True)))[0]) == ["a"]  # it ran, so the history has it
        assert ids(await desk.cancel(["a", "b"])) == ["b"]
        assert ids(await desk.take(8, idle=False)) == ["c"]

    on(tmp_path / "q", work)


def test_the_history_is_searched_by_words_and_time(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await put(desk, "red_fox", "red hen", "blue hen")
        await desk.take(3, idle=True)
        for id in ("red_fox", "red hen", "blue hen"):
            await desk.finish(id, "failed" if id == "blue hen" else "done", "[]")
        assert [ids((await desk.find(Wanted(words=w)))[0]) for w in ("HEN", "red hen", "d_f", "%", "cow")] == [
            ["blue hen", "red hen"],
            ["red hen"],
            ["red_fox"],
            [],
            [],
        ]
        assert ids((await desk.find(Wanted(["failed"])))[0]) == ["blue hen"]
        found, total = await desk.find(Wanted(newest=False, limit=1, offset=1))
        assert ids(found) == ["red hen"] and total == 3
        assert (await desk.find(Wanted(until=1.0)))[1] == 0
        await desk.forget(["red hen"])
        assert (await desk.find(Wanted()))[1] == 2
        await desk.forget(None)
        assert (await desk.find(Wanted()))[1] == 0

    on(tmp_path / "q", work)


def test_whatever_a_call_raises_is_its_callers(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        with pytest.raises(OverflowError):
            await desk.find(Wanted(offset=10**30))
        with pytest.raises(ZeroDivisionError):
            await desk.do(lambda _: 1 // 0)
        await put(desk, "a")
        assert ids(await desk.waiting()) == ["a"]

    on(tmp_path / "q", work)


def test_a_prompt_that_has_room_and_nobody_before_it_runs_at_once(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        (waits,) = await put(desk, "no room")
        assert waits.state == "pending"
        desk.room = lambda: True
        (behind,) = await put(desk, "behind")
        assert behind.state == "pending" and ids(await desk.take(9, idle=True)) == ["no room", "behind"]
        (first,) = await put(desk, "first")
        found = await desk.job("first")
        assert first.state == "running" and first == found and await desk.take(9, idle=True) == []
        await desk.pause(True)
        (paused,) = await put(desk, "paused")
        assert paused.state == "pending"
        await desk.recover()
        assert {j.state for j in await desk.waiting()} == {"pending"}

    on(tmp_path / "q", work)


def test_a_caller_that_goes_leaves_the_others_their_answers(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        gone = asyncio.create_task(desk.do(lambda _: time.sleep(0.05)))
        await asyncio.sleep(0)  # it has asked
        gone.cancel()
        assert [j.id for j in await put(desk, "a")] == ["a"]

    on(tmp_path / "q", work)


def test_a_full_disk_refuses_and_harms_nothing(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        await put(desk, "a")
        pages = await desk.do(lambda base: base.execute("PRAGMA page_count").fetchone()[0])
        await desk.do(lambda base: base.execute(f"PRAGMA max_page_count = {pages}"))
        big = '{"1":"' + "x" * 100_000 + '"}'
        with pytest.raises(Full, match="nothing was changed"):
            await desk.put("b", big, "{}", "[]")
        assert ids(await desk.waiting()) == ["a"] and desk.remaining == 1
        await desk.do(lambda base: base.execute("PRAGMA max_page_count = 1000000"))
        await desk.put("b", big, "{}", "[]")
        assert ids(await desk.waiting()) == ["a", "b"]

    on(tmp_path / "q", work)
    with sqlite3.connect(tmp_path / "q") as base:
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_many_at_once_share_commits_and_one_that_fails_harms_no_other(tmp_path: Path) -> None:
    async def work(desk: Desk) -> None:
        wanted = [f"j{i % 90}" for i in range(100)]  # ten come twice
        results = await asyncio.gather(*(put(desk, id) for id in wanted), return_exceptions=True)
        assert sum(isinstance(r, Taken) for r in results) == 10
        assert ids(await desk.waiting()) == wanted[:90] and desk.remaining == 90

    on(tmp_path / "q", work)
