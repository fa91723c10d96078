"""Literals as nodes: known before anything runs, so they become no node of ours."""
from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from safelight.comfy.building import Building
from safelight.comfy.node import Given, Input, integer, node, real, switch, text


def _value(b: Building, n: Given) -> Any:
    return n["value"]


def _primitive(kind: str, value: Input, title: str = "") -> None:
    node(f"Primitive{kind}", "utils/primitive", [value], value.type, title=title or kind)(_value)


_primitive("String", text("value"))
_primitive("StringMultiline", text("value", many_lines=True), "String (Multiline)")
_primitive("Int", replace(integer("value", 0, -sys.maxsize, sys.maxsize), told={"control_after_generate": True}))
_primitive("Float", real("value", 0.0, -sys.maxsize, sys.maxsize))
_primitive("Boolean", switch("value", False))


@node("StringConcatenate", "utils/string", [text("string_a", many_lines=True), text("string_b", many_lines=True), text("delimiter")],
      "STRING", title="Concatenate")
def concatenate(b: Building, n: Given) -> Any:
    """Two texts as one."""
    return n["delimiter"].join((n["string_a"], n["string_b"]))
