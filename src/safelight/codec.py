"""Values as JSON and arrays, and back; and the exact key. What a store writes is what this says of a value."""
from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.values import VALUES, Blob, Caption, Part, Region, Row, Value, canonical, digest

RECORDS: dict[str, type] = {"Row": Row, "Caption": Caption, "Region": Region, "Part": Part}
ORIGIN = "made"
"""The one key of a picture's `info` that the engine owns: [recipe key, index in its batch]. It is no part of the exact key."""


@dataclass
class Encoded:
    """A value taken apart: `tree` is JSON data, `arrays` the arrays and tensors it names, `blobs` the files it needs, by hash."""

    tree: Any = None
    arrays: dict[str, Any] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the arrays, and a guess for the rest."""
        return sum(int(a.nbytes) for a in self.arrays.values()) + 64 * len(self.blobs) + 1024


def encode(value: Value) -> Encoded:
    """TypeError naming the field when it holds something that cannot be written."""
    out = Encoded()
    out.tree = _encode(value, out, type(value).__name__)
    return out


def _encode(x: Any, out: Encoded, where: str) -> Any:
    if x is None or isinstance(x, bool | int | float | str):
        return x
    if isinstance(x, Blob):
        if not x.sha256:  # a file that was named and is not there; a report still says which
            return {"$absent": x.path}
        out.blobs[x.sha256] = x
        return {"$blob": x.sha256}
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        name = _known(type(x), where)
        fields = {f.name: _encode(getattr(x, f.name), out, f"{where}.{f.name}") for f in dataclasses.fields(x)}
        return {"$type": name} | fields
    if isinstance(x, Mapping):
        inner = {str(k): _encode(v, out, f"{where}[{k!r}]") for k, v in x.items()}
        return {"$map": inner} if any(k.startswith("$") for k in inner) else inner
    if is_of("numpy", "generic", x):
        return x.item()
    if is_of("numpy", "ndarray", x) or is_tensor(x):
        name = next((known for known, a in out.arrays.items() if a is x), str(len(out.arrays)))  # one tensor in several parts is kept once
        out.arrays[name] = x
        return {"$tensor" if is_tensor(x) else "$array": name}
    if isinstance(x, Path):
        return str(x)
    if isinstance(x, Sequence):
        return [_encode(v, out, f"{where}[{i}]") for i, v in enumerate(x)]
    raise TypeError(f"{where}: cannot keep a {type(x).__name__}; a value holds data, arrays, blobs and other values")


def _known(cls: type, where: str) -> str:
    if cls not in (VALUES.get(cls.__name__), RECORDS.get(cls.__name__)):
        raise TypeError(f"{where}: {cls.__name__} is not in values.VALUES; a value that is kept must be registered there")
    return cls.__name__


def is_of(module: str, name: str, x: Any) -> bool:
    """Whether it is of a class of a module, asked without importing the module: if nobody has, it is not."""
    found = sys.modules.get(module)
    return found is not None and isinstance(x, getattr(found, name))


def is_tensor(x: Any) -> bool:
    """Whether it is a torch tensor."""
    return is_of("torch", "Tensor", x)


def decode(tree: Any, arrays: Mapping[str, Any], blob: Callable[[str], Blob]) -> Any:
    """The value again. `blob(sha256)` says where a file lies now."""
    if isinstance(tree, list):
        return [decode(t, arrays, blob) for t in tree]
    if not isinstance(tree, dict):
        return tree
    if "$blob" in tree:
        return blob(tree["$blob"])
    if "$absent" in tree:
        return Blob(tree["$absent"], "")
    for mark in ("$array", "$tensor"):
        if mark in tree:
            return arrays[tree[mark]]
    if "$map" in tree:
        return {k: decode(v, arrays, blob) for k, v in tree["$map"].items()}
    if "$type" not in tree:
        return {k: decode(v, arrays, blob) for k, v in tree.items()}
    cls = VALUES.get(tree["$type"]) or RECORDS[tree["$type"]]
    given = {k: decode(v, arrays, blob) for k, v in tree.items() if k != "$type"}
    tuples = {f.name for f in dataclasses.fields(cls) if str(f.type).startswith("tuple")}
    return cls(**{k: tuple(v) if k in tuples and v is not None else v for k, v in given.items()})


def exact_key(value: Value, encoded: Encoded | None = None) -> str:
    """Digest of everything the value holds, `info` and dropped rows included; not of where files lie nor of who made a picture."""
    e = encoded or encode(value)
    return digest("exact", canonical(_bare(e.tree)), *_array_parts(e.arrays))


def _bare(tree: Any) -> Any:
    if isinstance(tree, list):
        return [_bare(t) for t in tree]
    if not isinstance(tree, dict):
        return tree
    bare = {k: _bare(v) for k, v in tree.items()}
    if tree.get("$type") == "Image":
        bare["info"] = [{k: v for k, v in row.items() if k != ORIGIN} for row in bare["info"]]
    return bare


def _array_parts(arrays: Mapping[str, Any]) -> Iterator[bytes | str]:
    for name, a in arrays.items():
        yield f"{name} {tuple(a.shape)} {a.dtype}"
        yield raw_bytes(a)


def raw_bytes(a: Any) -> bytes:
    """The bytes of an array or tensor in C order, whatever its dtype (numpy has no bfloat16)."""
    if not is_tensor(a):
        return bytes(a.tobytes())  # C order, whatever the strides
    torch = sys.modules["torch"]
    flat = a.detach().cpu().contiguous().reshape(-1)
    return bytes(flat.view(torch.uint8).numpy().tobytes())
