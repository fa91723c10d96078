"""What changes while one looks: one stream of server-sent events a page, told apart by what they are about."""
from __future__ import annotations

import asyncio
import hashlib
from base64 import b64decode
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from safelight.server.answering import studio
from safelight.server.pages import cards
from safelight.server.pages.shell import environment, language, translator
from safelight.server.studio import Studio

router = APIRouter()

PAUSE = 0.3
"""Seconds between two looks at what runs; a slow reader is looked for less often, and nothing is kept for it. Templates that ask anew on
`sse:jobs` wait less, so that the last of several events is the one they ask after."""
FIRST = 8
"""Prompts that ended before a stream began and are told of in it."""
QUIET = 15.0
"""Seconds after which a stream with nothing new says so, which finds dead readers."""


@router.get("/studio/live")
async def live(request: Request) -> Response:
    """`queue` (how many wait and run), `job-ID` (a card, whenever something in it changed) and `jobs` (one began or ended). A page that
    comes back says by `after`, or its browser by Last-Event-ID, which `id` it heard last, and is told of what ended since."""
    after = request.headers.get("last-event-id") or request.query_params.get("after", "")
    return StreamingResponse(_stream(request, studio(request), language(request), after), media_type="text/event-stream",
                             headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})


async def _stream(request: Request, at: Studio, code: str, after: str) -> AsyncIterator[str]:
    seen: dict[str, str] = {}
    known, quiet = max(at.ended - FIRST, 0), 0.0  # a prompt may have ended between the page's writing and this
    known = min(known, int(after)) if after.isdecimal() and len(after) < 16 else known
    while not await request.is_disconnected():
        over, known = list(at.lately)[len(at.lately) - min(at.ended - known, len(at.lately)) :], at.ended
        now = await _now(at, code, over)
        marks = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in now.items()}
        changed = [name for name, mark in marks.items() if seen.get(name) != mark]
        for name in changed:
            yield f"id: {known}\nevent: {name}\n" + "".join(f"data: {line}\n" for line in now[name].splitlines() or [""]) + "\n"
        seen, quiet = marks, 0.0 if changed else quiet + PAUSE
        if quiet >= QUIET:
            yield ": still here\n\n"
            quiet = 0.0
        await asyncio.sleep(PAUSE)


async def _now(at: Studio, code: str, over: Sequence[str]) -> dict[str, str]:
    """Every event's text as it is now; `over` are prompts that ended since the last look, however short they were."""
    template, say = environment().get_template("_card.html"), translator(code)
    ids = list(at.tellings)
    told = {"queue": str(at.desk.remaining or ""), "jobs": f"{' '.join(sorted(ids))} {at.desk.remaining} {at.ended}"}
    for job in [await at.desk.job(id) for id in dict.fromkeys((*ids, *over))]:
        if job is not None:
            told[f"job-{job.id}"] = template.render(_=say, lang=code, card=cards.card(at, job))
    return told


@router.get("/studio/preview/{id}")
async def preview(request: Request, id: str) -> Response:
    """The latest picture of work in progress, or (`at`) of one of its pictures, whose address names one state of it."""
    telling, at = studio(request).tellings.get(id), request.query_params.get("at", "")
    if telling is None or (telling.latest is None if not at else at not in telling.shots):
        return Response(status_code=404)
    media, picture = (telling.shots[at][0], b64decode(telling.shots[at][1])) if at else telling.latest or ("", b"")
    return Response(picture, media_type=media, headers={"Cache-Control": "private, max-age=60" if at else "no-store"})
