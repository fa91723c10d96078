"""The sections that show results: pictures before and after, their scores, and the samples of the training."""
from __future__ import annotations

from safelight.reporting.charts import interval
from safelight.reporting.html import Markup, el, join, number, picture, signed
from safelight.reporting.story import Compared, Sample, Story
from safelight.values import Image


def pairs(story: Story) -> Markup:
    """Every picture of the last batch, beside the one made from the same prompt and seed before, if there is one."""
    if story.after is None:
        return Markup("")
    before = story.before.bytes8() if story.before is not None and len(story.before) == len(story.after) else None
    frames = []
    for i, pixels in enumerate(story.after.bytes8()):
        prompt, seed = _said(story.after, i)
        looks = [] if before is None else [_look(before[i], "before", prompt)]
        looks.append(_look(pixels, "after" if before is not None else "", prompt))
        note = el("span", f"seed {seed}", cls="note") if seed else ""
        words = el("figcaption", el("span", f"{i + 1}", cls="frame"), prompt, " ", note)
        frames.append(el("li", el("figure", el("div", looks, cls="looks"), words)))
    return el("ol", frames, cls="pairs" if before is not None else "pairs single")


def _look(pixels: object, word: str, prompt: str) -> Markup:
    alt = f"{word}: {prompt}" if word else prompt
    return el("div", picture(pixels, alt, longest=768), el("span", word, cls="word", aria_hidden="true") if word else "")  # type: ignore[arg-type]


def _said(image: Image, i: int) -> tuple[str, str]:
    info = image.info[i] if image.info else {}
    return str(info.get("prompt", "")), str(info.get("seed", ""))


def scores(story: Story) -> Markup:
    """A table of metrics; with a comparison, the difference and its interval drawn around zero."""
    if not story.compared:
        return Markup("")
    paired = any(c.before is not None for c in story.compared)
    names = ["metric", "before", "after", "difference", "95 % interval", "rose in"] if paired else ["metric", "mean"]
    head = el("tr", [el("th", n, scope="col") for n in names])
    table = el("table", el("thead", head), el("tbody", [_row(c, paired) for c in story.compared]), cls="scores")
    note = el("p", "Larger is better. The interval is a bootstrap over pictures of the same prompt and seed: where it leaves out zero, the "
              "difference is more than chance.", cls="small") if paired else ""
    return join([el("div", table, cls="scroll"), note])


def _row(c: Compared, paired: bool) -> Markup:
    name = el("th", el("span", c.label), el("small", c.doc) if c.doc else "", scope="row")
    if not paired:
        return el("tr", name, _cell("mean", number(c.after)))
    if c.before is None:
        return el("tr", name, _cell("before", "–"), _cell("after", number(c.after)), *[_cell("", "") for _ in range(3)])
    change = c.after - c.before
    drawn = interval(c.low, change, c.high, max(abs(c.low), abs(c.high)) * 1.15)
    reach = join([drawn, el("span", f"{signed(c.low)} to {signed(c.high)}", cls="small")])
    return el("tr", name, _cell("before", number(c.before)), _cell("after", number(c.after)), _cell("difference", signed(change)),
              _cell("95 % interval", reach), _cell("rose in", f"{c.wins} of {c.pairs}"))


def _cell(name: str, content: str) -> Markup:
    """`name` is shown where the table is too narrow for its heading."""
    return el("td", content, data_name=name or None)


def samples(story: Story) -> Markup:
    """A strip for every prompt, its pictures by step; the step that was kept is ringed."""
    if not story.samples:
        return Markup("")
    strips: dict[str, list[Sample]] = {}
    for s in story.samples:
        strips.setdefault(s.prompt, []).append(s)
    chosen = story.record.get("kept_step")
    parts = []
    for prompt, row in strips.items():
        frames = [_sample(s, kept=s.step == chosen) for s in sorted(row, key=lambda s: s.step)]
        strip = el("div", el("ol", frames), cls="strip", tabindex="0", role="group", aria_label=f"Samples of: {prompt}")
        parts.append(el("figure", strip, el("figcaption", prompt)))
    return el("div", parts, cls="strips")


def _sample(sample: Sample, *, kept: bool) -> Markup:
    edge = el("span", f"step {sample.step}" + (", kept" if kept else ""), cls="edge")
    return el("li", picture(sample.pixels, f"step {sample.step}: {sample.prompt}", longest=256), edge, cls="ring" if kept else None)
