"""The sections about the data: what is used, what was left out and why, and what the captions say."""
from __future__ import annotations

from collections import Counter

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
    """What was left out, grouped by the kind of reason, each file with its own; and what else could not be read."""
    rows = [r for r in story.data.rows if r.dropped] if story.data is not None else []
    problems = list(story.data.info.get("problems", ())) if story.data is not None else []
    if not rows and not problems:
        return Markup("")
    counts = Counter(r.dropped.partition(":")[0] for r in rows)
    summary = el("ul", [el("li", el("b", str(n)), " ", reason) for reason, n in counts.most_common()], cls="tally")
    order = [reason for reason, _ in counts.most_common()]
    rows.sort(key=lambda r: (order.index(r.dropped.partition(":")[0]), r.name))
    frames = [el("li", el("div", thumb(r), cls="struck"), el("div", el("b", r.name), el("span", r.dropped))) for r in rows[:MOST]]
    more = el("p", f"and {len(rows) - MOST} more", cls="small") if len(rows) > MOST else ""
    notes = el("ul", [el("li", p) for p in problems], cls="small") if problems else ""
    return join([summary, el("ol", frames, cls="outs"), more, notes])


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
