"""Scores of pictures that were made here: asked for with a button, found again by every page. They are what the op `score` says."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.disk import put
from safelight.op import load_ops
from safelight.server.answering import studio
from safelight.server.desk import Full, Job, Wanted
from safelight.server.pages import cards
from safelight.server.pages.making import said, submit
from safelight.server.pages.shell import render
from safelight.server.studio import Studio
from safelight.server.validating import Refusal, words

router = APIRouter(prefix="/studio/gallery")

MOST, TEXT, LOOKED = 96, 600, 200
"""Pictures scored at once, letters kept of what each was made from, jobs looked through for new scores."""


def metrics() -> dict[str, str]:
    """Those that need nothing but the picture, and what pages call them."""
    setting = next(s for s in load_ops()["score"].spec.settings if s.name == "by")
    return {name: {"clip": "prompt fit"}.get(name, name) for name in setting.choices or () if name != "style"}


def place(picture: Mapping[str, str]) -> str:
    """A result's name: type/subfolder/name."""
    return "/".join(x for x in (picture.get("type") or "output", picture.get("subfolder"), picture["filename"]) if x)


def told(name: str) -> dict[str, str]:
    """A name as pages and routes write results."""
    kind, *inner = name.split("/")
    return {"type": kind, "subfolder": "/".join(inner[:-1]), "filename": inner[-1] if inner else ""}


def _table(at: Studio) -> tuple[Path, dict[str, Any]]:
    """Where scores are kept, and those: `jobs` that were read, `pictures` by name with values, job and what they are found by."""
    file = at.shelves.home / "scores.json"
    return file, json.loads(file.read_bytes()) if file.is_file() else {"jobs": [], "pictures": {}}


async def scores(at: Studio) -> dict[str, dict[str, Any]]:
    """Every picture's `values`, `job` and `text`, by its name; what was scored since the last call is taken in."""
    jobs, _ = await at.desk.find(Wanted(states=["done"], words="load_image score", by="ended", limit=LOOKED))
    found: dict[str, dict[str, Any]] = await asyncio.to_thread(_taken, at, jobs)
    return found


def _taken(at: Studio, jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    file, known = _table(at)
    new = [job for job in jobs if job.id not in known["jobs"]]
    for job in reversed(new):
        form, outputs = json.loads(job.extra).get("page") or {}, json.loads(job.outputs)
        for node, picture in (form.get("pictures") or {}).items() if form.get("kind") == "score" else ():
            values = _values(at, outputs.get(node, {}))
            if values:
                known["pictures"][picture["name"]] = {**picture, "values": values}
    if new:
        put(file, json.dumps({**known, "jobs": [job.id for job in jobs]}, ensure_ascii=False).encode())
    pictures: dict[str, dict[str, Any]] = known["pictures"]
    return pictures


def _values(at: Studio, output: Mapping[str, Any]) -> dict[str, float]:
    """What an output of `score` says of its one picture; nothing when its file is gone."""
    for told_of in output.get("files", ()):
        file = at.shelves.picture(told_of["filename"], told_of["type"], told_of["subfolder"])
        if file.suffix == ".json" and file.is_file():
            return {name: float(v) for name, v in json.loads(file.read_bytes())["scores"][0].items()}
    return {}


@router.post("/score")
async def score(request: Request) -> Response:
    """Queue the scoring of pictures by name; its card, which tells the wall when it is over."""
    at = studio(request)
    async with request.form(max_fields=MOST + 9) as form:
        names = [str(v) for v in form.getlist("picture")][:MOST]
    try:
        graph, pictures = await asked(at, names)
        job, _ = await submit(at, graph, {"kind": "score", "title": f"score: {len(pictures)}", "pictures": pictures})
    except (Refusal, ValueError, Full) as e:
        return render(request, "_refused.html", 422, why=said(e))
    return render(request, "_scoring.html", card=cards.card(at, job))


async def asked(at: Studio, names: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The graph that scores the pictures (`JOB TYPE/SUBFOLDER/NAME` each), two nodes for one; and what is kept of each by its node.
    ValueError when there is none."""
    graph, pictures = dict[str, Any](), dict[str, Any]()
    for i, (id, _, name) in enumerate(n.partition(" ") for n in dict.fromkeys(names)):
        job = await at.desk.job(id)
        if job is None or name not in map(place, cards.card(at, job).pictures):
            continue
        told_of = told(name)
        path = at.shelves.picture(told_of["filename"], told_of["type"], told_of["subfolder"])
        graph[f"p{i}"] = {"class_type": "load_image", "inputs": {"path": str(path)}}
        graph[f"s{i}"] = {"class_type": "score", "inputs": {"image": [f"p{i}", 0], "by": list(metrics())}}
        pictures[f"s{i}"] = {"name": name, "job": id, "at": job.ended, "text": words(json.loads(job.prompt))[:TEXT].lower()}
    if not graph:
        raise ValueError("score: none of these pictures was made here")
    return graph, pictures


@router.get("/scored/{id}")
async def scored(request: Request, id: str) -> Response:
    """Nothing while a scoring waits or runs; then its card, and the wall is told."""
    at = studio(request)
    job = await at.desk.job(id)
    if job is not None and job.ended is None:
        return Response(status_code=204)
    answer = render(request, "_scoring.html", card=cards.card(at, job) if job is not None else None)
    answer.headers["HX-Trigger"] = "scored"
    return answer
