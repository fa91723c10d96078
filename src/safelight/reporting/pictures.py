"""The sections about the data: what is used, what was left out and why, and what the captions say."""
from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby

from safelight.pictures import Unreadable, read
from safelight.reporting.html import Markup, el, join, picture, size
from safelight.reporting.story import Story
from safelight.values import Row

MOST = 240  # thumbnails of either kind
THUMB = 160
PHRASES = 24


def thumb(row: Row) -> Markup:
    """The row's picture, small; a box with words when there is none."""
    if not row.picture.sha256:
        return el("div", "not there", cls="void")
    try:
        return picture(read(row.picture.path, least=THUMB), row.caption or row.name, longest=THUMB * 2)
    except Unreadable:
        return el("div", "no picture", cls="void")


def kept(story: Story) -> Markup:
    """Thumbnails of the rows in use, with their captions."""
    if story.data is None:
        return Markup("")
    rows = story.data.kept
    frames = [el("li", el("figure", thumb(r), el("figcaption", el("b", r.name), r.caption or "no caption"))) for r in rows[:MOST]]
    more = el("p", f"and {len(rows) - MOST} more", cls="small") if len(rows) > MOST else ""
    shapes = Counter((r.width, r.height) for r in rows).most_common(3)
    said = ", ".join(f"{n} of {w} × {h}" if len(shapes) > 1 else f"all {w} × {h}" for (w, h), n in shapes)
    total = sum(int(r.info.get("bytes", 0)) for r in rows)
    facts = el("p", f"{len(rows)} pictures" + (f": {said}" if said else "") + (f"; {size(total)}" if total else "") + ".", cls="intro")
    return join([facts, _source(story), el("ol", frames, cls="thumbs"), more])


def _source(story: Story) -> Markup:
    source = story.data.info.get("source") if story.data is not None else None
    return el("p", "From ", el("code", str(source)), cls="small") if source else Markup("")


def dropped(story: Story) -> Markup:
    """What was left out, grouped by the kind of reason, each file with its own, copies beside the one kept; and what else could not be
    read."""
    rows = [r for r in story.data.rows if r.dropped] if story.data is not None else []
    problems = list(story.data.info.get("problems", ())) if story.data is not None else []
    if not rows and not problems:
        return Markup("")
    counts = Counter(r.dropped.partition(":")[0] for r in rows)
    summary = el("ul", [el("li", el("b", str(n)), " ", reason) for reason, n in counts.most_common()], cls="tally")
    order = [reason for reason, _ in counts.most_common()]
    rows.sort(key=lambda r: (order.index(r.dropped.partition(":")[0]), r.name))
    names = {r.name: r for r in story.data.rows} if story.data is not None else {}
    kinds = [el("div", el("h3", reason[:1].upper() + reason[1:], el("small", f" {counts[reason]}")), _alike(list(some), names), cls="kind")
             for reason, some in groupby(rows[:MOST], key=lambda r: r.dropped.partition(":")[0])]
    more = el("p", f"and {len(rows) - MOST} more", cls="small") if len(rows) > MOST else ""
    notes = el("ul", [el("li", p) for p in problems], cls="small") if problems else ""
    return join([summary, *kinds, more, notes])


def _alike(rows: Sequence[Row], names: Mapping[str, Row]) -> Markup:
    """The rows of one reason: those that are like another one in a frame with it, the others one by one."""
    clusters: dict[str, list[Row]] = {}
    for row in rows:
        kept = str(row.info.get("like", {}).get("kept", ""))
        clusters.setdefault(kept if kept in names else "", []).append(row)
    single = clusters.pop("", [])
    frames = [el("li", _stays(names[kept]), [_goes(r) for r in some]) for kept, some in clusters.items()]
    outs = [el("li", el("div", thumb(r), cls="struck"), el("div", el("b", r.name), el("span", r.dropped))) for r in single]
    return join([el("ol", frames, cls="alike") if frames else "", el("ol", outs, cls="outs") if outs else ""])


def _stays(row: Row) -> Markup:
    said = "left out too" if row.dropped else "kept"
    return el("figure", el("div", thumb(row)), _told(row, said), cls="stays")


def _goes(row: Row) -> Markup:
    like = row.info["like"]
    near = f"{like['bits']} of 64 bits differ" if "bits" in like else "same file"
    near = f"{like['similarity']:.3f} alike" if "similarity" in like else near
    return el("figure", el("div", thumb(row), cls="struck"), _told(row, near), title=row.dropped)


def _told(row: Row, said: str) -> Markup:
    return el("figcaption", el("b", row.name), el("span", said), el("span", f"{row.width} × {row.height}"))


def captions(story: Story) -> Markup:
    """How many are captioned, how long they are, where they came from, and the phrases used most."""
    texts = [r.caption for r in story.data.kept] if story.data is not None else []
    said = [t for t in texts if t]
    if story.data is None or not said:
        return Markup("")
    words = sorted(len(t.split()) for t in said)
    layers = Counter(r.captions[-1].by for r in story.data.kept if r.captions)
    sources = ", ".join(f"{n} from {by}" for by, n in layers.most_common())
    intro = f"{len(said)} of {len(texts)} captioned ({sources}), {words[len(words) // 2]} words each, by the median."
    phrases = Counter(p.strip() for t in said for p in t.replace(",", ",").split(",") if p.strip())
    chips = [el("li", phrase, " ", el("b", f"{n}")) for phrase, n in phrases.most_common(PHRASES) if n > 1]
    return join([el("p", intro, cls="intro"), el("ul", chips, cls="chips") if chips else ""])
