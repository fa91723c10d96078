"""Gallery: every picture that was made, found by words; two beside each other; and what one came from."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.comfy.check import is_link
from safelight.embed import texts_of
from safelight.server.answering import studio
from safelight.server.desk import Wanted
from safelight.server.pages import cards, shell
from safelight.server.pages.shell import render

router = APIRouter()

PAGE = 48
JOBS = 24


@router.get("/studio/gallery")
async def page(request: Request) -> Response:
    """The page; `q` are words of prompts, models and LoRAs."""
    return render(request, "gallery.html", **await _found(request))


@router.get("/studio/gallery/more")
async def more(request: Request) -> Response:
    """Pictures alone: for another search, or older ones."""
    return render(request, "_pictures.html", **await _found(request))


async def _found(request: Request) -> dict[str, Any]:
    at, query, start = studio(request), request.query_params, shell.start(request)
    oldest = query.get("order") == "oldest"
    jobs, total = await at.desk.find(
        Wanted(states=["done"], words=query.get("q", "")[:300], by="ended", newest=not oldest, limit=JOBS, offset=start)
    )
    shown = [(c, p) for c in (cards.card(at, job) for job in jobs) for p in c.pictures]
    return {"shown": shown, "q": query.get("q", ""), "order": query.get("order", ""), "next": start + JOBS if start + JOBS < total else 0}


@router.get("/studio/gallery/why")
async def why(request: Request) -> Response:
    """What a picture came from: the graph it carries, step by step."""
    query = request.query_params
    path = studio(request).shelves.picture(query.get("filename", ""), query.get("type") or "output", query.get("subfolder", ""))
    if not path.is_file():
        return render(request, "_refused.html", 404, why=f"{path.name} is no longer there")
    texts = await asyncio.to_thread(texts_of, path)
    told = {k: query.get(k, "") for k in ("filename", "subfolder", "type")}
    return render(request, "_why.html", picture=told, steps=list(steps(json.loads(texts.get("prompt") or "{}"))))


def steps(graph: Mapping[str, Any]) -> Iterable[tuple[str, str, list[tuple[str, str]], list[str]]]:
    """(id, what it does, settings, ids it takes from) of every node, parents first as they were written."""
    for key, entry in graph.items():
        if not isinstance(entry, dict):
            continue
        found = entry.get("inputs")
        inputs: dict[str, Any] = found if isinstance(found, dict) else {}
        plain = [(k, str(v)) for k, v in inputs.items() if not is_link(v)]
        yield key, str(entry.get("class_type") or entry.get("op") or ""), plain, [str(v[0]) for v in inputs.values() if is_link(v)]


@router.get("/studio/gallery/compare")
async def compare(request: Request) -> Response:
    """Two pictures, one over the other; `a` and `b` are type/subfolder/name."""
    names = [request.query_params.get(k, "") for k in "ab"]
    pair = [dict(zip(("type", "subfolder", "filename"), (n.split("/")[0], "/".join(n.split("/")[1:-1]), n.split("/")[-1]), strict=True))
            for n in names]
    return render(request, "_compare.html", pair=pair)
