"""A prompt as a card: what was asked, how far it is, what came of it. Whoever sent it."""
from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import urlencode

from safelight.server.desk import Job, Wanted
from safelight.server.studio import Studio
from safelight.server.telling import Telling

QUICK = frozenset({
    "model", "load_lora", "with_lora", "folder", "CheckpointLoaderSimple", "CLIPTextEncode", "EmptyLatentImage", "SaveImage",
})
"""Nodes that take next to no time."""

SHOWN = ("prompt", "text", "model", "lora", "steps", "scale", "sampler", "size", "seed", "name")


@dataclass(frozen=True)
class Frame:
    """The place of one picture on a card: its result; until then its latest preview, `at` its place among the previews and `seen` its mark.
    `label` is what it was drawn from, where pictures differ in that; `box` its width and height, in pixels or in proportion."""

    picture: Mapping[str, str] | None = None
    at: str = ""
    seen: int = 0
    label: str = ""
    box: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class Card:
    """What a page shows of a job. `form` is what its own page asked for, empty for prompts from elsewhere; `done` is the share of the
    node at work, `answer` what was found by what made nothing."""

    id: str
    state: str
    title: str
    facts: tuple[tuple[str, str], ...]
    form: Mapping[str, Any]
    frames: tuple[Frame, ...]
    sheet: Mapping[str, str] | None
    files: tuple[Mapping[str, str], ...]
    answer: str
    error: str
    node: str
    done: float
    preview: int
    seconds: float
    created: float

    @property
    def kind(self) -> str:
        """Which page it is from."""
        return str(self.form.get("kind", ""))

    @property
    def pictures(self) -> list[Mapping[str, str]]:
        """Those that are there, in their order."""
        return [frame.picture for frame in self.frames if frame.picture is not None]

    @property
    def address(self) -> str:
        """Where Generate has the same settings in its form."""
        return "/?" + urlencode({k: v for k, v in self.form.items() if isinstance(v, str | int) and k not in ("kind", "title", "size")})


def card(at: Studio, job: Job) -> Card:
    """A job's card."""
    graph, extra = json.loads(job.prompt), json.loads(job.extra)
    form = extra.get("page") if isinstance(extra.get("page"), dict) else {}
    outputs: Mapping[str, Any] = json.loads(job.outputs)
    telling = at.tellings.get(job.id)
    running = telling is not None and job.state == "running"
    return Card(
        job.id, job.state, title(graph, form), tuple(facts(form)), form,
        tuple(frames(form, outputs, telling)), next(iter(outputs.get("sheet", {}).get("images", ())), None) if "lines" in form else None,
        tuple(f for ui in outputs.values() for f in ui.get("files", ())),
        "\n".join(t for ui in outputs.values() if "files" not in ui for t in ui.get("text", ())),
        error(job), at_work(telling) if telling else "", share(telling) if telling and running else 0.0,
        hash(telling.latest[1]) & 0xFFFFFF if telling and telling.latest else 0,
        (job.ended or 0) - (job.started or job.created) if job.ended else 0.0, job.created,
    )


def frames(form: Mapping[str, Any], outputs: Mapping[str, Any], telling: Telling | None) -> Iterable[Frame]:
    """A place for every picture that there will be, where the form says how many; else one for each that is there."""
    made = [(node, p) for node in sorted(outputs, key=natural) for p in outputs[node].get("images", ())]
    if form.get("kind") != "generate":
        yield from (Frame(p) for _, p in made)
        return
    made = [(node, p) for node, p in made if node != "sheet"]
    axes = sorted((form.get("grid") or {}).items(), reverse=True)
    cells = [" · ".join(v for v in values if v) for values in product(*(v for _, (_, v) in axes))] if axes else []
    labels = cells or [str(line["prompt"]) for line in form.get("lines", ())] or [""] * int(form.get("count", 0))
    box = tuple(int(x) for x in form["size"].split("x")) if form.get("size") else (1, 1)
    for i, label in enumerate(labels):
        at = f"{i + 1}.0" if cells else f"1.{i}"
        seen = telling.shots.get(at) if telling is not None else None
        mark = hash(seen[1]) & 0xFFFFFF if seen else 0
        yield Frame(made[i][1] if i < len(made) else None, at, mark, label, (box[0], box[1]))


async def listed(at: Studio, wanted: Wanted) -> dict[str, Any]:
    """`cards` of the jobs wanted, and `next`, where those after them begin; 0 when there are none."""
    jobs, total = await at.desk.find(wanted)
    after = wanted.offset + wanted.limit
    return {"cards": [card(at, job) for job in jobs], "next": after if after < total else 0}


def at_work(telling: Telling) -> str:
    """The node that runs; or what a prompt waits for that a worker has, and what to do about it."""
    if telling.waits:
        return f"waits: {telling.waits}. More workers (safelight serve --workers 2) run both at once."
    return telling.nodes.get(telling.current, "")


def share(telling: Telling) -> float:
    """How much of a run is over, in [0, 1]: node by node, the quick ones left out."""
    slow = [id for id, kind in telling.nodes.items() if kind not in QUICK] or list(telling.nodes)
    over: int = sum(telling.states.get(id, {}).get("state") == "finished" for id in slow)
    current: float = telling.progress if telling.current in slow else 0.0
    return min((over + current) / max(len(slow), 1), 1.0)


def natural(node: str) -> tuple[int, str]:
    """Nodes' ids in the order in which people count."""
    return (int(node), "") if node.isdecimal() else (1 << 30, node)


def title(graph: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    """The longest text among what was asked: a prompt."""
    if form.get("title"):
        return str(form["title"])
    given = [v for entry in graph.values() for v in _texts(entry.get("inputs", {}))]
    return max(given, key=len, default="") or ", ".join(dict.fromkeys(str(e.get("class_type")) for e in graph.values()))


def _texts(inputs: Mapping[str, Any]) -> Iterable[str]:
    return (v for k, v in inputs.items() if isinstance(v, str) and k in ("prompt", "text", "positive", "text_g"))


def facts(form: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """The settings that a card names; a storyboard's pictures have a seed each."""
    for name in SHOWN[2 : -2 if "lines" in form else None]:
        if form.get(name) not in (None, "", []):
            yield name, str(form[name])


def error(job: Job) -> str:
    """What went wrong, in one text."""
    if job.state not in ("failed", "cancelled") or job.messages == "[]":
        return ""
    told = json.loads(job.messages)[-1][1]
    return str(told.get("exception_message", "")).strip()
