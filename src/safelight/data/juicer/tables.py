"""Rows that are no JSON lines: packed, a JSON array, CSV, Parquet, or drawn from several data. They become a file of lines.

Columns of a CSV become numbers or truth values where all their cells are; an empty cell is missing.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from safelight.data.juicer.recipe import Group, Recipe, kind
from safelight.data.juicer.rows import absolute, row_of, source
from safelight.disk import place

BATCH = 2000
Paths = Sequence[str]
"""Columns that hold paths; text there is one path, or a list of them as JSON."""


def lined(groups: Sequence[Group], recipe: Recipe, folder: Path) -> list[tuple[Path, Path]]:
    """(file of JSON lines, file that its paths are relative to); what is no JSON lines is written into the folder, once.

    ValueError for a file that is not what its name says.
    """
    found: list[tuple[Path, Path]] = []
    for group in groups:
        before = len(found)
        for path in group.files:
            read = READERS[kind(path)]
            found.append((_once(folder / f"{len(found)}.rows", partial(_read, read, path, recipe)) if read else path, path))
        if group.take is not None:
            own = found[before:]
            found[before:] = [(_once(folder / f"{before}.drawn", partial(_drawn, own, group.take, recipe)), own[0][1])] if own else []
    return found


def _once(path: Path, lines: Callable[[], Iterator[bytes]]) -> Path:
    def write(to: Path) -> None:
        with open(to, "wb") as f:
            f.writelines(line if line.endswith(b"\n") else line + b"\n" for line in lines())

    if not path.exists():
        place(path.parent, path, write)
    return path


def _read(read: Callable[[Path, Paths], Iterator[bytes]], path: Path, recipe: Recipe) -> Iterator[bytes]:
    import csv

    try:
        yield from read(path, source(path, recipe).paths)
    except (ValueError, EOFError, OSError, csv.Error) as error:
        raise ValueError(f"dataset_path: {path} cannot be read: {error}") from error


def _drawn(files: Sequence[tuple[Path, Path]], take: int, recipe: Recipe) -> Iterator[bytes]:
    """As many rows as asked for, in Data-Juicer's order; behind them lines that hold none, which are listed when they are read."""
    from safelight.data.juicer.fields import drawn

    whole, rest = list[bytes](), list[bytes]()
    for path, of in files:
        where = source(of, recipe)
        for line in filter(bytes.strip, path.read_bytes().splitlines()):
            row = row_of(line)
            if isinstance(row, dict) and all(row.get(k) is not None for k in recipe.text_keys):
                absolute(row, where, str(of.parent).rstrip("/"))
                whole.append(json.dumps(row, ensure_ascii=False).encode())
            else:
                rest.append(line)
    yield from (whole[i] for i in (drawn(len(whole), take) if whole else ()))
    yield from rest


def _json(path: Path, paths: Paths) -> Iterator[bytes]:
    """An array of objects, read as a whole; or lines, whatever the name says."""
    import gzip

    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as f:
        first = next((line for line in f if line.strip()), b"")
        f.seek(0)
        if first.lstrip()[:1] != b"[" or ".jsonl" in path.suffixes:
            yield from f
        else:
            yield from (json.dumps(row, ensure_ascii=False).encode() for row in json.load(f))


MISSING = frozenset({"", "NA", "N/A", "n/a", "nan", "NaN", "null", "NULL", "None", "#N/A", "<NA>"})
"""Cells that stand for nothing among numbers; in a column of texts only the empty one does."""
TRUTH = {"True": True, "TRUE": True, "true": True, "False": False, "FALSE": False, "false": False}


def _csv(path: Path, paths: Paths, *, delimiter: str = ",") -> Iterator[bytes]:
    import csv

    with open(path, encoding="utf-8-sig", newline="") as f:
        found = csv.reader(f, delimiter=delimiter)
        names = next(found, [])
        reads = [_listed if n in paths else r for n, r in zip(names, _readings(len(names), found), strict=True)]
        f.seek(0)
        next(found, None)
        for cells in filter(None, found):
            told: Any = dict(zip(names, map(_cell, reads, cells), strict=False)) if len(cells) <= len(names) else f"{len(cells)} cells"
            yield json.dumps(told, ensure_ascii=False).encode()


def _readings(count: int, rows: Iterable[Sequence[str]]) -> list[Callable[[str], Any]]:
    """For every column the first of READS that fits all of its cells; whole numbers with gaps are fractions, as in pandas."""
    fits, gaps = [list(READS) for _ in range(count)], set[int]()
    for cells in rows:
        for i, cell in enumerate(cells[:count]):
            if cell in MISSING:
                gaps.add(i)
            while cell not in MISSING and not _can(fits[i][0], cell):
                fits[i].pop(0)
    return [float if left[0] is int and i in gaps else left[0] for i, left in enumerate(fits)]


READS: tuple[Callable[[str], Any], ...] = (TRUTH.__getitem__, int, float, str)


def _can(read: Callable[[str], Any], cell: str) -> bool:
    try:
        read(cell)
    except (KeyError, ValueError):
        return False
    return read is str or "_" not in cell  # Python reads 1_000 as a number


def _cell(read: Callable[[str], Any], cell: str) -> Any:
    return None if not cell or (read not in (str, _listed) and cell in MISSING) else read(cell)


def _listed(cell: str) -> Any:
    return json.loads(cell) if cell.startswith("[") else [cell]


def _parquet(path: Path, paths: Paths) -> Iterator[bytes]:
    from safelight.data.metadata import parquet

    for batch in parquet("dataset_path: reading parquet").ParquetFile(path).iter_batches(BATCH):
        yield from (json.dumps(row, ensure_ascii=False, default=_told).encode() for row in batch.to_pylist())


def _told(value: Any) -> str:
    from datetime import date

    if isinstance(value, date):
        return value.isoformat()
    raise ValueError(f"a {type(value).__name__} cannot be in a row; `safelight collect` takes pictures out of parquet files")


READERS: Mapping[str, Callable[[Path, Paths], Iterator[bytes]] | None] = {
    ".jsonl": None, ".json": _json, ".jsonl.gz": _json, ".json.gz": _json, ".csv": _csv, ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
}
