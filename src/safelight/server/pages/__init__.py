"""The studio's own pages: written on the server, brought up to date by htmx and server-sent events. Nothing is fetched from elsewhere."""
from __future__ import annotations

from fastapi import APIRouter

from safelight.server.pages import board, datasets, gallery, live, making, owning, scoring, shell, teaching, twins, waiting

router = APIRouter(include_in_schema=False)
for part in (shell, making, board, datasets, twins, teaching, gallery, scoring, owning, waiting, live):
    router.include_router(part.router)

__all__ = ["router"]
