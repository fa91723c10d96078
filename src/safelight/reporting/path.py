"""The sections about the way: every op from the folder to this page, and what time it took."""
from __future__ import annotations

import json

from safelight.reporting.html import Markup, duration, el
from safelight.reporting.story import Step, Story

LONG = 160  # letters of a setting's value


def lineage(story: Story) -> Markup:
    """The ops in the order they depend on each other, each with its inputs, settings and what came out."""
    if not story.steps:
        return Markup("")
    return el("ol", [_step(s) for s in story.steps], cls="way")


def _step(step: Step) -> Markup:
    given = [(name, _short(value)) for name, value in step.settings.items()]
    listed = el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in given], cls="settings")
    came = el("span", "from ", ", ".join(step.inputs), cls="from") if step.inputs else ""
    made = el("span", step.output, cls="made") if step.output else ""
    details = el("details", el("summary", "1 setting" if len(given) == 1 else f"{len(given)} settings"), listed) if given else ""
    return el("li", el("div", el("h3", step.op), came, made, el("code", step.key[:12], title=step.key)), details)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONG else text[:LONG] + " ..."


def timings(story: Story) -> Markup:
    """How long every op took when it ran, as bars."""
    ran = [s for s in story.steps if s.seconds > 0]
    if not ran:
        return Markup("")
    longest = max(s.seconds for s in ran)
    bars = [el("li", el("span", s.op), el("i", style=f"width:{max(0.4, 100 * s.seconds / longest):.1f}%"), el("b", duration(s.seconds)))
            for s in ran]
    total = duration(sum(s.seconds for s in ran))
    said = f"Together {total}. A result that was there already counts with the time it took when it was made."
    return el("div", el("ol", bars, cls="bars"), el("p", said, cls="small"))
