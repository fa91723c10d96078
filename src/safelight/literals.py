"""One literal against one setting: what may be given, and its one canonical form. Every surface goes through here, so keys agree."""
from __future__ import annotations

import json
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from safelight.spec import InputError, Setting, near

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def check(op: str, setting: Setting, given: Any) -> Any:
    """The canonical form of what was given: int, float, str, bool, Path, a tuple of these, or JSON data. InputError if it does not fit."""
    if isinstance(given, Mapping) and set(given) == {"__value__"}:  # ComfyUI wraps literal lists so that they are not taken for links
        given = given["__value__"]
    if given is None:
        if setting.optional:
            return None
        raise InputError(op, setting.name, "nothing", setting.expects, kind="missing")
    if not setting.many:
        return _one(op, setting, given)
    scalar = isinstance(given, str | Path | Mapping) or not isinstance(given, Iterable)
    items = tuple(_one(op, setting, g) for g in ([given] if scalar else given))
    if setting.length is not None and len(items) != setting.length:
        raise InputError(op, setting.name, f"{len(items)} items", setting.expects)
    return items


def _one(op: str, setting: Setting, given: Any) -> Any:
    value = _typed(op, setting, given)
    if setting.knob.draw and value == -1:
        return secrets.randbelow(2**32)
    _ranged(op, setting, value)
    names = setting.choices
    if names is not None and value not in names:
        words = [str(n) for n in names]
        raise InputError(op, setting.name, repr(given), setting.expects, advice=near(str(given), words), kind="not_in_list")
    return value


def _typed(op: str, setting: Setting, given: Any) -> Any:
    match setting.kind, given:
        case "bool", bool():
            return given
        case ("int" | "float"), bool():
            pass
        case "int", Integral():
            return int(given)
        case "int", float() if given.is_integer():
            return int(given)
        case "float", Real() if not math.isnan(given):
            return float(given)
        case "str", str():
            return given
        case "path", str() | Path():
            return Path(given)
        case "json", _:
            return plain(given)
    raise InputError(op, setting.name, f"{given!r} ({type(given).__name__})", setting.expects)


def _ranged(op: str, setting: Setting, value: Any) -> None:
    low, high = setting.knob.min, setting.knob.max
    if low is not None and value < low:
        raise InputError(op, setting.name, repr(value), setting.expects, kind="too_small")
    if high is not None and value > high:
        raise InputError(op, setting.name, repr(value), setting.expects, kind="too_big")


def plain(value: Any) -> Any:
    """The same as JSON data: tuples become lists, paths become text. TypeError when it is no data."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(v) for v in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def parse(op: str, setting: Setting, text: str) -> Any:
    """What a person typed (command line, `--set`), before `check`: `800`, `0.8`, `yes`, `1,2,5`, `0..7` (both ends), JSON."""
    if setting.optional and text.lower() in ("none", ""):
        return None
    if not setting.many:
        return _parse_one(op, setting, text)
    words = setting.kind in ("str", "path", "json") and setting.names is None  # a prompt has commas and brackets of its own
    if text.startswith("["):
        try:
            return _json(op, setting, text)
        except InputError:
            if not words:
                raise
    if setting.kind == "int" and ".." in text:
        first, _, last = text.partition("..")
        return list(range(_parse_one(op, setting, first), _parse_one(op, setting, last) + 1))
    if words:
        return [_parse_one(op, setting, text)]
    return [_parse_one(op, setting, part.strip()) for part in text.split(",") if part.strip()]


def is_coded(setting: Setting) -> bool:
    """Whether text that is given for it stands for something else: a number, a list of names, JSON."""
    return setting.many or setting.kind not in ("str", "path")


def _parse_one(op: str, setting: Setting, text: str) -> Any:
    try:
        match setting.kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool" if text.lower() in TRUE + FALSE:
                return text.lower() in TRUE
            case "bool":
                raise ValueError
            case "json":
                return _json(op, setting, text)
    except ValueError as e:
        if isinstance(e, InputError):
            raise
        raise InputError(op, setting.name, repr(text), setting.expects) from None
    return text


def _json(op: str, setting: Setting, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise InputError(op, setting.name, repr(text), f"JSON ({e.msg} at {e.pos})") from None
