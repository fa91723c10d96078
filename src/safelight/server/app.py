"""The application: all routes behind one guard."""
from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from safelight.server import editor, jobs, openai, pages, sdapi, shelving, wire
from safelight.server.answering import STATUS, failure
from safelight.server.described import describe
from safelight.server.guard import Guard
from safelight.server.reading import BODY
from safelight.server.sockets import UPLOADS
from safelight.server.studio import Setup, Studio


def application(setup: Setup) -> FastAPI:
    """The server for this setup; it begins to work with its lifespan."""

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        app.state.studio = Studio(setup)
        await app.state.studio.start()
        yield
        await app.state.studio.close()

    app = FastAPI(title="Safelight", lifespan=life, docs_url=None, redoc_url=None, openapi_url=None, separate_input_output_schemas=False)

    @app.get("/openapi.json", include_in_schema=False)
    async def document() -> dict[str, Any]:
        return describe(app.openapi())

    for prefix in ("", "/api"):
        app.include_router(wire.router, prefix=prefix, include_in_schema=not prefix)
        app.include_router(shelving.router, prefix=prefix, include_in_schema=not prefix)
    for router in (wire.sockets, jobs.router, openai.router, sdapi.router, pages.router, editor.router):
        app.include_router(router)
    kinds: list[type[Exception]] = [HTTPException, *(kind for kind, _ in STATUS)]
    for kind in kinds:
        app.add_exception_handler(kind, failure)
    app.add_middleware(editor.Below)
    app.add_middleware(Guard, rules=setup.rules, body=BODY, uploads=UPLOADS)
    return app
