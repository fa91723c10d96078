"""The tensors of a taken-apart torch file as a safetensors file, piece by piece: memory holds at most one tensor, if it is strided."""
from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import product
from math import prod
from mmap import mmap
from typing import Any, BinaryIO, Literal

from safelight.weights.header import BITS, LONGEST, RESERVED
from safelight.weights.machine import Bag, Name, Refused
from safelight.weights.torch_file import Tensor, TorchFile

PIECE = 2**22
MOST_ENTRIES = 1_000_000
DEEPEST = 64
FORMS: dict[int, Literal["B", "H", "I", "Q"]] = {1: "B", 2: "H", 4: "I", 8: "Q"}


def tensors(root: Any) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """The tensors by dotted name; the type and text of what is none, by dotted name; and the place of the weights in the object.

    As other tools do, `state_dict`, or a table that is all there is, stands for the whole. Refused when two get the same name.
    """
    root, place = _weights(root)
    found: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for name, thing in _leaves(root):
        if not isinstance(thing, Tensor):
            if len(left) < 1000:
                said = f" {thing}"[:200] if isinstance(thing, str | int | float | None) else ""
                left[name[:200]] = thing.name if isinstance(thing, Bag) else type(thing).__name__ + said
        elif name in found or name == RESERVED:
            raise Refused(f"two tensors have the name {ascii(name)[:120]}")
        else:
            found[name] = thing
    return found, left, place


def _weights(root: Any) -> tuple[Any, str]:
    place: list[str] = []
    while items := _items(root):
        inner = "state_dict" if "state_dict" in items else next(iter(items)) if len(items) == 1 else None
        if inner is None or not _items(items[inner]) or len(place) > DEEPEST:
            break
        place.append(str(inner)[:100])
        root = items[inner]
    return root, ".".join(place)


def _items(thing: Any) -> dict[Any, Any]:
    found = thing.items if isinstance(thing, Bag) else thing
    return found if isinstance(found, dict) else {}


def _leaves(root: Any) -> Iterator[tuple[str, Any]]:
    """Everything that holds nothing, by dotted path. An explicit stack: the file decides how deep it goes."""
    todo: list[tuple[str, Any, int]] = [("", root, 0)]
    for _ in range(MOST_ENTRIES):
        if not todo:
            return
        name, thing, depth = todo.pop()
        inner = list(_inside(thing))
        if not inner or depth > DEEPEST:
            yield name, thing
            continue
        for key, part in reversed(inner):
            todo.append((f"{name}.{key}" if name else key, part, depth + 1))
    raise Refused(f"it has more than {MOST_ENTRIES} entries")


def _inside(thing: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, Bag):
        yield from _inside(thing.items)
        yield from _inside(thing.elements)
        for key, part in _items(thing.state).items():  # a whole torch module has its tensors in three tables that its names leave out
            yield from _inside(part) if key in ("_parameters", "_buffers", "_modules") else _inside({key: part})
    elif isinstance(thing, dict):
        for key, part in thing.items():
            yield key.text if isinstance(key, Name) else str(key) if isinstance(key, str | int | float) else type(key).__name__, part
    elif isinstance(thing, list | tuple):
        for i, part in enumerate(thing):
            yield str(i), part


def header(found: Mapping[str, Tensor], notes: Mapping[str, str]) -> tuple[bytes, list[Tensor]]:
    """The first bytes of the new file, and the tensors in the order of their bytes: wide elements first, so that all are aligned."""
    order = sorted(found, key=lambda name: -BITS[found[name].dtype])
    table: dict[str, Any] = {RESERVED: dict(notes)}
    at = 0
    for name in order:
        t = found[name]
        end = at + t.count * BITS[t.dtype] // 8
        table[name] = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST:
        raise Refused(f"its {len(found)} tensors need a header of {len(text)} bytes; at most {LONGEST} are read")
    return len(text).to_bytes(8, "little") + text, [found[name] for name in order]


def check(found: Mapping[str, Tensor], file: TorchFile, most: int) -> int:
    """The bytes of all tensors. Refused when one reads what its storage does not have, or all together are more than `most`."""
    total = 0
    for name, t in found.items():
        width, there = BITS[t.dtype] // 8, file.places.get(t.key)
        if there is None or t.span * width > there[1]:
            has = "is not in the file" if there is None else f"has {there[1]} bytes"
            raise Refused(f"tensor {ascii(name)[:120]} reads {t.span * width} bytes of storage {ascii(t.key)[:40]}, which {has}")
        total += t.count * width
    if total > most:
        raise Refused(f"its tensors are {total} bytes when written out, of a file that allows {most}; views of the same bytes, many times")
    return total


def copy(t: Tensor, file: TorchFile, data: mmap, source: BinaryIO, out: BinaryIO) -> None:
    """Write one tensor's elements in row-major order."""
    width = BITS[t.dtype] // 8
    start = file.places[t.key][0] + t.offset * width
    if not dense(t):
        out.write(gathered(memoryview(data)[start : start + (t.span - t.offset) * width], width, t.shape, t.strides))
        return
    source.seek(start)
    left = t.count * width
    while left:
        piece = source.read(min(left, PIECE))
        if not piece:
            raise Refused("it became shorter while it was read")
        out.write(piece)
        left -= len(piece)


def dense(t: Tensor) -> bool:
    """Whether the elements already lie in row-major order."""
    step = 1
    for n, stride in zip(t.shape[::-1], t.strides[::-1], strict=True):
        if n != 1 and stride != step:
            return t.count == 0
        step *= n
    return True


def gathered(source: memoryview, width: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytearray:
    """Elements of `width` bytes at any strides, in row-major order: whole lines along the longest axis, one after another."""
    form = FORMS[width]
    read = source.cast(form)
    made = bytearray(prod(shape) * width)
    write = memoryview(made).cast(form)
    steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
    axis = max(range(len(shape)), key=shape.__getitem__)
    n, stride, step = shape[axis], strides[axis], steps[axis]
    others = [i for i in range(len(shape)) if i != axis]
    for index in product(*(range(shape[i]) for i in others)):
        a = sum(at * strides[i] for at, i in zip(index, others, strict=True))
        b = sum(at * steps[i] for at, i in zip(index, others, strict=True))
        if stride:
            line = read[a : a + (n - 1) * stride + 1 : stride]
        else:
            line = memoryview(read[a : a + 1].tobytes() * n).cast(form)
        write[b : b + (n - 1) * step + 1 : step] = line
    return made
