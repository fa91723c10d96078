"""Reading rows as Data-Juicer does: every row gets the columns of all, numbers of a column one type, relative paths become absolute."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from json.scanner import make_scanner
from pathlib import Path
from typing import Any, NamedTuple

from safelight.data.juicer.recipe import Recipe
from safelight.data.juicer.registry import SUFFIX, Sample

_read = json.JSONDecoder().raw_decode
_scan = make_scanner(json.JSONDecoder())  # type: ignore[arg-type]  # typeshed asks for the wrong class
DEEPEST = 100
"""Levels of lists and objects in a row. Python's own limit is a few times that."""
NUMBERS = (int, float)
Shape = Any
"""What a value looks like: a type, ("list", shape) or {column: shape}; None: nothing but null was seen."""


class Uneven(Exception):
    """Rows have different columns, or one column whole numbers and fractions: the shape of them all must be known before one is used."""


class Fault(NamedTuple):
    """A line that holds no row."""

    number: int
    reason: str


class Source(NamedTuple):
    """Where rows come from and how they are made alike: the file, the columns that hold paths, those that must hold text."""

    path: Path
    paths: tuple[str, ...]
    texts: tuple[str, ...]
    suffix: bool


def source(path: Path, recipe: Recipe) -> Source:
    """How a recipe reads one of its files."""
    keys = recipe.keys
    suffix = bool(keys["suffixes"]) or any(s.name == "suffix_filter" for s in recipe.steps)
    return Source(path, (keys["image_key"], keys["audio_key"], keys["video_key"]), tuple(recipe.text_keys), suffix)


def parse(numbered: Sequence[tuple[int, bytes]], where: Source, alike: Alike) -> tuple[list[Sample], list[Fault]]:
    """Rows of lines, and the lines that are none. Uneven when `alike` meets a row of another shape and was not given that of all."""
    samples, faults = [], []
    folder = str(where.path.parent).rstrip("/")
    for number, line in numbered:
        row: Any = None
        try:
            text = str(line, "utf-8").strip()
            row, end = _scan(text, 0)
        except (ValueError, StopIteration, RecursionError):
            end = -1
        if row.__class__ is not dict or end != len(text) or b"\\ud" in line or b"\\uD" in line or (
                len(line) > 2 * DEEPEST and line.count(b"[") + line.count(b"{") > DEEPEST):
            row = row_of(line)  # says what is wrong with it, if anything is
            if isinstance(row, str):
                faults.append(Fault(number, row))
                continue
        row = alike(row)
        missing = [k for k in where.texts if row.get(k) is None]
        if missing:
            faults.append(Fault(number, f"{missing[0]} is missing"))
            continue
        absolute(row, where, folder)
        samples.append(Sample(number, row))
    return samples, faults


def row_of(line: bytes) -> dict[str, Any] | str:
    """The row, or what is wrong with the line."""
    try:
        text = str(line, "utf-8").strip()
        row, end = _read(text)
        if end != len(text):
            raise ValueError(f"more after the {end} characters of the row")
        if b"\\ud" in line or b"\\uD" in line:
            json.dumps(row, ensure_ascii=False).encode()  # half of a pair could be read and not written
        if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(row) > DEEPEST:
            raise RecursionError
    except RecursionError:
        return f"nested in more than {DEEPEST} levels"
    except UnicodeEncodeError:
        return "not Unicode: half of a surrogate pair"
    except ValueError as error:  # no JSON, or not UTF-8
        return f"not JSON: {error}"
    return row if isinstance(row, dict) else "not a JSON object"


def _depth(value: Any) -> int:
    """How many lists and objects lie in each other; counted without recursion."""
    depth, level = 0, [value]
    while level := [v for v in level if isinstance(v, list | dict)]:
        depth, level = depth + 1, [inner for v in level for inner in (v.values() if isinstance(v, dict) else v)]
    return depth


def shape_among(numbered: Iterable[tuple[int, bytes]]) -> Shape:
    """The shape of the rows of lines."""
    shape: Shape = None
    seen: set[object] = set()
    for _, line in numbered:
        row = row_of(line)
        if not isinstance(row, str) and (mark := _mark(row)) not in seen:
            seen.add(mark)
            shape = merged(shape, shape_of(row))
    return shape


class Alike:
    """Makes rows alike. Without a shape it passes them on as long as they are; then it raises Uneven. Plain data, one a process."""

    def __init__(self, shape: Shape = None) -> None:
        self.shape, self.given, self._seen = shape, shape is not None, set[object]()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with all columns, in the common order."""
        mark = _mark(row)
        if mark in self._seen:
            return row
        own = shape_of(row)
        if self.shape is not None and not _fits(own, self.shape):
            if not self.given:
                raise Uneven
            made: dict[str, Any] = conformed(row, self.shape)
            return made
        self.shape = merged(self.shape, own)
        self._seen.add(mark)
        return row


NESTED, TEXTS = frozenset({dict, list}), frozenset({str})


def _mark(value: Any) -> object:
    """Equal for values of one shape; cheaper than the shape."""
    if value.__class__ is dict:
        return (*value, *[k if (k := v.__class__) not in NESTED else _mark(v) for v in value.values()])
    if len(value) == 1 and value[0].__class__ is str:  # a path: nearly every list there is
        return TEXTS
    return frozenset([k if (k := v.__class__) not in NESTED else _mark(v) for v in value])


def _fits(own: Shape, shape: Shape) -> bool:
    """Whether a value of one shape may stay as it is among values of the other."""
    if own is None:
        return True
    if isinstance(own, dict):
        return isinstance(shape, dict) and list(own) == list(shape) and all(_fits(v, shape[k]) for k, v in own.items())
    if isinstance(own, tuple):
        return shape is None or (isinstance(shape, tuple) and _fits(own[1], shape[1]))
    return own == shape or own not in NUMBERS or shape not in NUMBERS


def absolute(row: dict[str, Any], where: Source, folder: str) -> None:
    """Paths of the row that are not absolute are relative to the folder."""
    for key in where.paths:
        paths = row.get(key)
        if paths and paths.__class__ is list:
            row[key] = [p if p.__class__ is not str or p[:1] == "/" or "://" in p else f"{folder}/{p}" for p in paths]
    if where.suffix:
        row[SUFFIX] = where.path.suffix


def encoder() -> Callable[[Any], str]:
    """A value as JSON on one line, as Data-Juicer writes it. Twice as fast as json.dumps, which makes its encoder anew at every call."""
    plain = json.JSONEncoder(ensure_ascii=False)
    make = vars(json.encoder).get("c_make_encoder")
    if make is None:  # another Python than CPython
        return plain.encode
    encode = make(None, plain.default, json.encoder.encode_basestring, None, ": ", ", ", False, False, True)
    return lambda value: "".join(encode(value, 0))


def shape_of(value: Any) -> Shape:
    """The shape of one value."""
    if isinstance(value, dict):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, list):
        inner = None
        for item in value:
            inner = merged(inner, shape_of(item))
        return ("list", inner)
    return None if value is None else type(value)


def merged(a: Shape, b: Shape) -> Shape:
    """The shape that holds both: all columns in the order they were first seen, int and float as float."""
    if a is None or b is None or a == b:
        return b if a is None else a
    if isinstance(a, dict) and isinstance(b, dict):
        return {**a, **{k: merged(a.get(k), v) for k, v in b.items()}}
    if isinstance(a, tuple) and isinstance(b, tuple):
        return ("list", merged(a[1], b[1]))
    return float if a in NUMBERS and b in NUMBERS else object


def conformed(value: Any, shape: Shape) -> Any:
    """The value in the shape: columns that it lacks are None, integers floats where others are. What does not fit stays as it is."""
    if isinstance(shape, dict) and isinstance(value, dict):
        return {k: conformed(value.get(k), inner) for k, inner in shape.items()}
    if isinstance(shape, tuple) and isinstance(value, list):
        return [conformed(v, shape[1]) for v in value]
    return float(value) if shape is float and type(value) is int else value
