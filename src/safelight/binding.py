"""What was given to an op, sorted into inputs and literals and checked; and back into Python arguments."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from safelight.literals import check
from safelight.spec import InputError, Spec, near
from safelight.values import Knobs


def by_name(spec: Spec, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """A Python call's arguments by flat name: positions get names, whole groups are opened, flat fields win over their group."""
    names = spec.order[: spec.positional]
    if len(args) > len(names):
        takes = ", ".join(names) or "nothing"
        raise InputError(spec.name, "", f"{len(args)} positional arguments", f"at most {len(names)} ({takes}); name the others")
    twice = [n for n in names[: len(args)] if n in kwargs]
    if twice:
        raise InputError(spec.name, twice[0], "it twice", "one value")
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    opened: dict[str, Any] = {}
    for name, cls in spec.groups.items():
        if name in given:
            opened |= _open(spec, name, cls, given.pop(name))
    return opened | given


def _open(spec: Spec, name: str, cls: type, group: Any) -> dict[str, Any]:
    if isinstance(group, cls) and isinstance(group, Knobs):
        return {f.name: getattr(group, f.name) for f in dataclasses.fields(group)}  # type: ignore[arg-type]
    if isinstance(group, Mapping):
        return dict(group)
    raise InputError(spec.name, name, f"{group!r} ({type(group).__name__})", f"a {cls.__name__}, or its fields by name")


def settle(spec: Spec, given: Mapping[str, Any], wrong: list[InputError]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split what was given by flat name into inputs by port (unchecked) and canonical literals, defaults filled in.

    What is wrong is appended to `wrong`; the caller raises the first or shows them all.
    """
    wrong += [unknown_input(spec, name) for name in given if name not in spec.port and name not in spec.setting]
    inputs: dict[str, Any] = {}
    for port in spec.ports:
        inputs[port.name] = given.get(port.name)
        if inputs[port.name] is None and not port.optional:
            wrong.append(InputError(spec.name, port.name, "nothing", _wants(spec, port.name), kind="missing"))
    literals: dict[str, Any] = {}
    for s in spec.settings:
        try:
            if s.name not in given and s.required:
                raise InputError(spec.name, s.name, "nothing", s.expects, kind="missing")
            literals[s.name] = check(spec.name, s, given.get(s.name, s.default))
        except InputError as e:
            wrong.append(e)
    return inputs, literals


def _wants(spec: Spec, name: str) -> str:
    port = spec.port[name]
    return f"a list of {port.socket}" if port.many else _a(port.socket)


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'AEIO' else 'a'} {word}"


def unknown_input(spec: Spec, name: str) -> InputError:
    """The error for a name that the op does not have."""
    known = [*spec.port, *spec.setting]
    expected = "one of " + ", ".join(known) if known else "no inputs"
    return InputError(spec.name, name, "an unknown input", expected, advice=near(name, known), kind="unknown_input")


def wrong_value(spec: Spec, name: str, given: Any) -> InputError:
    """The error for something at a port that is not a value the port takes."""
    shown = repr(given) if isinstance(given, str | int | float) else _a(type(given).__name__)
    return InputError(spec.name, name, shown, _wants(spec, name))


def arguments(spec: Spec, values: Mapping[str, Any], literals: Mapping[str, Any]) -> dict[str, Any]:
    """Python arguments of the body: values by port, literals in their groups. A group's own checks speak as ValueError."""
    out = dict(values)
    fields: dict[str, dict[str, Any]] = {name: {} for name in spec.groups}
    for s in spec.settings:
        if len(s.path) == 1:
            out[s.name] = literals[s.name]
        else:
            fields[s.path[0]][s.path[1]] = literals[s.name]
    for name, cls in spec.groups.items():
        try:
            out[name] = cls(**fields[name])
        except ValueError as e:
            raise InputError(spec.name, name, ", ".join(f"{k}={v!r}" for k, v in fields[name].items()), str(e)) from e
    return out
