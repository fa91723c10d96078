"""The report of a run as one HTML page that needs nothing else: pictures, styles and charts are inside it, nothing is fetched."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files

from safelight.reporting.html import Markup, duration, el, join, number, size
from safelight.reporting.outcome import pairs, samples, scores
from safelight.reporting.path import lineage, timings
from safelight.reporting.pictures import captions, dropped, kept
from safelight.reporting.story import Story
from safelight.reporting.training import settings, training

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
Section = Callable[[Story], Markup]
SECTIONS: tuple[tuple[str, str, Section], ...] = (
    ("outcome", "Before and after", pairs), ("scores", "Scores", scores), ("training", "Training", training),
    ("samples", "Samples over time", samples), ("pictures", "Pictures", kept), ("dropped", "Left out", dropped),
    ("captions", "Captions", captions), ("settings", "Settings", settings), ("lineage", "Lineage", lineage), ("timings", "Time", timings),
)


def page(story: Story) -> str:
    """The whole document. Sections that have nothing to show are left out."""
    shown = [(name, heading, body) for name, heading, make in SECTIONS if (body := make(story))]
    if len(shown) == 1 and shown[0][0] == "outcome" and story.before is None:
        shown = [("outcome", "Pictures made", shown[0][2])]
    return document(story.title, _lede(story), _facts(story), shown, story.versions)


def document(
    title: str, lede: str, facts: Sequence[tuple[str, str]], sections: Sequence[tuple[str, str, Markup]], versions: Mapping[str, str],
) -> str:
    """A whole page in the house's look: heading, one sentence, facts (name, value), numbered sections (id, heading, body)."""
    parts = [el("section", el("h2", el("span", f"{i:02d}", cls="frame", aria_hidden="true"), heading, id=f"{name}-heading"), body, id=name,
                aria_labelledby=f"{name}-heading") for i, (name, heading, body) in enumerate(sections, start=1)]
    links = el("nav", el("ul", [el("li", el("a", heading, href=f"#{name}")) for name, heading, _ in sections]), aria_label="Sections")
    head = el("head", el("meta", charset="utf-8"), el("meta", name="viewport", content="width=device-width, initial-scale=1"),
              el("meta", http_equiv="Content-Security-Policy", content=POLICY), el("meta", name="color-scheme", content="dark light"),
              el("meta", name="generator", content=f"Safelight {versions.get('safelight', '')}".strip()),
              el("title", title), el("style", Markup(_resource("page.css"))))
    skip = el("a", "Skip to the content", href="#main", cls="skip")
    body = el("body", skip, _masthead(title, lede, facts), links, el("main", parts, id="main"), _foot(versions),
              el("script", Markup(_resource("page.js"))))
    return f"<!doctype html>\n{el('html', head, body, lang='en')}\n"


def _resource(name: str) -> str:
    return (files("safelight") / "reporting" / name).read_text("utf-8")


def _masthead(title: str, lede: str, facts: Sequence[tuple[str, str]]) -> Markup:
    toggle = el("button", "Light", type="button", id="theme", hidden=True)
    return el("header", el("p", el("span", "Safelight"), toggle, cls="brand"), el("h1", title), el("p", lede, cls="lede"),
              el("dl", [el("div", el("dt", name), el("dd", value)) for name, value in facts], cls="facts"), cls="mast")


def _lede(story: Story) -> Markup:
    """The run in one or two sentences."""
    said = []
    if story.data is not None:
        out = len(story.data.rows) - len(story.data)
        said.append(f"{len(story.data)} pictures" + (f" ({out} left out)" if out else ""))
    if story.record:
        steps = max((row[0] for name in ("loss", "held_out") for row in story.record.get(name) or ()), default=0)
        said.append(f"{steps:g} steps of training in {duration(float(story.record.get('seconds', 0)))}")
    if story.after is not None:
        said.append(f"{len(story.after)} pictures made" + (" before and after" if story.before is not None else ""))
    return join([", ".join(said) + "." if said else ""])


def _facts(story: Story) -> list[tuple[str, str]]:
    facts = []
    if story.data is not None:
        facts += [("Pictures", f"{len(story.data)} of {len(story.data.rows)}")]
    held = story.record.get("held_out") or []
    if held:
        facts.append(("Held-out loss", f"{number(held[0][1])} → {number(min(h[1] for h in held))}"))
    if story.record.get("pictures_per_second"):
        facts.append(("Speed", f"{number(story.record['pictures_per_second'])} pictures/s"))
    if story.patch is not None:
        facts.append(("LoRA" if story.patch.kind == "lora" else story.patch.kind, size(story.patch_bytes)))
    for c in story.compared[:2]:
        value = number(c.after) if c.before is None else f"{number(c.before)} → {number(c.after)}"
        facts.append((c.label[:1].upper() + c.label[1:], value))
    return facts


def _foot(made_with: Mapping[str, str]) -> Markup:
    versions = ", ".join(f"{name} {version}" for name, version in made_with.items())
    said = el("p", "Made by Safelight. This page is one file and loads nothing from elsewhere.")
    return el("footer", said, el("p", versions) if versions else "")
