"""The header of a safetensors file, read alone and believed in nothing: names, dtypes, shapes, places. No torch.

The format: 8 bytes with the length n of a JSON text (little endian), the text, then the tensors' bytes without a hole or an overlap
(https://huggingface.co/docs/safetensors).
"""
from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

BITS = {
    "F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16,
    "I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}
"""Bits of one element, by the format's name of the dtype."""

LONGEST = 2**25  # bytes of a header; the format allows three times as much, and no model comes near
DEEPEST = 64  # dimensions of a tensor
RESERVED = "__metadata__"


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor: the format's dtype name, its shape, and where its bytes lie, `start` to `stop` counted from the file's begin."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """What a file says of itself: tensors by name in the file's order, its notes, and the file's size in bytes."""

    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    size: int


def read(path: str | Path) -> Header:
    """The checked header; the tensors' bytes are not read. Kept for a file that does not change, so asking again costs a `stat`.

    ValueError, naming the file, when the file is no safetensors file, is cut off, or its header lies. OSError when it cannot be read.
    """
    seen = os.stat(path)
    return _read(str(path), seen.st_size, seen.st_mtime_ns, seen.st_ino)


@lru_cache(maxsize=64)
def _read(path: str, size: int, _mtime: int, _inode: int) -> Header:
    with open(path, "rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if size < 10:
            _refuse(path, f"got a file of {size} bytes; expected at least 10")
        if length > min(size - 8, LONGEST):
            _refuse(path, f"its first 8 bytes say that the header has {length} bytes; the file has {size}, and {LONGEST} are the most"
                    " a header may have; the file is cut off or of another kind")
        text = f.read(length)
    if len(text) != length:
        _refuse(path, f"the file ended after {len(text)} of the header's {length} bytes; it is cut off")
    return parse(path, text, size)


def parse(path: str, text: bytes, size: int) -> Header:
    """The header from its JSON text, for a file of `size` bytes. ValueError as in `read`."""
    data = _json(path, text)
    notes = data.pop(RESERVED, {})
    if not isinstance(notes, dict) or not all(isinstance(v, str) for v in notes.values()):
        _refuse(path, f"{RESERVED} is no table of texts")
    begin = 8 + len(text)
    tensors = {name: _entry(path, name, told, begin) for name, told in data.items()}
    _no_holes(path, tensors, begin, size)
    return Header(tensors, notes, size)


def _json(path: str, text: bytes) -> dict[str, Any]:
    if text[:1] != b"{":
        _refuse(path, f"the header begins with {text[:8]!r}; expected '{{'")
    try:
        data = json.loads(text.decode(), object_pairs_hook=_once, parse_float=_no_number, parse_constant=_no_number)
    except RecursionError:
        _refuse(path, "the header's JSON is nested too deep; expected three levels")
    except ValueError as e:
        _refuse(path, f"the header is not JSON as expected: {e}")
    return dict(data)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {_short(twice)} is there twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"the number {text[:40]}; expected whole numbers")


def _entry(path: str, name: str, told: Any, begin: int) -> Entry:
    where = f"tensor {_short(name)}"
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"{where} has {_short(told)}; expected dtype, shape and data_offsets")
    dtype, shape, places = told["dtype"], told["shape"], told["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(path, f"{where} has dtype {_short(dtype)}; expected one of {', '.join(BITS)}")
    if not _counts(shape) or len(shape) > DEEPEST:
        _refuse(path, f"{where} has shape {_short(shape)}; expected at most {DEEPEST} whole numbers")
    if not _counts(places) or len(places) != 2 or places[0] > places[1]:
        _refuse(path, f"{where} has data_offsets {_short(places)}; expected begin and end")
    bits, (start, stop) = math.prod(shape) * BITS[dtype], places
    if bits != (stop - start) * 8:
        _refuse(path, f"{where} has {stop - start} bytes; {dtype} of shape {_short(shape)} takes {bits / 8:g}")
    return Entry(dtype, tuple(shape), begin + start, begin + stop)


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and 0 <= n < 2**63 for n in numbers)


def _no_holes(path: str, tensors: Mapping[str, Entry], begin: int, size: int) -> None:
    at = begin
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].stop)):
        if entry.start != at:
            _refuse(path, f"tensor {_short(name)} begins at byte {entry.start}; the one before ends at {at}")
        at = entry.stop
    if at != size:
        kind = "it is cut off" if at > size else "something is behind the tensors"
        _refuse(path, f"its tensors end at byte {at} and the file at {size}; {kind}")


def _short(thing: Any) -> str:
    text = ascii(thing)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _refuse(path: str, why: str) -> NoReturn:
    raise ValueError(f"{path}: no sound safetensors file: {why}")
