"""Where a run's results lie and what became of its rows. The files take their places together, at the end."""
from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from glob import escape
from pathlib import Path
from typing import IO

from safelight.data.juicer.recipe import Recipe
from safelight.data.juicer.rows import encoder
from safelight.data.juicer.shard import Drop

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


def empty_outcome(recipe: Recipe) -> Outcome:
    """Where the results of a recipe are to lie; nothing read yet. Without an operator that measures there is no file of stats."""
    measured = any(s.operator.kind not in ("mapper", "pick") and s.name != "suffix_filter" for s in recipe.steps)
    stats, dropped = (recipe.result.with_name(f"{recipe.result.stem}_{name}.jsonl") for name in ("stats", "dropped"))
    return Outcome(recipe.result, stats if measured else None, dropped)


def drop_lines(drops: Sequence[Drop]) -> list[str]:
    """What the list of dropped rows says of them."""
    encode = encoder()
    return [encode({"line": d.number, "by": d.by, "reason": d.reason, "fault": d.fault}) + "\n" for d in drops]


@contextmanager
def appearing(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Files to write in; they take their places, flushed to the disk, when the block ends, and vanish when it fails.

    What a killed run left behind is removed by the next one.
    """
    from safelight import locks
    from safelight.disk import place

    folder, stem = paths[0].parent, paths[0].stem
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f".{escape(stem)}.*/{LOCK}"):
        if not locks.held(left):
            removed(left.parent)
    work = folder / f".{stem}.{os.getpid()}"
    work.mkdir(exist_ok=True)
    with locks.locked(work / LOCK):
        try:
            with ExitStack() as stack:
                yield [stack.enter_context(open(work / p.name, "wb")) for p in paths]
            for path in paths:
                place(work, path, partial(os.replace, work / path.name))
        finally:
            removed(work)


def removed(folder: Path) -> None:
    """Take a folder away with all that is in it; what cannot go stays for the next run."""
    with suppress(OSError):
        for file in folder.iterdir():
            removed(file) if file.is_dir() else file.unlink()
        folder.rmdir()
