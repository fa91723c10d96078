"""Filters and selectors by any column, or by a stat: `score`, `meta.likes`, `__dj__stats__.image_width`."""
from __future__ import annotations

import ast
import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

from safelight.data.juicer.registry import COUNT, MAX, RATIO, STATS, SUFFIX, Param, Sample, Settings, pick, row_filter, settle, within

FIELD = {"field_key": "", "top_ratio": RATIO, "topk": COUNT, "reverse": True}


def value_at(sample: Sample, dotted: str) -> Any:
    """The value of a column, or of a field inside of one. KeyError with the name that is not there."""
    found: Any = {**sample.row, STATS: sample.stats}
    for name in dotted.split("."):
        found = found[name]
    return found


def _noted(sample: Sample, key: str) -> Any:
    return sample.stats.setdefault(key, settle(value_at(sample, key)))


@row_filter(field_key="", target_value=Param([], (list,)))
def specified_field_filter(sample: Sample, _: object, s: Settings) -> str:
    """Keep rows whose field is one of the values; of a list, when all its items are."""
    found = _noted(sample, s["field_key"])
    if not s["target_value"]:
        return ""
    inside = all(v in s["target_value"] for v in (found if isinstance(found, list) else [found]))
    return "" if inside != s["reversed_range"] else f"{s['field_key']} is {found!r}"


@row_filter(field_key="", min_value=float(-MAX), max_value=float(MAX))
def specified_numeric_field_filter(sample: Sample, _: object, s: Settings) -> str:
    """Keep rows whose field is a number in the range; what is no number, empty or 0 is dropped, as Data-Juicer does."""
    found = _noted(sample, s["field_key"])
    try:
        number = float(found) if found else math.nan
    except (TypeError, ValueError):
        number = math.nan
    fits = not math.isnan(number) and within(s["min_value"], s["max_value"], s)(number)
    return "" if fits else f"{s['field_key']} is {found!r}"


@row_filter(suffixes=Param([], (str, list)))
def suffix_filter(sample: Sample, _: object, s: Settings) -> str:
    """Keep rows from files with one of the suffixes."""
    wanted = [s["suffixes"]] if isinstance(s["suffixes"], str) else s["suffixes"]
    inside = not wanted or (sample.row[SUFFIX] in wanted) != s["reversed_range"]
    return "" if inside else f"suffix is {sample.row[SUFFIX]}"


@row_filter("general_field_filter_condition", filter_condition="")
def general_field_filter(sample: Sample, _: object, s: Settings) -> str:
    """Keep rows for which a condition holds: `score > 3 and source in ['own', 'pexels']`. Only comparisons; nothing is called."""
    if not s["filter_condition"].strip():
        return ""
    kept = sample.stats.setdefault("general_field_filter_condition", bool(_value(_condition(s["filter_condition"]), sample)))
    return "" if kept else f"not {s['filter_condition'].strip()}"


COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Gt: lambda a, b: a > b, ast.Lt: lambda a, b: a < b, ast.GtE: lambda a, b: a >= b, ast.LtE: lambda a, b: a <= b,
    ast.Eq: lambda a, b: a == b, ast.NotEq: lambda a, b: a != b, ast.In: lambda a, b: a in b, ast.NotIn: lambda a, b: a not in b,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.USub: lambda v: -v, ast.UAdd: lambda v: +v, ast.Not: lambda v: not v}


@cache
def _condition(text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"general_field_filter: filter_condition: {text!r} is no condition ({error.msg})") from error


def _value(node: ast.expr, sample: Sample) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return sample.stats if node.id == STATS else sample.row.get(node.id)
        case ast.Attribute():
            inner = _value(node.value, sample)
            return inner.get(node.attr) if isinstance(inner, dict) else None
        case ast.UnaryOp() if type(node.op) in UNARY:
            return UNARY[type(node.op)](_value(node.operand, sample))
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(item, sample) for item in node.elts]
        case ast.BoolOp():
            every = all if isinstance(node.op, ast.And) else any
            return every(_value(item, sample) for item in node.values)
        case ast.Compare():
            return _compared(node, sample)
    raise ValueError(f"general_field_filter: {ast.unparse(node)!r} is not understood; use columns, values, comparisons, and, or, not")


def _compared(node: ast.Compare, sample: Sample) -> bool:
    left = _value(node.left, sample)
    for op, other in zip(node.ops, node.comparators, strict=True):
        right = _value(other, sample)
        if left is None or right is None:
            return isinstance(op, ast.NotIn)
        if type(op) not in COMPARE or not COMPARE[type(op)](left, right):
            return False
        left = right
    return True


def _field(sample: Sample, _: object, s: Settings) -> Any:
    return value_at(sample, s["field_key"]) if s.get("field_key") else None


def _number(value: Any, *, missing: float) -> float:
    """A stat as a number: a list's mean; what is none sorts where it is taken last."""
    try:
        if isinstance(value, list):
            return math.fsum(value) / len(value)
        return float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return missing


def _wanted(count: int, s: Settings) -> int:
    """How many: top_ratio of the count, topk when that is fewer or alone; 0: no limit was given."""
    if not s["top_ratio"]:
        return s["topk"] or 0
    return int(min(s["top_ratio"] * count, s["topk"] or math.inf))


def _limited(keys: Sequence[Any], s: Settings) -> bool:
    return len(keys) > 1 and bool(s["field_key"]) and bool(s["top_ratio"] or s["topk"])


def _top(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    if not _limited(keys, s):
        return range(len(keys))
    values = keys
    if "." in s["field_key"]:
        values = [_number(v, missing=-MAX if s["reverse"] else MAX) for v in keys]
    choose = heapq.nlargest if s["reverse"] else heapq.nsmallest
    return choose(_wanted(len(keys), s), range(len(keys)), values.__getitem__)


def _between(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    n, low, high = len(keys), s["lower_percentile"], s["upper_percentile"]
    if n <= 1 or not s["field_key"] or (low is None and s["lower_rank"] is None) or (high is None and s["upper_rank"] is None):
        return range(n)
    first = max(int((low or 0) * n), s["lower_rank"] or 0)
    last = max(first, min(n if high is None else int(high * n), s["upper_rank"] or n))
    values = [_number(v, missing=-MAX) for v in keys]
    lowest = heapq.nsmallest(last, range(n), values.__getitem__)
    return [lowest[i] for i in heapq.nlargest(last - first, range(len(lowest)), lambda i: values[lowest[i]])]


def _frequent(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    if not _limited(keys, s):
        return range(len(keys))
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, key in enumerate(keys):
        groups[key].append(i)
    return list(chain.from_iterable(sorted(groups.values(), key=len, reverse=s["reverse"])[:_wanted(len(groups), s)]))


def _tagged(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    if len(keys) <= 1 or not s["field_key"]:
        return range(len(keys))
    return [i for i, key in enumerate(keys) if key in s["target_tags"]]


def _drawn(keys: Sequence[Any], s: Settings) -> Sequence[int]:
    n = len(keys)
    if n <= 1 or (s["select_ratio"] is None and s["select_num"] is None):
        return range(n)
    count = int(s["select_ratio"] * n) if s["select_ratio"] else s["select_num"] or 0
    count = min(count, s["select_num"] or count)
    return drawn(n, n if count <= 0 else count)  # Data-Juicer keeps all rows when none would be left


def drawn(n: int, count: int) -> Sequence[int]:
    """`count` of n indices in the order that Data-Juicer draws them; more than n: all again and again."""
    if count == n:
        return range(n)
    import numpy as np

    order = np.random.default_rng(42).permutation(n).tolist()
    return [order[i] for i in [*range(n)] * (-(-count // n) - 1) + [*range((count - 1) % n + 1)]]


SELECTORS: dict[str, tuple[Callable[[Sequence[Any], Settings], Sequence[int]], dict[str, Any]]] = {
    "topk_specified_field_selector": (_top, FIELD),
    "range_specified_field_selector": (_between, {
        "field_key": "", "lower_percentile": RATIO, "upper_percentile": RATIO, "lower_rank": COUNT, "upper_rank": COUNT}),
    "frequency_specified_field_selector": (_frequent, FIELD),
    "tags_specified_field_selector": (_tagged, {"field_key": "", "target_tags": Param([], (list,))}),
    "random_selector": (_drawn, {"select_ratio": RATIO, "select_num": COUNT}),
}


def _selector(name: str) -> None:
    choose, settings = SELECTORS[name]

    def key(sample: Sample, pictures: object, s: Settings) -> Any:
        return _field(sample, pictures, s)

    key.__name__ = name
    pick(choose, **settings)(key)


for _name in SELECTORS:
    _selector(_name)
