"""The application: all routes behind one guard."""
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

from safelight.server import jobs, openai, sdapi, shelving, wire
from safelight.server.answering import STATUS, failure
from safelight.server.guard import Guard
from safelight.server.reading import BODY
from safelight.server.sockets import FEATURES
from safelight.server.studio import Setup, Studio

HOME = "<!doctype html><html lang=en><title>Safelight</title><h1>Safelight</h1><p>The server runs."


def application(setup: Setup) -> FastAPI:
    """The server for this setup; it begins to work with its lifespan."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.studio, app.state.options = Studio(setup), dict(sdapi.DEFAULTS)
        await app.state.studio.start()
        yield
        await app.state.studio.close()

    app = FastAPI(title="Safelight", lifespan=life, docs_url=None, redoc_url=None, separate_input_output_schemas=False)
    for prefix in ("", "/api"):
        app.include_router(wire.router, prefix=prefix, include_in_schema=not prefix)
        app.include_router(shelving.router, prefix=prefix, include_in_schema=not prefix)
    for router in (wire.sockets, jobs.router, openai.router, sdapi.router):
        app.include_router(router)
    app.add_api_route("/", lambda: HTMLResponse(HOME), include_in_schema=False)
    kinds: list[type[Exception]] = [HTTPException, *(kind for kind, _ in STATUS)]
    for kind in kinds:
        app.add_exception_handler(kind, failure)
    app.add_middleware(Guard, rules=setup.rules, body=BODY, uploads=FEATURES["max_upload_size"])
    return app
