"""Running a recipe on this machine: rows stream through `run_shard` shard by shard, and the results appear together at the end."""
from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from itertools import islice
from pathlib import Path
from typing import IO, Any

from safelight.data.juicer.recipe import Recipe, sources
from safelight.data.juicer.registry import STATS, Sample
from safelight.data.juicer.rows import Alike, Shape, Uneven, encoder, lines, parse, scan, source
from safelight.data.juicer.shard import Drop, Stage, run_shard, stages

SHARD = 2000
"""Rows at a time: what is in memory."""
LOCK = "writing"


@dataclass
class Outcome:
    """Where the results lie; rows read and kept; `dropped` counts by operator, `faults` the rows that could not be used."""

    result: Path
    stats: Path | None
    dropped_list: Path
    read: int = 0
    kept: int = 0
    faults: int = 0
    dropped: Counter[str] = field(default_factory=Counter)


def run_recipe(recipe: Recipe, *, known: Path | None = None, shard: int = SHARD) -> Outcome:
    """Run a checked recipe; `known` is the file of kept measures. Writes result.jsonl, result_stats.jsonl and result_dropped.jsonl.

    A row that cannot be read, or whose files cannot, is dropped and listed. ValueError when the data are not there.
    """
    files = sources(recipe)
    try:
        return _run(recipe, files, known, shard, None)
    except Uneven:
        return _run(recipe, files, known, shard, scan(files))


def empty_outcome(recipe: Recipe) -> Outcome:
    """Where the results of a recipe are to lie; nothing read yet. Without an operator that measures there is no file of stats."""
    measured = any(s.operator.kind not in ("mapper", "pick") and s.name != "suffix_filter" for s in recipe.steps)
    stats, dropped = (recipe.result.with_name(f"{recipe.result.stem}_{name}.jsonl") for name in ("stats", "dropped"))
    return Outcome(recipe.result, stats if measured else None, dropped)


def _run(recipe: Recipe, files: Sequence[Path], known: Path | None, shard: int, shape: Shape) -> Outcome:
    plan, outcome = stages(recipe, known), empty_outcome(recipe)
    told = outcome.stats
    with appearing([p for p in (outcome.result, told, outcome.dropped_list) if p]) as written, Spools() as spools:
        shards = _shards(recipe, files, shard, alike=Alike(shape), outcome=outcome, dropped=written[-1])
        for stage in plan:
            shards = _staged(shards, stage, outcome=outcome, dropped=written[-1], spools=spools)
        encode = encoder()
        for samples in shards:
            outcome.kept += len(samples)
            if told:
                written[1].writelines([encode({STATS: s.stats}) + "\n" for s in samples])
            with_stats = recipe.keys["keep_stats_in_res_ds"] and told is not None
            written[0].writelines([encode({**s.row, STATS: s.stats} if with_stats else s.row) + "\n" for s in samples])
    return outcome


def _shards(
    recipe: Recipe, files: Sequence[Path], size: int, *, alike: Alike, outcome: Outcome, dropped: IO[str],
) -> Iterator[list[Sample]]:
    """The rows of all files, a shard at a time; lines that hold none are listed."""
    first = 1
    for path in files:
        where, numbered = source(path, recipe), lines(path, first)
        while taken := list(islice(numbered, size)):
            samples, faults = parse(taken, where, alike)
            outcome.read += len(taken)
            first = taken[-1][0] + 1
            _list([Drop(f.number, "reading", f.reason, fault=True) for f in faults], outcome, dropped)
            yield samples


def _staged(
    shards: Iterator[list[Sample]], stage: Stage, *, outcome: Outcome, dropped: IO[str], spools: Spools,
) -> Iterator[list[Sample]]:
    """The shards after a stage. One that chooses among all rows puts them aside first; only keys stay in memory."""
    if stage.pick is None:
        for samples in shards:
            done = run_shard(samples, stage)
            _list(done.drops, outcome, dropped)
            yield done.kept
        return
    spool, keys = spools.new(), list[Any]()
    for samples in shards:
        done = run_shard(samples, stage)
        _list(done.drops, outcome, dropped)
        spool.add(done.kept)
        keys += done.keys
    choose = stage.pick.operator.choose
    assert choose is not None
    order = choose(keys, stage.pick.settings)
    chosen = set(order)
    left = [spool.numbers[i] for i in range(len(keys)) if i not in chosen]
    _list([Drop(number, stage.pick.name, "not chosen") for number in left], outcome, dropped)
    for at in range(0, len(order), SHARD):
        yield [spool.get(i) for i in order[at:at + SHARD]]


def _list(drops: Sequence[Drop], outcome: Outcome, dropped: IO[str]) -> None:
    outcome.dropped.update(d.by for d in drops)
    outcome.faults += sum(d.fault for d in drops)
    dropped.writelines(drop_lines(drops))


def drop_lines(drops: Sequence[Drop]) -> list[str]:
    """What the list of dropped rows says of them."""
    encode = encoder()
    return [encode({"line": d.number, "by": d.by, "reason": d.reason, "fault": d.fault}) + "\n" for d in drops]


class Spool:
    """Rows put aside on the disk, to be taken back in any order."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._places, self.numbers = file, array("q"), array("q")

    def add(self, samples: Sequence[Sample]) -> None:
        """Put rows aside."""
        for sample in samples:
            self._places.append(self._file.tell())
            self.numbers.append(sample.number)
            self._file.write(json.dumps([sample.row, sample.stats]).encode() + b"\n")

    def get(self, i: int) -> Sample:
        """The i-th row."""
        if self._file.tell() != self._places[i]:
            self._file.seek(self._places[i])
        row, stats = json.loads(self._file.readline())
        return Sample(self.numbers[i], row, stats)


class Spools:
    """The spools of a run; they vanish with it."""

    def __init__(self) -> None:
        self._stack = ExitStack()

    def new(self) -> Spool:
        """An empty one."""
        import tempfile

        return Spool(self._stack.enter_context(tempfile.TemporaryFile()))

    def __enter__(self) -> Spools:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


@contextmanager
def appearing(paths: Sequence[Path]) -> Iterator[list[IO[str]]]:
    """Files to write in; they take their places, flushed to the disk, when the block ends, and vanish when it fails.

    What a killed run left behind is removed by the next one.
    """
    from safelight import locks
    from safelight.disk import place

    folder, stem = paths[0].parent, paths[0].stem
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{escape(stem)}.*/{LOCK}"):
        if not locks.held(left):
            _removed(left.parent)
    work = folder / f".{stem}.{os.getpid()}"
    work.mkdir(exist_ok=True)
    with locks.locked(work / LOCK):
        try:
            with ExitStack() as stack:
                yield [stack.enter_context(open(work / p.name, "w", encoding="utf-8", newline="")) for p in paths]
            for path in paths:
                place(work, path, partial(os.replace, work / path.name))
        finally:
            _removed(work)


def _removed(folder: Path) -> None:
    with suppress(OSError):  # what cannot go stays for the next run
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
