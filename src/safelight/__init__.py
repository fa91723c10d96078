"""Safelight: from a folder of pictures to a text-to-image model of your own, and the pictures it makes.

Every op is a function here (`safelight.curate(...)`); values are what goes between them. Nothing heavy is imported before it is used.
"""
from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

_PLACES = {
    "run": "flow", "why": "files", "reproduce": "files", "OPS": "op", "Knob": "op", "OneOf": "op", "Work": "op", "Answered": "events",
    "Store": "store", "Blob": "values", "Caption": "values", "Row": "values", "Knobs": "values", "Value": "values",
}
"""Public names that are neither ops nor values, and their modules. The decorator is `safelight.op.op`: here its module has the name."""


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _names()
    if name == "__version__":
        return import_module("importlib.metadata").version("safelight")
    if name.startswith("_"):
        raise AttributeError(name)
    if PathFinder.find_spec(f"{__name__}.{name}", __path__):  # a module: no reason to ask for the ops
        return import_module(f"{__name__}.{name}")
    if name in _PLACES:
        if name == "OPS":
            import_module("safelight.op").load_ops()
        return getattr(import_module(f"safelight.{_PLACES[name]}"), name)
    found = import_module("safelight.values").VALUES.get(name) or import_module("safelight.op").load_ops().get(name)
    if found is None:
        advice = import_module("safelight.spec").near(name, _names())
        raise AttributeError(f"safelight has no {name!r}" + (f"; {advice}" if advice else ""))
    return found


def _names() -> list[str]:
    return [*import_module("safelight.op").load_ops(), *_PLACES, *import_module("safelight.values").VALUES]


def __dir__() -> list[str]:
    return [*_names(), "__version__"]
