"""Plain data of a run as JSON: keys of rows, shapes of rows; and what the code is, so that machines with another are noticed."""
from __future__ import annotations

import json
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from safelight.data.juicer.rows import Shape
from safelight.values import digest

TYPES: dict[str, type] = {t.__name__: t for t in (bool, int, float, str, object)}


def packed(key: Any) -> Any:
    """A key as JSON data that `unpacked` turns back: numbers, texts and None as they are, all else as [kind, content]."""
    match key:
        case bytes():
            return ["bytes", key.hex()]
        case tuple() | list():
            return [type(key).__name__, [packed(k) for k in key]]
        case dict():
            return ["dict", {k: packed(v) for k, v in key.items()}]
    return key


def unpacked(told: Any) -> Any:
    """The key that was packed."""
    match told:
        case ["bytes", content]:
            return bytes.fromhex(content)
        case ["tuple", content]:
            return tuple(unpacked(k) for k in content)
        case ["list", content]:
            return [unpacked(k) for k in content]
        case ["dict", content]:
            return {k: unpacked(v) for k, v in content.items()}
    return told


def shape_text(shape: Shape) -> str:
    """A shape as text that `shape_named` turns back."""
    return json.dumps(shape, default=lambda t: t.__name__)


def shape_named(text: str) -> Shape:
    """The shape of the text."""
    return _named(json.loads(text))


def _named(told: Any) -> Shape:
    match told:
        case [_, inner]:
            return ("list", _named(inner))
        case dict():
            return {k: _named(v) for k, v in told.items()}
        case str():
            return TYPES[told]
    return None


@cache
def code() -> str:
    """Changes when the code does that decides what comes out: the operators', the readers', Python's and Pillow's versions."""
    data, safelight = Path(__file__).parents[1], Path(__file__).parents[2]
    files = [*sorted(data.glob("juicer/*.py")), data / "headers.py", safelight / "pictures.py", safelight / "limits.py"]
    pillow = find_spec("PIL")
    assert pillow is not None and pillow.origin is not None
    files.append(Path(pillow.origin).with_name("_version.py"))  # to ask importlib.metadata takes longer than to start Python
    return digest(*[f.read_bytes() for f in files], str(sys.version_info[:2]))
