"""Literals as nodes: known before anything runs, so they become no node of ours; and a look at any value."""
from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from safelight.comfy.building import Building, Link, as_port
from safelight.comfy.node import Given, Input, choice, integer, node, real, socket, switch, text

AT = "utils/string"
STRING = text("string", many_lines=True)
BOTH = [text("string_a", many_lines=True), text("string_b", many_lines=True)]
FLAGS = [switch("case_insensitive", True), switch("multiline", False), switch("dotall", False)]
LONGEST, GREEDY = 100_000, 10_000
"""Letters that a pattern may be tried on, and that it may have: patterns can take forever."""


def _value(b: Building, n: Given) -> Any:
    """A value of its own."""
    return n["value"]


def _primitive(kind: str, value: Input, title: str = "") -> None:
    node(f"Primitive{kind}", "utils/primitive", [value], value.type, title=title or kind)(_value)


_primitive("String", text("value"))
_primitive("StringMultiline", text("value", many_lines=True), "String (Multiline)")
_primitive("Int", replace(integer("value", 0, -sys.maxsize, sys.maxsize), told={"control_after_generate": True}))
_primitive("Float", real("value", 0.0, -sys.maxsize, sys.maxsize))
_primitive("Boolean", switch("value", False))


def _words(name: str, title: str, inputs: list[Input], output: str, of: Callable[[Given], Any]) -> None:
    """A node that makes a literal of literals."""

    def make(b: Building, n: Given) -> Any:
        return of(n)

    make.__doc__ = f"{title} of a text."
    node(name, AT, inputs, output, title=title)(make)


def _flags(n: Given) -> int:
    asked = {"case_insensitive": re.IGNORECASE, "multiline": re.MULTILINE, "dotall": re.DOTALL}
    return sum(flag for name, flag in asked.items() if n.get(name))


def _pattern(n: Given) -> re.Pattern[str]:
    if len(n["regex_pattern"]) > GREEDY or len(n["string"]) > LONGEST:
        got = f"{len(n['regex_pattern'])} letters on {len(n['string'])}"
        raise ValueError(f"regex_pattern: got {got}, expected at most {GREEDY} on {LONGEST}")
    try:
        return re.compile(n["regex_pattern"], _flags(n))
    except re.error as e:
        raise ValueError(f"regex_pattern: {e}") from e


def _extract(n: Given) -> str:
    pattern, at, mode = _pattern(n), n["group_index"], n["mode"]
    if mode == "All Matches":
        return "\n".join(m.group(1 if pattern.groups > 1 else pattern.groups and 1) for m in pattern.finditer(n["string"]))
    if at > pattern.groups and "Group" in mode:
        return ""
    if mode == "All Groups":
        return "\n".join(m.group(at) or "" for m in pattern.finditer(n["string"]))
    found = pattern.search(n["string"])
    return "" if found is None else found.group(at if mode == "First Group" else 0) or ""


def _compared(n: Given) -> bool:
    a, b = (n[k] if n["case_sensitive"] else n[k].lower() for k in ("string_a", "string_b"))
    return bool({"Equal": a == b, "Starts With": a.startswith(b), "Ends With": a.endswith(b)}[n["mode"]])


def _has(n: Given) -> bool:
    a, b = (n[k] if n["case_sensitive"] else n[k].lower() for k in ("string", "substring"))
    return b in a


Changed = Mapping[str, Callable[[str], str]]
CASES: Changed = {"UPPERCASE": str.upper, "lowercase": str.lower, "Capitalize": str.capitalize, "Title Case": str.title}
ENDS: Changed = {"Both": str.strip, "Left": str.lstrip, "Right": str.rstrip}
PATTERN = text("regex_pattern", many_lines=True)
SENSITIVE = switch("case_sensitive", True)

_words("StringConcatenate", "Concatenate", [*BOTH, text("delimiter")], "STRING",
       lambda n: n["delimiter"].join((n["string_a"], n["string_b"])))
_words("StringSubstring", "Substring", [STRING, Input("start", "INT"), Input("end", "INT")], "STRING",
       lambda n: n["string"][n["start"] : n["end"]])
_words("StringLength", "Length", [STRING], "length:INT", lambda n: len(n["string"]))
_words("CaseConverter", "Case Converter", [STRING, choice("mode", tuple(CASES))], "STRING", lambda n: CASES[n["mode"]](n["string"]))
_words("StringTrim", "Trim", [STRING, choice("mode", tuple(ENDS))], "STRING", lambda n: ENDS[n["mode"]](n["string"]))
_words("StringReplace", "Replace", [STRING, text("find", many_lines=True), text("replace", many_lines=True)], "STRING",
       lambda n: n["string"].replace(n["find"], n["replace"]))
_words("StringContains", "Contains", [STRING, text("substring", many_lines=True), SENSITIVE], "contains:BOOLEAN", _has)
_words("StringCompare", "Compare", [*BOTH, choice("mode", ("Starts With", "Ends With", "Equal")), SENSITIVE], "BOOLEAN", _compared)
_words("RegexMatch", "Regex Match", [STRING, PATTERN, *FLAGS], "matches:BOOLEAN", lambda n: _pattern(n).search(n["string"]) is not None)
_words("RegexExtract", "Regex Extract",
       [STRING, PATTERN, choice("mode", ("First Match", "All Matches", "First Group", "All Groups")), *FLAGS,
        integer("group_index", 1, 0, 100)], "STRING", _extract)
_words("RegexReplace", "Regex Replace",
       [STRING, PATTERN, text("replace", many_lines=True), *[replace(f, optional=True) for f in FLAGS],
        replace(integer("count", 0, 0, 100), optional=True)], "STRING",
       lambda n: _pattern({"case_insensitive": True, **n}).sub(n["replace"], n["string"], count=n.get("count", 0)))


@node("PreviewAny", "utils", socket("*", "source"), title="Preview Any", ends=True)
def preview(b: Building, n: Given) -> Any:
    """What a value is, as a text."""
    found = n["source"]
    if isinstance(found, str | int | float | bool):
        shown = b.add("say", text=found if isinstance(found, str) else str(found))
    else:
        seen = as_port(found)
        shown = b.add("describe", value=seen) if isinstance(seen, Link) else b.add("say", text=json.dumps(seen, default=str))
    b.save(shown, "ComfyUI_text", kept=False)
