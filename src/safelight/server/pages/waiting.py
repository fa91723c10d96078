"""Queue: what runs, what waits and in which order, what ended."""
from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.server.answering import studio
from safelight.server.desk import ENDED, Wanted
from safelight.server.pages import cards
from safelight.server.pages.shell import render

router = APIRouter()


@router.get("/studio/queue")
async def page(request: Request) -> Response:
    """The page."""
    return await _shown(request, "queue.html")


@router.get("/studio/queue/list")
async def listed(request: Request) -> Response:
    """Its lists alone."""
    return await _shown(request, "_queue.html")


async def _shown(request: Request, template: str) -> Response:
    at = studio(request)
    found: dict[str, Any] = {}
    for name, wanted in (
        ("running", Wanted(states=["running"], by="queue", newest=False)),
        ("pending", Wanted(states=["pending"], by="queue", newest=False, limit=100)),
        ("ended", Wanted(states=ENDED, by="ended", limit=15)),
    ):
        jobs, total = await at.desk.find(wanted)
        found[name], found[f"{name}_total"] = [cards.card(at, job) for job in jobs], total
    return render(request, template, paused=at.desk.paused, **found)


@router.post("/studio/queue/{id}/cancel")
async def cancel(request: Request, id: str) -> Response:
    """Take it out, or stop it."""
    await studio(request).cancel([id])
    return await _shown(request, "_queue.html")


@router.post("/studio/queue/{id}/first")
async def first(request: Request, id: str) -> Response:
    """Before all others that wait."""
    at = studio(request)
    waiting = [job.id for job in await at.desk.waiting() if job.id != id]
    if waiting:
        await at.desk.move(id, waiting[0])
    return await _shown(request, "_queue.html")


@router.post("/studio/queue/pause")
async def pause(request: Request) -> Response:
    """Hand nothing out, or go on."""
    at = studio(request)
    await at.desk.pause(not at.desk.paused)
    at.pool.hungry.set()
    return await _shown(request, "_queue.html")
