"""Gallery: every picture that was made, found by words; two beside each other; and what one came from."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight import lineage, parameters
from safelight.comfy.check import is_link
from safelight.embed import OURS, texts_of
from safelight.server.answering import studio
from safelight.server.desk import Job, Wanted
from safelight.server.pages import cards, making, scoring, shell
from safelight.server.pages.shell import render
from safelight.server.studio import Studio

router = APIRouter()

PAGE = 48
JOBS = 24
SHOWS = {"pictures": "", "grids": "generate", "boards": "storyboard"}
"""What the gallery shows, and the word that jobs with such things have."""


@router.get("/studio/gallery")
async def page(request: Request) -> Response:
    """The page; `q` are words of prompts, models and LoRAs."""
    return render(request, "gallery.html", **await asyncio.to_thread(making.choices, studio(request)), **await _found(request))


@router.get("/studio/gallery/more")
async def more(request: Request) -> Response:
    """Pictures alone: for another search, or older ones."""
    return render(request, "_pictures.html", **await _found(request))


@router.get("/studio/gallery/newer")
async def newer(request: Request) -> Response:
    """How many pictures came since `known` prompts had ended, as a button that shows them; in place of an empty wall, they themselves."""
    found, known = await _found(request), request.query_params.get("known", "")
    new = found["total"] - int(known) if known.isdecimal() and len(known) < 16 else 0
    fresh = found["jobs"][: max(new, 0)]
    count = sum(card.id in fresh for card, _ in found["shown"])
    if not count:
        return Response(status_code=204)
    if not request.query_params.get("empty"):
        return render(request, "_newer.html", count=count, **found)
    shown = render(request, "_pictures.html", **found)
    shown.headers["HX-Retarget"] = "#wall"
    return shown


async def _found(request: Request) -> dict[str, Any]:
    """What the address asks for: words, model, LoRA, order, a metric and its least value, and what to show."""
    at, query, start, known = studio(request), request.query_params, shell.start(request), scoring.metrics()
    asked = {k: query.get(k, "")[:300] for k in ("q", "model", "lora", "order", "show", "by", "least")}
    by = asked["by"] if asked["by"] in known else next(iter(known))
    text = " ".join((asked["q"], asked["model"], asked["lora"].removesuffix(making.RESULT)))
    scores = await scoring.scores(at)
    jobs: list[Job] = []
    if asked["show"] not in ("grids", "boards") and (asked["order"] == "score" or asked["least"]):
        (shown, after), total = await _scored(at, scores, (text, by, asked["least"], asked["order"]), start), 0
    else:
        word = SHOWS.get(asked["show"], "")
        wanted = Wanted(states=["done"], words=f"{text} {word}", by="ended", newest=asked["order"] != "oldest", limit=JOBS, offset=start)
        jobs, total = await at.desk.find(wanted)
        part = {"grids": "grid", "boards": "lines"}.get(asked["show"], "")
        found = [c for c in (cards.card(at, job) for job in jobs) if not part or part in c.form]
        shown = [(c, frame) for c in found for frame in ([None] if part else [f for f in c.frames if f.picture is not None])]
        after = start + JOBS if start + JOBS < total else 0
    values = {name: scores[name]["values"] for name in (scoring.place(f.picture) for _, f in shown if f) if name in scores}
    return {
        "shown": shown, **asked, "by": by, "metrics": known, "values": values, "start": start, "next": after, "total": total,
        "link": urlencode(asked), "place": scoring.place, "jobs": [job.id for job in jobs],
    }


async def _scored(
    at: Studio, scores: Mapping[str, Mapping[str, Any]], wanted: tuple[str, str, str, str], start: int,
) -> tuple[list[tuple[cards.Card, Any]], int]:
    """Scored pictures with all the words and at least the value, the best first or in order of their making; and where more begin."""
    text, by, least, order = wanted
    low = float(least) if least else -inf
    fit = [(name, s) for name, s in scores.items()
           if by in s["values"] and s["values"][by] >= low and all(w in s["text"] for w in text.lower().split())]
    fit.sort(key=lambda f: -f[1]["values"][by] if order == "score" else f[1]["at"] if order == "oldest" else -f[1]["at"])
    some = fit[start : start + PAGE]
    jobs = {id: await at.desk.job(id) for id in {s["job"] for _, s in some}}
    made = {id: cards.card(at, job) for id, job in jobs.items() if job is not None}
    places = {scoring.place(f.picture): (card, f) for card in made.values() for f in card.frames if f.picture is not None}
    return [places[name] for name, _ in some if name in places], start + PAGE if start + PAGE < len(fit) else 0


@router.get("/studio/gallery/why")
async def why(request: Request) -> Response:
    """What a picture came from: the graph it carries, step by step."""
    query = request.query_params
    path = studio(request).shelves.picture(query.get("filename", ""), query.get("type") or "output", query.get("subfolder", ""))
    if not path.is_file():
        return render(request, "_refused.html", 404, why=f"{path.name} is no longer there")
    texts = await asyncio.to_thread(texts_of, path)
    told = {k: query.get(k, "") for k in ("filename", "subfolder", "type")}
    return render(request, "_why.html", picture=told, steps=list(steps(graph(texts))))


def graph(texts: Mapping[str, str]) -> dict[str, Any]:
    """What led to this very picture, where its file says so; else all that was asked for with it."""
    ours = json.loads(texts.get(OURS) or "{}")
    if not ours or not all(node["op"] for node in ours["nodes"].values()):
        return dict(json.loads(texts.get("prompt") or "{}"))
    found = lineage.graph(ours)
    inputs = found[ours["target"]]["inputs"]
    inputs |= {"seeds": inputs["seeds"][ours["index"]]} if "seeds" in inputs and "index" in ours else {}
    return found


def steps(graph: Mapping[str, Any]) -> Iterable[tuple[str, str, list[tuple[str, str]], list[str]]]:
    """(id, what it does, settings, ids it takes from) of every node, parents first as they were written."""
    for key, entry in graph.items():
        if not isinstance(entry, dict):
            continue
        found = entry.get("inputs")
        inputs: dict[str, Any] = found if isinstance(found, dict) else {}
        plain = [(k, str(v)) for k, v in inputs.items() if not is_link(v) and v not in (None, "", [])]
        yield key, str(entry.get("class_type") or entry.get("op") or ""), plain, [str(v[0]) for v in inputs.values() if is_link(v)]


@router.get("/studio/gallery/compare")
async def compare(request: Request) -> Response:
    """Two pictures, one over the other; `a` and `b` are type/subfolder/name."""
    at, names = studio(request), [request.query_params.get(k, "") for k in "ab"]
    pair = [scoring.told(n) for n in names]
    paths = [at.shelves.picture(p["filename"], p["type"], p["subfolder"]) for p in pair]
    said = [parameters.read((await asyncio.to_thread(texts_of, p)).get("parameters", "")) if p.is_file() else {} for p in paths]
    differ = [(name, said[0].get(name, ""), said[1].get(name, "")) for name in {**said[0], **said[1]}
              if said[0].get(name) != said[1].get(name)]
    return render(request, "_compare.html", pair=pair, differ=differ)
