"""Where a value comes from: every op, setting and input on the way to it, as JSON data that needs no store to be read."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import Any

from safelight.codec import ORIGIN, exact_key
from safelight.store import Input, Store
from safelight.values import Dataset, Image, Model, Page, Patch, Scores, Value

FORMAT = 1
PACKAGES = ("safelight", "torch", "diffusers", "transformers", "peft", "numpy", "pillow")


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    import platform

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def about(value: Value) -> dict[str, Any]:
    """What a lineage says of a value in a few words: hashes, counts, sizes."""
    match value:
        case Dataset():
            return {"kept": len(value), "dropped": len(value.rows) - len(value)}
        case Image():
            return {"pictures": len(value), "width": value.pixels.shape[2], "height": value.pixels.shape[1]}
        case Patch():
            return {"kind": value.kind, "sha256": value.weights.sha256, "strength": value.strength}
        case Model():
            base = {"family": value.family, "source": value.source, "fingerprint": value.fingerprint}
            return base | {"patches": [about(p) for p in value.patches]}
        case Scores():
            return {"metrics": list(value.values), "pictures": len(value.image)}
        case Page():
            return {"media": value.media, "sha256": value.file.sha256}
    return {}


def rows(data: Dataset) -> list[list[str]]:
    """[sha256, name, caption in use] of the kept rows."""
    return [[r.picture.sha256, r.name, r.caption] for r in data]


def as_input(store: Store, value: Value) -> Input:
    """A value that Python holds, as an op's input: with the recipe that made it when the store knows one."""
    exact = exact_key(value)
    name, key = type(value).__name__, value.key
    origins = [row[ORIGIN] for row in value.info if ORIGIN in row] if isinstance(value, Image) else []
    whole = isinstance(value, Image) and len(origins) == len(value) > 0
    if whole:
        first = store.get(origins[0][0])
        if first is not None and first.exact == exact and all(o[0] == origins[0][0] for o in origins):
            return first.as_input()
    record = store.producer(exact)
    if record is not None:
        return record.as_input()
    known = about(value) | ({"rows": rows(value)} if isinstance(value, Dataset) else {})
    if whole:  # a choice of pictures that ops made
        known["origins"] = [list(o) for o in origins]
    return Input(name, key, exact, "", known)
