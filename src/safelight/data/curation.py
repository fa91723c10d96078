"""Which pictures are fit for use. A dropped row stays in the dataset with its reason; cheap rules run first, each file is decoded once."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from safelight.data.duplicates import coarse, phash, repeats, same_colours
from safelight.data.measures import Measure, Picture, find
from safelight.data.metadata import read_table
from safelight.events import Event, Note, Progress
from safelight.pictures import Unreadable
from safelight.values import Dataset, Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

EVERY = 20  # pictures between two progress events
Known = MutableMapping[tuple[str, str], Any]
HASH, COLOURS = "phash 3", "colours 1"
"""Questions beside the measures': a picture's hash and its coarse colours, as hex digits."""
KEEP = "keep"
"""What a table of choices says of a picture that is taken back."""
T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """Keep pictures whose `measure` lies in [low, high]; others are dropped as `reason`. None leaves that side open."""

    measure: str
    reason: str
    low: float | None = None
    high: float | None = None

    def verdict(self, value: float) -> str:
        """Empty when the value is in range, else the whole sentence: `too small: shorter side 48 px is below 128 px`."""
        m = find(self.measure)
        unit = f" {m.unit}" if m.unit else ""
        shown = f"{round(value, 4):.4g}{unit}"
        if self.low is not None and value < self.low:
            return f"{self.reason}: {m.label} {shown} is below {self.low:.4g}{unit}"
        if self.high is not None and value > self.high:
            return f"{self.reason}: {m.label} {shown} is above {self.high:.4g}{unit}"
        return ""


@dataclass
class Verdicts:
    """Work in progress: reason, measures, likeness (info['like']) by row index. `open` are the indices that nothing has dropped yet."""

    rows: Sequence[Row]
    reasons: dict[int, str]
    values: dict[int, dict[str, float]]
    like: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def open(self) -> list[int]:
        """Indices of the rows still in."""
        return [i for i in range(len(self.rows)) if i not in self.reasons]

    def dataset(self, data: Dataset) -> Dataset:
        """The dataset with reasons and measures written into its rows, in the same order."""
        rows = []
        for i, row in enumerate(self.rows):
            taken = self.values.get(i)
            info = {**row.info, "measures": {**row.info.get("measures", {}), **taken}} if taken else row.info
            info = {**info, "like": self.like[i]} if i in self.like else info
            rows.append(dataclasses.replace(row, dropped=self.reasons.get(i, ""), info=info))
        return dataclasses.replace(data, rows=tuple(rows))


def curate(data: Dataset, rules: Sequence[Rule], *, distance: int = 6, known: Known | None = None) -> Generator[Event, None, Dataset]:
    """Apply the rules, then drop exact and near duplicates (hash distance in bits; negative: near ones stay). Yields Progress.

    known: what was found before, by (picture's sha256, question), read and added to: a picture all of whose answers are there is not
    opened. Colours are looked at only where hashes are close. Of a duplicate info['like'] names the
    kept one (`kept`) and the `bits` that differ. Order of the reasons: header rules, duplicate,
    unreadable, pixel rules, near duplicate; a row gets the first that applies.
    """
    known = {} if known is None else known
    work = Verdicts(data.rows, {i: r.dropped for i, r in enumerate(data.rows) if r.dropped}, {})
    cheap = [r for r in rules if find(r.measure).needs == "header"]
    for i in work.open:
        _judge(work, i, cheap, Picture(data.rows[i]), known)
    _exact(work)
    costly = [r for r in rules if r not in cheap]
    hashes: dict[int, int] = {}
    todo = work.open if costly or distance >= 0 else []
    for n, i in enumerate(todo):
        if n % EVERY == 0:
            yield Progress(step=n, total=len(todo), what="looking at pictures", unit="picture")
        picture = Picture(data.rows[i])
        try:
            _judge(work, i, costly, picture, known)
            if distance >= 0:  # also of one that was dropped: with another threshold it would stay
                hashes[i] = hashed(picture, known)
        except Unreadable as error:
            work.reasons[i] = f"unreadable: {error}"
    yield Progress(step=len(todo), total=len(todo), what="looking at pictures", unit="picture")
    _near(work, {i: h for i, h in hashes.items() if i not in work.reasons}, distance, known)
    return work.dataset(data)


def _found(known: Known, row: Row, question: str, take: Callable[[], T]) -> T:
    key = (row.picture.sha256, question)
    if key not in known:
        known[key] = take()
    answer: T = known[key]
    return answer


def _judge(work: Verdicts, i: int, rules: Sequence[Rule], picture: Picture, known: Known) -> None:
    """Take every rule's measure, so that the report has all of them; the first rule that fails gives the reason."""
    for rule in rules:
        value = _value(find(rule.measure), picture, known)
        work.values.setdefault(i, {})[rule.measure] = value
        reason = rule.verdict(value)
        if reason:
            work.reasons.setdefault(i, reason)


def better(row: Row) -> tuple[int, bool, int, int, str]:
    """Sorts the picture to keep first: more pixels, a caption, less compressed, then the shorter name."""
    return -row.width * row.height, not row.caption, -int(row.info.get("bytes", 0)), len(row.name), row.name


def _exact(work: Verdicts) -> None:
    first: dict[str, int] = {}
    for i in sorted(work.open, key=lambda i: better(work.rows[i])):
        kept = first.setdefault(work.rows[i].picture.sha256, i)
        if kept != i:
            work.reasons[i] = f"duplicate: the same file as {work.rows[kept].name}"
            work.like[i] = {"kept": work.rows[kept].name}


def _value(measure: Measure, picture: Picture, known: Known) -> float:
    if measure.needs == "header":
        return float(measure.take(picture))
    return _found(known, picture.row, measure.question, lambda: float(measure.take(picture)))


def hashed(picture: Picture, known: Known) -> int:
    """The picture's perceptual hash. Raises Unreadable."""
    return int(_found(known, picture.row, HASH, lambda: f"{phash(picture.grey):016x}"), 16)


def copies(rows: Sequence[Row], hashes: Sequence[int], distance: int, known: Known) -> dict[int, tuple[int, int]]:
    """`duplicates.repeats` of rows, the best first; colours are looked at where hashes are close, and only once."""

    def colours(row: Row) -> NDArray[np.uint8]:
        return np.frombuffer(bytes.fromhex(_found(known, row, COLOURS, lambda: coarse(Picture(row).pixels).tobytes().hex())), np.uint8)

    def agree(a: int, b: int) -> bool:
        try:
            return same_colours(colours(rows[a]), colours(rows[b]))
        except Unreadable:  # gone since its hash was taken: nothing says that it is a copy
            return False

    return repeats(hashes, distance, agree)


def _near(work: Verdicts, hashes: Mapping[int, int], distance: int, known: Known) -> None:
    order = sorted(hashes, key=lambda i: better(work.rows[i]))
    found = copies([work.rows[i] for i in order], [hashes[i] for i in order], distance, known)
    for at, (first, bits) in found.items():
        work.reasons[order[at]] = f"near duplicate: looks like {work.rows[order[first]].name} ({bits} of 64 bits differ)"
        work.like[order[at]] = {"kept": work.rows[order[first]].name, "bits": bits}


def chosen(data: Dataset, path: Path) -> Generator[Event, None, Dataset]:
    """The rows that the table names left out for the reason it gives, or (`keep`) taken back. A Note counts; ValueError when it names none
    of the pictures."""
    said = {PurePosixPath(e.file).as_posix(): e.text.strip() for e in read_table(path).entries if e.text.strip()}
    rows = []
    for row in data.rows:
        told = said.get(row.name, "")
        sound = told and not row.dropped.startswith("unreadable")
        rows.append(dataclasses.replace(row, dropped="" if told == KEEP else told) if sound else row)
    found, left = sum(row.name in said for row in rows), sum(bool(row.dropped) for row in rows)
    if not found:
        names = ", ".join(list(said)[:3]) or "nothing"
        raise ValueError(f"choose_pictures: path: {path} names none of the {len(rows)} pictures; it names {names}")
    yield Note(text=f"choose_pictures: {found} of {len(rows)} pictures by hand, {left} left out in all")
    return dataclasses.replace(data, rows=tuple(rows))
