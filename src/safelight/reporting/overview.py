"""A dataset at a glance: what is in it, on one page or one sheet; and what a doctor found in a folder, in the same look."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from safelight.reporting.html import Markup, el, join, size
from safelight.reporting.page import document
from safelight.reporting.pictures import MOST, dropped, thumb
from safelight.reporting.story import Story
from safelight.values import Dataset, Row

if TYPE_CHECKING:
    from safelight.data.buckets import Filled

CHIPS = 60
LONGEST = 240  # characters of a caption below its picture
LETTERS = 44  # that have room below a histogram


@dataclass(frozen=True)
class Histogram:
    """Bars by label, in order, under a title."""

    title: str
    bars: tuple[tuple[str, int], ...]
    note: str = ""


@dataclass(frozen=True)
class Overview:
    """What the page shows. `counts` are short tables by heading: who wrote the captions, sources, licences."""

    title: str
    data: Dataset
    histograms: tuple[Histogram, ...] = ()
    buckets: Sequence[Filled] = ()
    tags: tuple[tuple[str, int], ...] = ()
    counts: Mapping[str, tuple[tuple[str, int], ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """One kind of defect: heading, what to do, and for each file its name, what exactly, and the pictures it is about."""

    heading: str
    advice: str
    files: Sequence[tuple[str, str, Sequence[Row]]]


def page(story: Overview) -> str:
    """The whole HTML page. Sections that have nothing to show are left out."""
    rows = story.data.kept
    frames = [el("li", el("figure", thumb(r), el("figcaption", el("b", r.name), _caption(r)))) for r in rows[:MOST]]
    more = el("p", f"and {len(rows) - MOST} more", cls="small") if len(rows) > MOST else ""
    sections = [
        ("shape", "Sizes and lengths", el("div", [_columns(h) for h in story.histograms if h.bars], cls="hists")),
        ("buckets", "Aspect buckets", _buckets(story.buckets)),
        ("tags", "What captions say", _tags(story.tags)),
        ("origin", "Where it comes from", el("div", [_counts(name, bars) for name, bars in story.counts.items() if bars], cls="hists")),
        ("pictures", "Pictures", join([el("ol", frames, cls="thumbs"), more])),
        ("dropped", "Left out", dropped(Story(story.title, story.data))),
    ]
    shown = {"buckets": story.buckets, "tags": story.tags, "pictures": rows, "dropped": sections[-1][2]}
    out = len(story.data.rows) - len(rows)
    lede = f"{_many(len(rows), 'picture')}, {sum(bool(r.caption) for r in rows)} of them captioned" + (f"; {out} left out." if out else ".")
    return document(story.title, lede, _facts(story), [s for s in sections if shown.get(s[0], True)], story.versions)


def _caption(row: Row) -> Markup:
    if not row.caption:
        return Markup("no caption")
    said = row.caption if len(row.caption) <= LONGEST else el("span", f"{row.caption[:LONGEST]} …", title=row.caption)
    return join([said, el("small", f" {row.captions[-1].by}")])


def _facts(story: Overview) -> list[tuple[str, str]]:
    rows = story.data.kept
    total, shorter = sum(int(r.info.get("bytes", 0)) for r in rows), sorted(min(r.width, r.height) for r in rows)
    facts = [("Pictures", f"{len(rows):,}"), ("Captioned", f"{sum(bool(r.caption) for r in rows):,}")]
    facts += [("On disk", size(total))] if total else []
    facts += [("Shorter side, median", f"{shorter[len(shorter) // 2]} px")] if shorter else []
    return [*facts, *([("Different tags", f"{len(story.tags):,}")] if story.tags else [])]


def _columns(shown: Histogram) -> Markup:
    top = max(n for _, n in shown.bars)
    every = -(-len(shown.bars) * max(len(label) for label, _ in shown.bars) // LETTERS)
    bars = [el("li", el("b", f"{n:,}" if n else ""), el("i", style=f"height:{max(1, 72 * n / top) if n else 0:.1f}%"),
               el("span", label if i % every == 0 else "\u00a0")) for i, (label, n) in enumerate(shown.bars)]
    return el("figure", el("figcaption", el("strong", shown.title)), el("ol", bars), el("p", shown.note, cls="small") if shown.note else "",
              cls="hist")


def _tags(tags: Sequence[tuple[str, int]]) -> Markup:
    """Those of several pictures; of the others only how many there are, when there are any of several."""
    often = [t for t in tags if t[1] > 1][:CHIPS] or tags[:CHIPS]
    rest = len(tags) - len(often)
    more = el("p", f"and {rest:,} more, which {'is' if rest == 1 else 'are'} said less often", cls="small") if rest else ""
    return join([el("ul", [el("li", t, " ", el("b", f"{n:,}")) for t, n in often], cls="chips"), more])


def _counts(name: str, bars: Sequence[tuple[str, int]]) -> Markup:
    top = max(n for _, n in bars)
    rows = [el("li", el("span", label), el("i", style=f"width:{max(0.6, 100 * n / top):.1f}%"), el("b", f"{n:,}"))
            for label, n in bars[:12]]
    more = el("p", f"and {len(bars) - 12} more", cls="small") if len(bars) > 12 else ""
    return el("figure", el("figcaption", el("strong", name)), el("ol", rows, cls="bars"), more)


def _buckets(buckets: Sequence[Filled]) -> Markup:
    scale = 120 / max((max(b.bucket) for b in buckets), default=1)
    boxes = [el("li", el("i", str(b.count), style=f"width:{max(30, w * scale):.0f}px;height:{max(22, h * scale):.0f}px"),
                el("b", f"{w} × {h}"), el("small", f"{b.cut:.0%} cut off")) for b in buckets for w, h in [b.bucket]]
    said = el("p", "What training with aspect buckets would cut the pictures to, and how much of them is lost on average.", cls="intro")
    return join([said, el("ul", boxes, cls="buckets")])


def findings(title: str, looked: Mapping[str, str], found: Sequence[Found], versions: Mapping[str, str]) -> str:
    """What the doctor found as one HTML page; `looked` says what was looked at and by which limits."""
    total = sum(len(f.files) for f in found)
    lede = f"{_many(total, 'finding')} of {_many(len(found), 'kind')}." if total else "Nothing was found."
    tally = el("ul", [el("li", el("b", str(len(f.files))), " ", el("a", _lower(f.heading), href=f"#kind-{i}"))
                      for i, f in enumerate(found)], cls="tally")
    sections = [("found", "What was found", tally if found else el("p", "Every check passed.", cls="intro"))]
    if found:
        sections.append(("files", "File by file", join([_kind(f, i) for i, f in enumerate(found)])))
    return document(title, lede, list(looked.items()), sections, versions)


def _kind(found: Found, number: int) -> Markup:
    files = [el("li", el("div", [thumb(r) for r in rows[:2]] or el("div", "text", cls="void"), cls="both" if len(rows) > 1 else "one"),
                el("div", el("b", name), el("span", text))) for name, text, rows in found.files[:MOST]]
    more = el("p", f"and {len(found.files) - MOST} more", cls="small") if len(found.files) > MOST else ""
    return el("div", el("h3", found.heading), el("p", found.advice, cls="advice"), el("ol", files, cls="outs"), more, id=f"kind-{number}",
              cls="kind")


def _many(n: int, what: str) -> str:
    return f"{n} {what}" + ("" if n == 1 else "s")


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
