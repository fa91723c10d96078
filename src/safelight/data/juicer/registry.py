"""Operators under Data-Juicer's names: what each is called, takes and needs. A new one is one function with one of these decorators.

A filter measures; whether the measure fits is decided here, from the range that the settings give, as Data-Juicer 1.6.1 decides it.
"""
from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

if TYPE_CHECKING:
    from safelight.data.juicer.pictures import Picture

MAX = sys.maxsize
STATS, META, SUFFIX = "__dj__stats__", "__dj__meta__", "__dj__suffix__"
Settings = Mapping[str, Any]
Kind = Literal["text", "picture", "pair", "row", "mapper", "pick"]
Need = Literal["text", "stat", "header", "pixels", "model"]
COST: tuple[Need, ...] = ("text", "stat", "header", "pixels", "model")
"""What an operator has to look at, cheapest first."""

PLACES = ("shapes", "texts", "mappers", "fields", "documents", "hashes", "faces", "networks")
"""Modules that declare operators, the quickest to import first."""


class Sample:
    """One row on its way: its line in the input (from 1), its columns, its stats."""

    __slots__ = ("number", "row", "stats")

    def __init__(self, number: int, row: dict[str, Any], stats: dict[str, Any] | None = None) -> None:
        self.number, self.row = number, row
        self.stats: dict[str, Any] = {} if stats is None else stats


class Param(NamedTuple):
    """A setting: its default, the types it may have (None always may), and its bounds or choices."""

    default: Any
    types: tuple[type, ...]
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None


def param(default: Any) -> Param:
    """A Param whose type is that of its default; of a tuple of names the first is the default."""
    if isinstance(default, Param):
        return default
    if isinstance(default, tuple):
        return Param(default[0], (type(default[0]),), default)
    return Param(default, (type(default),))


RATIO, COUNT = Param(None, (float,), low=0, high=1), Param(None, (int,), low=1)
STRATEGY = ("any", "all")
NONE_YET = Param(False, (bool,), (False,))
"""A switch whose other position would need a tokenizer model."""


class Operator(NamedTuple):
    """`run` is what was declared; `stats` maps a stat's name to the settings with its lower and upper bound ("" for an open side).

    `settings` are the operator's own. `least`: pixels the shorter side must keep when it looks at pixels; 0 asks for all of them.
    """

    name: str
    kind: Kind
    needs: Need
    run: Callable[..., Any]
    settings: Mapping[str, Param]
    stats: Mapping[str, tuple[str, str]]
    least: int = 0
    version: int = 1
    choose: Callable[[Sequence[Any], Settings], Sequence[int]] | None = None

    @property
    def changes(self) -> bool:
        """Whether it edits the row, so that nothing may pass it on either side."""
        return self.kind == "mapper"


OPERATORS: dict[str, Operator] = {}
Declared = Callable[[Callable[..., Any]], Callable[..., Any]]


def text_filter(stats: Mapping[str, tuple[str, str]], **settings: Any) -> Declared:
    """Declare `(text, settings) -> tuple of numbers`, one for each stat."""
    return _declare("text", "text", stats, settings)


def picture_filter(
    stats: Mapping[str, tuple[str, str]], *, needs: Need, least: int = 0, **settings: Any,
) -> Declared:
    """Declare `(picture, settings) -> tuple of numbers`; asked of every picture of the row, the stats are lists."""
    return _declare("picture", needs, stats, {**settings, "any_or_all": STRATEGY}, least=least)


def pair_filter(stats: Mapping[str, tuple[str, str]], **settings: Any) -> Declared:
    """Declare `(text, pictures, settings) -> list of numbers`, one for each part of the text that has pictures."""
    return _declare("pair", "model", stats, {**settings, "any_or_all": STRATEGY})


def row_filter(*stats: str, needs: Need = "text", **settings: Any) -> Declared:
    """Declare `(sample, pictures, settings) -> reason to drop, or ""`; it writes its stats itself, by default one named by field_key."""
    return _declare("row", needs, dict.fromkeys(stats, ("", "")), settings)


def mapper(*, needs: Need = "text", **settings: Any) -> Declared:
    """Declare `(text, settings) -> text`, or with `needs` pixels `(sample, pictures, settings) -> None`, which edits the row."""
    return _declare("mapper", needs, {}, settings)


def pick(choose: Callable[[Sequence[Any], Settings], Sequence[int]], *, needs: Need = "text", least: int = 0, **settings: Any) -> Declared:
    """Declare `(sample, pictures, settings) -> key`; `choose` gets the keys of all rows and gives the indices to keep, in order."""
    return _declare("pick", needs, {}, settings, choose=choose, least=least)


def _declare(kind: Kind, needs: Need, stats: Mapping[str, tuple[str, str]], settings: Mapping[str, Any], **more: Any) -> Declared:
    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        name = run.__name__
        OPERATORS[name] = Operator(name, kind, needs, run, {k: param(v) for k, v in settings.items()}, stats, **more)
        return run

    return register


def find(name: str) -> Operator | None:
    """The operator of that name; imports no more modules than it takes to find it."""
    for place in PLACES:
        if name in OPERATORS:
            break
        import_module(f"safelight.data.juicer.{place}")
    return OPERATORS.get(name)


TENTHS = [float(f"1e-{n}") for n in range(11)]


def settle(value: Any) -> Any:
    """A stat as Data-Juicer keeps it: floats go through JSON with ten decimals between measuring and deciding, lists item by item."""
    if type(value) is float:
        whole = int(value)
        tail = abs(value - whole) * 1e10
        digits = int(tail)
        over = tail - digits
        digits += over > 0.5 or (over == 0.5 and (digits == 0 or digits & 1))
        if digits >= 10**10:
            return float(whole + (1 if value >= 0 else -1))
        places = 10
        while digits and not digits % 10:
            digits, places = digits // 10, places - 1
        read = abs(whole) + digits * TENTHS[places] if digits else float(abs(whole))
        return -read if value < 0 else read
    if isinstance(value, list):
        return [settle(v) for v in value]
    if isinstance(value, dict):
        return {k: settle(v) for k, v in value.items()}
    return value


def within(low: float | None, high: float | None, settings: Settings) -> Callable[[float], bool]:
    """Whether a value is in the range: closed at both ends unless the settings say otherwise; reversed_range turns the answer around."""
    reverse = bool(settings["reversed_range"])
    if low is not None and high is not None and not reverse and settings["min_closed_interval"] and settings["max_closed_interval"]:
        return lambda value: low <= value <= high
    from_low, to_high = (bool(settings[k]) != reverse for k in ("min_closed_interval", "max_closed_interval"))

    def fits(value: float) -> bool:
        inside: bool = (low is None or (value >= low if from_low else value > low)) and (
            high is None or (value <= high if to_high else value < high))
        return inside != reverse

    return fits


def images(sample: Sample, key: str) -> list[str]:
    """The row's paths. ValueError when the column holds something else than a list of paths."""
    paths = sample.row.get(key)
    if paths is None:
        return []
    if paths.__class__ is list and len(paths) == 1 and paths[0].__class__ is str:  # nearly always
        return paths
    if paths.__class__ is not list or any([p.__class__ is not str for p in paths]):  # noqa: C419
        raise ValueError(f"column {key!r} is no list of paths; write [\"a.jpg\"], also for one picture")
    return paths


Pictures = Sequence["Picture"]
