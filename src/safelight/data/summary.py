"""What a dataset is made of, in numbers: sizes, shapes, captions, who wrote them, where the pictures come from."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from safelight.data.wording import parts
from safelight.values import Row

Bars = tuple[tuple[str, int], ...]
SIDES = (128, 256, 384, 512, 640, 768, 1024, 1536, 2048)
SHAPES = ((1, 3), (1, 2), (9, 16), (2, 3), (3, 4), (4, 5), (1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (3, 1))
LENGTHS = (1, 2, 5, 10, 20, 30, 40, 50)  # how wide a bar of caption lengths may be
MOST_BARS = 14
UNKNOWN = "not stated"
NAMES = {"licence": ("licence", "license"), "source": ("source",), "author": ("author", "artist", "photographer")}


def sides(rows: Iterable[Row]) -> Bars:
    """Pictures by their shorter side in pixels: below the first bound, then from each bound on."""
    counts = Counter(sum(min(r.width, r.height) >= bound for bound in SIDES) for r in rows)
    names = [f"< {SIDES[0]}", *(f"{bound}+" for bound in SIDES)]
    return _trimmed([(name, counts[i]) for i, name in enumerate(names)])


def shapes(rows: Iterable[Row]) -> Bars:
    """Pictures by the nearest of the usual ratios of width to height."""
    logs = [math.log(w / h) for w, h in SHAPES]
    counts = Counter(min(range(len(logs)), key=lambda i: abs(logs[i] - math.log(r.width / r.height))) for r in rows)
    return _trimmed([(f"{w}:{h}", counts[i]) for i, (w, h) in enumerate(SHAPES)])


def lengths(rows: Iterable[Row], count: Callable[[str], int]) -> Bars:
    """Captions by their length as `count` says it, in bars of one width; those of length 0 stand first."""
    found = [count(r.caption) for r in rows]
    top = max(found, default=0)
    width = next((n for n in LENGTHS if top / n < MOST_BARS), max(1, top // MOST_BARS))
    counts = Counter(0 if n == 0 else 1 + (n - 1) // width for n in found)
    names = ["none", *(f"{i * width + 1}" + (f"–{(i + 1) * width}" if width > 1 else "") for i in range(-(-top // width)))]
    return tuple((name, counts[i]) for i, name in enumerate(names) if i or counts[0])


def _trimmed(bars: Sequence[tuple[str, int]]) -> Bars:
    """Without the empty bars at both ends."""
    full = [i for i, (_, n) in enumerate(bars) if n]
    return tuple(bars[full[0]:full[-1] + 1]) if full else ()


def tags(rows: Iterable[Row]) -> Bars:
    """What stands between commas in the captions in use, by how many pictures have it, the most frequent first."""
    return tuple(Counter(p for r in rows for p in parts(r.caption)).most_common())


def writers(rows: Iterable[Row]) -> Bars:
    """Who wrote the captions in use."""
    return tuple(Counter(r.captions[-1].by if r.caption else "no caption" for r in rows).most_common())


def told(row: Row, what: str) -> str:
    """A row's `licence`, `source` or `author`, from where it was collected or from its table; empty when nobody says."""
    places = (row.info.get("origin") or {}, row.info.get("metadata") or {})
    return next((str(p[name]) for p in places for name in NAMES[what] if p.get(name)), "")


def origins(rows: Iterable[Row], what: str) -> Bars:
    """Pictures by their licence, source or author; those of which it is not known come last."""
    counts = Counter(told(r, what) or UNKNOWN for r in rows)
    return tuple(sorted(counts.items(), key=lambda kv: (kv[0] == UNKNOWN, -kv[1], kv[0])))
