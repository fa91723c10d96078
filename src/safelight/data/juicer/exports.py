"""The rows that stay in another form than one file of JSON lines: a JSON array, Parquet, or shards of a size."""
from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from safelight.data.juicer.recipe import Recipe
from safelight.data.juicer.rows import Shape, shape_among
from safelight.disk import place

BATCH = 2000
Lines = Callable[[], Iterator[bytes]]


def export(rows: Path, recipe: Recipe) -> list[Path]:
    """Write the file of lines as the recipe wants it; the files. With export_shard_size `result-00-of-03.jsonl` and so on, of equal rows.

    A shard has about as many bytes as asked for, counted as JSON lines. ValueError for parquet without pyarrow.
    """
    size, result = recipe.keys["export_shard_size"], recipe.result
    ends = array("q", [0])
    with open(rows, "rb") as f:
        for line in f:
            ends.append(ends[-1] + len(line))
    count = len(ends) - 1
    shards = max(1, min(int(ends[-1] / size) + 1, count)) if size else 1
    width, found = len(str(shards)) + 1, list[Path]()
    for i in range(shards):
        first, last = (k * (count // shards) + min(k, count % shards) for k in (i, i + 1))
        name = f"{result.name.split('.')[0]}-{i:0{width}}-of-{shards:0{width}}{result.suffix}" if size else result.name
        found.append(result.with_name(name))
        place(rows.parent, found[-1], partial(WRITERS[result.suffix[1:]], partial(_between, rows, ends[first], ends[last])))
    return found


def _between(rows: Path, begin: int, end: int) -> Iterator[bytes]:
    with open(rows, "rb") as f:
        f.seek(begin)
        while f.tell() < end:
            yield f.readline()


def _lines(lines: Lines, to: Path) -> None:
    with open(to, "wb") as f:
        f.writelines(lines())


def _json(lines: Lines, to: Path) -> None:
    """One array on one line, as pandas writes it but for the digits of fractions, of which none are cut off."""
    with open(to, "w", encoding="utf-8") as f:
        for i, line in enumerate(lines()):
            f.write("," if i else "[")
            f.write(json.dumps(json.loads(line), ensure_ascii=False, separators=(",", ":")).replace("/", "\\/"))
        f.write("]\n" if f.tell() else "[]\n")


def _parquet(lines: Lines, to: Path) -> None:
    from safelight.data.metadata import parquet

    table = parquet("export_path: writing parquet")
    import pyarrow

    schema = pyarrow.schema({k: _typed(v) for k, v in (shape_among(enumerate(lines())) or {}).items()})
    with table.ParquetWriter(to, schema) as writer:
        told = lines()
        while rows := [json.loads(line) for line in islice(told, BATCH)]:
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))


def _typed(shape: Shape) -> Any:
    """A column's type in Arrow. ValueError for values of several kinds."""
    import pyarrow

    if isinstance(shape, dict):
        return pyarrow.struct({k: _typed(v) for k, v in shape.items()})
    if isinstance(shape, tuple):
        return pyarrow.list_(_typed(shape[1]))
    types = {None: pyarrow.null(), bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    if shape not in types:
        raise ValueError("export_type: parquet: a column holds values of several kinds; export jsonl, or make them one kind")
    return types[shape]


WRITERS: dict[str, Callable[[Lines, Path], None]] = {"jsonl": _lines, "json": _json, "parquet": _parquet}
