"""What `torch.save` writes, read without torch: the zip archive of 1.6 and later, and the one stream of pickles from before.

A tensor in it is a description (storage, offset, shape, strides) in a pickle; the storages' bytes lie plain beside it. Both are taken apart
here to places in the file. Nothing is unpacked, decompressed or run.
"""
from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from mmap import mmap
from typing import Any, BinaryIO

from safelight.weights.header import BITS
from safelight.weights.machine import Bag, Call, Machine, Name, Refused

DTYPES = {
    "float64": "F64", "int64": "I64", "uint64": "U64", "complex64": "C64", "float32": "F32", "int32": "I32", "uint32": "U32",
    "float16": "F16", "bfloat16": "BF16", "int16": "I16", "uint16": "U16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ", "float8_e5m2fnuz": "F8_E5M2FNUZ",
}
"""torch's name of a dtype -> the safetensors name. Quantised, sub-byte and complex128 tensors have no place in the format."""

STORAGES = {
    "Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32", "Short": "I16", "Char": "I8",
    "Byte": "U8", "Bool": "BOOL", "ComplexFloat": "C64", "Untyped": "U8",
}
"""Storage class, without `Storage` -> the dtype of its elements."""

LONGEST_PICKLE = 2**26
MAGIC = 0x1950A86A20F9469CFC6C
DEEPEST = 64


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes by its key; `dtype` is empty when safetensors knows none, `count` is in elements."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A view of a storage; offset and strides are in elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def span(self) -> int:
        """Elements of the storage up to the last one that it reads."""
        if 0 in self.shape:
            return 0
        return self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)) + 1

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass
class TorchFile:
    """A file taken apart: the saved object, where each storage lies (first byte, bytes), and the foreign names it calls."""

    root: Any = None
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    foreign: Mapping[str, int] = field(default_factory=dict)


# The few functions that a file may call. Each is given the file's arguments and trusts none of them.


def _view(args: tuple[Any, ...], *, typed: bool = False) -> Any:
    if len(args) < (7 if typed else 4) or not isinstance(args[0], Storage):
        raise Refused("a tensor is built from something that is no storage")
    storage, offset, shape, strides = args[:4]
    sound = _counts((offset,)) and _counts(shape) and _counts(strides) and len(shape) == len(strides) <= DEEPEST
    if not sound:
        raise Refused("a tensor's offset, shape or strides are no whole numbers")
    if len(args) > (7 if typed else 6) and args[-1]:
        return Bag("torch.Tensor with conjugate or negative bits")
    dtype = _dtype(args[6]) if typed else storage.dtype
    return Tensor(storage.key, dtype, offset, shape, strides) if dtype else Bag("torch.Tensor of a dtype without a place in safetensors")


def _counts(numbers: Any) -> bool:
    return isinstance(numbers, tuple) and all(type(n) is int and 0 <= n < 2**62 for n in numbers)


def _dtype(name: Any) -> str:
    return DTYPES.get(name.text.removeprefix("torch."), "") if isinstance(name, Name) else ""


def _first(args: tuple[Any, ...]) -> Any:
    return args[0] if args else None


def _subclass(args: tuple[Any, ...]) -> Any:
    function, inner = (args[0], args[2]) if len(args) > 2 else (None, None)
    known = CALLS.get(function.text) if isinstance(function, Name) else None
    if known is None or known is _subclass or not isinstance(inner, tuple):
        return Bag("torch.Tensor of a foreign kind", args)
    return known(inner)


def _ordered(args: tuple[Any, ...]) -> Any:
    pairs = args[0] if args and isinstance(args[0], list) else []
    if not all(isinstance(p, list | tuple) and len(p) == 2 and isinstance(p[0], str) for p in pairs):
        return Bag("collections.OrderedDict", args)
    return dict(pairs)


def _shape(args: tuple[Any, ...]) -> Any:
    return args[0] if args and isinstance(args[0], tuple) else ()


def _plain(name: str, args: tuple[Any, ...]) -> Bag:
    return Bag(name, args)


HARMLESS = ("_codecs.encode", "builtins.set", "builtins.bytearray", "builtins.complex", "torch.device", "collections.Counter")
CALLS: dict[str, Call] = {
    "torch._utils._rebuild_tensor": _view, "torch._utils._rebuild_tensor_v2": _view,
    "torch._utils._rebuild_tensor_v3": partial(_view, typed=True),
    "torch._utils._rebuild_parameter": _first, "torch._utils._rebuild_parameter_with_state": _first,
    "torch.nn.parameter.Parameter": _first, "torch._tensor._rebuild_from_type_v2": _subclass,
    "collections.OrderedDict": _ordered, "torch.Size": _shape, **{name: partial(_plain, name) for name in HARMLESS},
}


def _storage(seen: dict[str, Storage], args: tuple[Any, ...]) -> Any:
    """The answer to a persistent id; `seen` keeps the first storage of each key."""
    pid = args[0]
    if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], Name):
        raise Refused("a persistent id that names no storage")
    kind, key, count = pid[1].text, pid[2], pid[4]
    if not kind.startswith("torch.") or not isinstance(key, str) or not _counts((count,)) or (len(pid) > 5 and pid[5]):
        raise Refused("a storage of an unknown kind")
    storage = Storage(key, STORAGES.get(kind.rpartition(".")[2].removesuffix("Storage"), ""), count)
    seen.setdefault(key, storage)
    return storage


# The two containers.


def is_zip(head: bytes) -> bool:
    """Whether the file's first bytes are a zip archive's."""
    return head[:4] == b"PK\x03\x04"


def pickled(f: BinaryIO, data: mmap) -> tuple[int, int, dict[str, tuple[int, int]]]:
    """First byte and end of the pickle that is read first, and the storages' places (an archive's; the stream's come later).

    Refused when it is neither container.
    """
    if is_zip(data[:4]):
        return _archive(f, data)
    if data[:1] != b"\x80":
        raise Refused(f"it begins with {data[:8]!r}; expected safetensors, a zip archive or a pickle as torch.save writes them")
    return 0, min(len(data), LONGEST_PICKLE), {}


def _archive(f: BinaryIO, data: mmap) -> tuple[int, int, dict[str, tuple[int, int]]]:
    members: dict[str, tuple[int, int]] = {}
    with zipfile.ZipFile(f) as archive:
        for info in archive.infolist():
            if info.filename in members:
                raise Refused(f"its archive has {info.filename[:100]!a} twice")
            members[info.filename] = _member(info, data)
    roots = [n[: -len("data.pkl")] for n in members if n == "data.pkl" or (n.endswith("/data.pkl") and n.count("/") == 1)]
    if len(roots) != 1:
        raise Refused(f"its archive has {len(roots)} data.pkl; expected one, as torch.save writes it")
    root = roots[0]
    if f"{root}constants.pkl" in members:
        raise Refused("it is a TorchScript program, not weights")
    order = members.get(f"{root}byteorder")
    if order and data[order[0] : sum(order)] != b"little":
        raise Refused("it was written on a big-endian machine")
    start, length = members[f"{root}data.pkl"]
    if length > LONGEST_PICKLE:
        raise Refused(f"its data.pkl has {length} bytes; at most {LONGEST_PICKLE} are read")
    inside = f"{root}data/"
    return start, start + length, {n.removeprefix(inside): p for n, p in members.items() if n.startswith(inside)}


def _member(info: zipfile.ZipInfo, data: mmap) -> tuple[int, int]:
    """First byte and length of a member, which must lie plain in the file."""
    name, at = ascii(info.filename[:100]), info.header_offset
    if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
        raise Refused(f"{name} in its archive is compressed or encrypted; torch.save does neither")
    head = data[at : at + 30] if 0 <= at <= len(data) else b""
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise Refused(f"{name} in its archive is not where the archive says")
    start = at + 30 + sum(struct.unpack("<HH", head[26:30]))
    if start + info.file_size > len(data):
        raise Refused(f"{name} in its archive ends behind the end of the file")
    return start, info.file_size


def load(data: mmap, start: int, end: int, places: dict[str, tuple[int, int]]) -> TorchFile:
    """Read what `pickled` found. Refused when it does not keep its format."""
    seen: dict[str, Storage] = {}
    machine = Machine(data, CALLS, partial(_storage, seen), at=start, end=end)
    if is_zip(data[:4]):
        return TorchFile(machine.load(), places, machine.foreign)
    if machine.load() != MAGIC:
        raise Refused("it is a pickle, but none that torch.save wrote")
    version, about = machine.load(), machine.load()
    if version != 1001 or not isinstance(about, dict) or about.get("little_endian") is not True:
        raise Refused(f"it is of torch's stream format {version!a:.40}; expected 1001, little-endian")
    root, keys = machine.load(), machine.load()
    return TorchFile(root, _stream(data, machine.at, keys, seen), machine.foreign)


def _stream(data: mmap, at: int, keys: Any, seen: Mapping[str, Storage]) -> dict[str, tuple[int, int]]:
    """Where the storages of the stream format lie: for each key a count of 8 bytes, then the elements."""
    places: dict[str, tuple[int, int]] = {}
    for key in keys if isinstance(keys, list) else ():
        storage = seen.get(key) if isinstance(key, str) else None
        if storage is None or not storage.dtype:
            raise Refused(f"storage {ascii(key)[:40]} has no dtype that can be read")
        length = int.from_bytes(data[at : at + 8], "little") * BITS[storage.dtype] // 8
        if at + 8 + length > len(data):
            raise Refused(f"storage {ascii(key)[:40]} ends behind the end of the file; it is cut off")
        places[key] = (at + 8, length)
        at += 8 + length
    return places
