"""The sections about a training: its curves, and every setting it ran with."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safelight.limits import FAR
from safelight.reporting.charts import Line, chart, smoothed, thinned
from safelight.reporting.html import Markup, duration, el, join, number, size
from safelight.reporting.pictures import thumb
from safelight.reporting.story import Story


def _points(record: Mapping[str, Any], name: str) -> list[tuple[float, float]]:
    return [(float(row[0]), float(row[1])) for row in record.get(name) or ()]


def training(story: Story) -> Markup:
    """Loss and held-out loss by step, the learning rate, and the proof that the saved file is what was trained."""
    record = story.record
    loss, rate = _points(record, "loss"), _points(record, "lr")
    held: Sequence[Sequence[float]] = record.get("held_out") or ()
    if not loss and not held:
        return Markup("")
    lines = [Line("each step", "raw", thinned(loss)), Line("loss, smoothed", "loss", thinned(smoothed(loss)))] if loss else []
    if held:
        band = tuple((float(h[2]), float(h[3])) for h in held) if all(len(h) >= 4 for h in held) else ()
        lines.append(Line("held out", "held", tuple((float(h[0]), float(h[1])) for h in held), band, dots=True))
    step = record.get("kept_step")
    mark = (float(step), f"kept: step {step}") if step is not None else None
    charts = [chart("Loss", lines, x_name="step", mark=mark)]
    if len({y for _, y in rate}) > 1:
        charts.append(chart("Learning rate", [Line("learning rate", "rate", thinned(rate))], x_name="step"))
    hard = ("Pictures whose loss was furthest above what is usual at the noise they were shown under. One that does not belong is often "
            "the first; a wrong caption of a picture like the others shows less.")
    wrong = "Captions that helped their pictures far less than the others' do, in deviations from what is usual."
    doubtful = [row for row in record.get("doubtful") or () if row[3] > FAR]
    return join([el("div", charts, cls="charts" if len(charts) > 1 else "charts one"), _levels(record),
                 _misfits(story, "Captions that do not fit", wrong, doubtful, "{:.1f} deviations "),
                 _misfits(story, "Hardest to learn", hard, record.get("hard") or (), "{:.2f} times the usual loss "),
                 _expected(record), _proof(record)])


def _levels(record: Mapping[str, Any]) -> Markup:
    """Held-out loss by noise level, a small chart each."""
    levels: dict[float, list[Sequence[float]]] = {}
    for step, sigma, *reading in record.get("bands") or ():
        levels.setdefault(float(sigma), []).append((float(step), *map(float, reading)))
    if not any(len(readings) > 1 for readings in levels.values()):
        return Markup("")
    small = []
    for sigma, found in sorted(levels.items()):
        line = Line("held out", "held", tuple((r[0], r[1]) for r in found), tuple((r[2], r[3]) for r in found), dots=True)
        small.append(chart(f"σ {number(sigma)}", [line], x_name="step"))
    said = "The same pictures under the same noise, from little noise to much, each with the 95 % interval of its change."
    return el("div", el("h3", "Held-out loss by noise level"), el("p", said, cls="advice"), el("div", small, cls="levels"), cls="kind")


def _misfits(story: Story, heading: str, said: str, found: Sequence[Sequence[Any]], unit: str) -> Markup:
    """Pictures (step, name, caption, how much, ...) as the last look found them."""
    latest = [h for h in found if h[0] == found[-1][0]]
    if not latest:
        return Markup("")
    rows = {row.name: row for row in story.data.kept} if story.data is not None else {}
    frames = [el("li", el("figure", thumb(rows[name]) if name in rows else "",
                          el("figcaption", el("b", name), el("small", unit.format(much)), caption or "no caption")))
              for _, name, caption, much, *_ in latest]
    return el("div", el("h3", heading), el("p", said, cls="advice"), el("ol", frames, cls="thumbs"), cls="kind")


def _expected(record: Mapping[str, Any]) -> Markup:
    flight, spent = record.get("preflight"), record.get("seconds")
    if not flight:
        return Markup("")
    peak = f", {size(flight['peak'])} of memory" if flight.get("peak") else ""
    return el("p", f"Expected beforehand: {duration(flight['seconds'])}{peak}. The steps took {duration(float(spent or 0))}.", cls="small")


def _proof(record: Mapping[str, Any]) -> Markup:
    proof = record.get("proof")
    if not proof:
        return Markup("")
    said = (f"The saved file was loaded back: {proof['matched']} of {proof['total']} layers matched, greatest difference "
            f"{number(float(proof['max_difference']))}.")
    return el("p", said, cls="small")


def settings(story: Story) -> Markup:
    """The training's settings as a list of names and values."""
    given = story.record.get("settings") or {}
    rows = [(name, _plain(value)) for name, value in _flat(given)]
    return el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in rows], cls="settings") if rows else Markup("")


def _flat(settings: Mapping[str, Any], inside: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for name, value in settings.items():
        full = f"{inside}{name}"
        out += _flat(value, f"{full}.") if isinstance(value, Mapping) and value else [(full, value)]
    return out


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_plain(v) for v in value) or "none"
    if value is None or value in ("", {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return number(value, 4) if isinstance(value, float) else str(value)
