"""Safelight: from a folder of pictures to a text-to-image model of your own, and the pictures it makes.

Every op is a function here (`safelight.curate(...)`); values are what goes between them. Nothing heavy is imported before it is used.
"""
from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_PLACES = {
    "run": "flow", "why": "files", "reproduce": "files", "OPS": "op", "op": "op", "Knob": "op", "OneOf": "op", "Work": "op",
    "Store": "store", "Blob": "values", "Caption": "values", "Row": "values", "Knobs": "values", "Value": "values",
}
_BOTH = frozenset({"report", "score"})
"""Names that an op shares with a package. Here the name is the op; `from safelight.score import ...` finds the package all the same."""


class _Facade(ModuleType):
    """Importing a subpackage sets it as an attribute of its parent; the ops of the same name stay in front."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _BOTH and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Facade


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return _names()
    if name == "__version__":
        return import_module("importlib.metadata").version("safelight")
    if name.startswith("_"):
        raise AttributeError(name)
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
