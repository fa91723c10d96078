"""Caption tables beside pictures: `metadata.csv`, `.jsonl` and `.parquet`, as imagefolder, Data-Juicer and training scripts write them."""
from __future__ import annotations

import codecs
import csv
import io
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_COLUMNS = ("file_name", "image", "images", "file", "filename", "path", "image_path")
TEXT_COLUMNS = ("text", "caption", "prompt")
MARKS = ("<__dj__image>", "<|__dj__eoc|>")  # Data-Juicer's picture and end-of-chunk tokens inside a text


@dataclass(frozen=True)
class Entry:
    """One picture named in a table: `file` as written there, its caption, the line, caption layers (by, text) below it where the table
    has them, and the other columns."""

    file: str
    text: str
    line: int
    layers: tuple[tuple[str, str], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A parsed table: its path, its entries in order, and the lines that could not be used, each with the reason."""

    path: Path
    entries: tuple[Entry, ...]
    problems: tuple[str, ...]


def plain(text: str) -> str:
    """The caption on one line: Data-Juicer's tokens removed, runs of white space made one blank."""
    for mark in MARKS:
        text = text.replace(mark, " ")
    return " ".join(text.split())


def read_text(path: Path) -> str:
    """UTF-8 with or without byte-order mark. ValueError names the file and the first byte that is not UTF-8."""
    if not S_ISREG(os.stat(path).st_mode):
        raise ValueError(f"{path} is not a file but a folder, pipe or device")
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error


def decoded(raw: bytes) -> str:
    """A caption's text, in whatever it was written: UTF-8, UTF-16 with its mark, GBK where that gives Chinese words, else Western."""
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return chinese(raw) or raw.decode("cp1252", "replace")


def chinese(raw: bytes) -> str:
    """The text in GBK, or nothing where that gives no Chinese words."""
    try:
        text = raw.decode("gb18030")
    except UnicodeDecodeError:
        return ""
    return text if re.search(r"[\u4e00-\u9fff]{2}", text) else ""


def read_table(path: Path) -> Table:
    """Parse a .csv, .jsonl or .parquet table. A line that names no picture becomes a problem; a table without a file column is a
    ValueError."""
    records = {".csv": _csv_records, ".parquet": _parquet_records}.get(path.suffix.lower(), _json_records)(path)
    entries: list[Entry] = []
    problems: list[str] = []
    for line, record in records:
        found = record if isinstance(record, str) else _entries(line, record)
        if isinstance(found, str):
            problems.append(f"{path.name} line {line}: {found}")
        else:
            entries.extend(found)
    return Table(path, tuple(entries), tuple(problems))


def parquet(doing: str) -> Any:
    """pyarrow.parquet. ValueError saying what needs it and how to get it."""
    try:
        import pyarrow.parquet as found
    except ModuleNotFoundError as e:
        raise ValueError(f"{doing} needs pyarrow; `pip install 'safelight[parquet]'` brings it") from e
    return found


def _parquet_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    table = parquet(f"{path}: reading parquet")
    import pyarrow

    try:
        rows = table.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as e:
        raise ValueError(f"{path} is no parquet file: {e}") from e
    yield from ((i, {k.lower(): v for k, v in row.items()}) for i, row in enumerate(rows, start=1))


def _csv_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
    columns = [c.strip().lower() for c in reader.fieldnames or ()]
    if not set(columns) & set(FILE_COLUMNS):
        raise ValueError(f"{path}: no column for the file; expected file_name and text, got {', '.join(columns) or 'an empty table'}")
    try:
        for record in reader:
            yield reader.line_num, {k.strip().lower(): v for k, v in record.items() if isinstance(k, str) and v is not None}
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num}: {error}") from error


def _json_records(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not JSON ({error.msg})"
            continue
        yield number, record if isinstance(record, dict) else "not a JSON object"


def _entries(line: int, record: Mapping[str, Any]) -> list[Entry] | str:
    """One entry per picture of the record, or what is wrong with it."""
    key = next((k for k in FILE_COLUMNS if record.get(k)), None)
    if key is None:
        return "names no picture"
    files = record[key] if isinstance(record[key], list) else [record[key]]
    if not all(isinstance(f, str) for f in files):
        return f"{key} is neither a path nor a list of paths"
    said = next((record[k] for k in TEXT_COLUMNS if record.get(k)), "")
    extra = {k: v for k, v in record.items() if k not in (key, *TEXT_COLUMNS) and isinstance(v, str | int | float | bool)}
    return [Entry(f, plain(str(said)), line, _layers(record.get("captions"), plain(str(said))), extra) for f in files]


def _layers(given: Any, text: str) -> tuple[tuple[str, str], ...]:
    """Layers that Safelight itself wrote: [[by, text], ...] whose last one is the caption in use; anything else is not understood."""
    if not isinstance(given, list) or not given:
        return ()
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(x, str) for x in p) for p in given):
        return ()
    return tuple((by, said) for by, said in given) if plain(given[-1][1]) == text else ()
