"""Reads a function's signature and docstring into ports, settings and an output type."""
from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from safelight.literals import check
from safelight.spec import REQUIRED, Kind, Knob, OneOf, Port, Setting, Signature
from safelight.values import Knobs, Value

LISTS = (collections.abc.Sequence, collections.abc.Iterable, list, tuple)
KINDS: Mapping[Any, Kind] = {int: "int", float: "float", str: "str", bool: "bool", Path: "path", Any: "json", dict: "json"}
PLAIN = Knob()


@dataclass(frozen=True)
class _Shape:
    """An annotation taken apart: the plain types of its union, whether a list or None may come, and what `Annotated` said."""

    types: tuple[Any, ...]
    many: bool = False
    optional: bool = False
    length: int | None = None
    knob: Knob = PLAIN
    one_of: OneOf | None = None
    help: str = ""


def read(fn: Callable[..., Any]) -> Signature:
    """TypeError at declaration when a parameter cannot be shown: no annotation, an unknown type, two equal flat names."""
    hints = typing.get_type_hints(fn, include_extras=True)
    helps = argument_helps(inspect.getdoc(fn) or "")
    ports: list[Port] = []
    settings: list[Setting] = []
    groups: dict[str, type] = {}
    parameters = inspect.signature(fn).parameters
    for name, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name not in hints:
            raise TypeError(f"op {fn.__name__}: parameter {name} needs a name and an annotation of its own")
        default = REQUIRED if parameter.default is parameter.empty else parameter.default
        hint = hints[name]
        if isinstance(hint, type) and issubclass(hint, Knobs):
            groups[name] = hint
            settings += _fields(fn.__name__, name, hint, default)
            continue
        shape = _take_apart(hint)
        if all(isinstance(t, type) and issubclass(t, Value) for t in shape.types):
            ports.append(Port(name, shape.types, shape.many, default is not REQUIRED, shape.help or helps.get(name, "")))
        else:
            settings.append(_setting(fn.__name__, (name,), shape, default, helps.get(name, "")))
    flat = [p.name for p in ports] + [s.name for s in settings]
    if len(set(flat)) < len(flat):
        raise TypeError(f"op {fn.__name__}: {next(n for n in flat if flat.count(n) > 1)} is declared twice")
    positional = sum(p.kind is not p.KEYWORD_ONLY for p in parameters.values())
    return Signature(tuple(parameters), positional, tuple(ports), tuple(settings), groups, _output(fn, hints))


def _fields(op: str, group: str, cls: type, default: Any) -> Iterator[Setting]:
    hints = typing.get_type_hints(cls, include_extras=True)
    helps = argument_helps(inspect.getdoc(cls) or "")
    for f in dataclasses.fields(cls):
        if default is not REQUIRED:
            start = getattr(default, f.name)
        elif f.default_factory is not dataclasses.MISSING:
            start = f.default_factory()
        else:
            start = REQUIRED if f.default is dataclasses.MISSING else f.default
        words = f.metadata.get("help", "") or helps.get(f.name, "")
        yield _setting(op, (group, f.name), _take_apart(hints[f.name]), start, words)


def _setting(op: str, path: tuple[str, ...], shape: _Shape, default: Any, words: str) -> Setting:
    kind, names = _kind(op, path[-1], shape)
    setting = Setting(
        path[-1], path, kind, shape.many, shape.length, shape.optional, REQUIRED, shape.knob, None, shape.help or words,
    )
    if default is not REQUIRED:  # names are left out, asking for them may import what owns them; and nothing is drawn yet
        loose = dataclasses.replace(setting, knob=Knob()) if shape.knob.draw else setting
        default = check(op, loose, default)
    return dataclasses.replace(setting, default=default, names=names)


def _kind(op: str, name: str, shape: _Shape) -> tuple[Kind, Callable[[], Sequence[Any]] | None]:
    first = shape.types[0]
    if get_origin(first) is Literal:
        values = get_args(first)
        return KINDS[type(values[0])], lambda: values
    if Path in shape.types:
        first = Path
    elif set(shape.types) == {int, float}:
        first = float
    kind = "json" if get_origin(first) in (dict, collections.abc.Mapping) else KINDS.get(first)
    if kind is None:
        raise TypeError(f"op {op}: parameter {name} has the type {first}, which no surface can show; use a value, a literal or a group")
    names = shape.one_of
    return kind, None if names is None else lambda: tuple(names.names())


def _take_apart(hint: Any) -> _Shape:
    shape = _Shape(())
    if get_origin(hint) is typing.Annotated:
        hint, *extras = get_args(hint)
        shape = _with_extras(shape, extras)
    parts = get_args(hint) if get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    for part in parts:
        if part is type(None):
            shape = dataclasses.replace(shape, optional=True)
            continue
        if get_origin(part) in LISTS:
            items = get_args(part)
            fixed = get_origin(part) is tuple and Ellipsis not in items
            shape = dataclasses.replace(shape, many=True, length=len(items) if fixed else None)
            part = items[0]
        inner = _take_apart(part) if get_origin(part) in (typing.Annotated, typing.Union, types.UnionType) else _Shape((part,))
        shape = dataclasses.replace(
            shape, types=tuple(dict.fromkeys((*shape.types, *inner.types))), knob=shape.knob if inner.knob == PLAIN else inner.knob,
            one_of=inner.one_of or shape.one_of, help=inner.help or shape.help, optional=shape.optional or inner.optional,
        )
    return shape


def _with_extras(shape: _Shape, extras: Sequence[Any]) -> _Shape:
    for extra in extras:
        if isinstance(extra, Knob):
            shape = dataclasses.replace(shape, knob=extra, help=extra.help or shape.help)
        elif isinstance(extra, OneOf):
            shape = dataclasses.replace(shape, one_of=extra, help=extra.help or shape.help)
        elif isinstance(extra, str):
            shape = dataclasses.replace(shape, help=extra)
    return shape


def _output(fn: Callable[..., Any], hints: Mapping[str, Any]) -> type[Value]:
    out = hints.get("return")
    if get_origin(out) is collections.abc.Generator:
        out = get_args(out)[2]
    if not (isinstance(out, type) and issubclass(out, Value)):
        raise TypeError(f"op {fn.__name__}: returns {out}; annotate a value class, or `Work[...]` of one when the body yields")
    return out


def argument_helps(doc: str) -> dict[str, str]:
    """The `Args:` section of a docstring: name -> words, continuation lines joined."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in (section.group(1) if section else "").splitlines():
        head = re.match(r"\s{2,8}(\w+)(?: \([^)]*\))?:\s*(.*)", line)
        if head:
            name = head.group(1)
            found[name] = head.group(2)
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found
