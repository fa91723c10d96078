"""What all routes share: the studio behind a request, bodies read strictly, errors as each kind of client expects them."""
from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from safelight.server import reading
from safelight.server.desk import Full, Job
from safelight.server.files import Outside
from safelight.server.guard import TooLarge
from safelight.server.studio import Studio
from safelight.server.validating import Refusal

EMPTY = Response(status_code=200)


def studio(request: Request) -> Studio:
    """The server's state."""
    found: Studio = request.app.state.studio
    return found


def raw(text: str, status: int = 200) -> Response:
    """JSON that is text already."""
    return Response(text, status, media_type="application/json")


async def body(request: Request, *, empty: Any = None, most: int = reading.BODY) -> Any:
    """The request's JSON. ValueError when it is not sound; `empty` for a body without bytes, when that is given."""
    content = await request.body()
    return empty if empty is not None and not content.strip() else await asyncio.to_thread(reading.read, content, most)


async def table(request: Request, *, most: int = reading.BODY) -> dict[str, Any]:
    """The same where an object is expected."""
    found = await body(request, empty={}, most=most)
    if not isinstance(found, dict):
        raise ValueError(f"got {type(found).__name__}, expected an object")
    return found


async def ended(request: Request, id: str) -> Job:
    """The prompt when it has run; it is taken back when the client goes. ValueError with what went wrong."""
    waiting = asyncio.ensure_future(studio(request).done(id))
    while not (await asyncio.wait([waiting], timeout=1))[0]:
        if await request.is_disconnected():
            waiting.cancel()
            await studio(request).cancel([id])
            raise HTTPException(499)
    job = waiting.result()
    if job.state != "done":
        told = json.loads(job.messages)[-1][1] if job.messages != "[]" else {}
        raise ValueError(told.get("exception_message", "").strip() or "the prompt was cancelled")
    return job


def pictures(request: Request, job: Job) -> list[Path]:
    """The files of a prompt's pictures."""
    told = [p for ui in json.loads(job.outputs).values() for p in ui.get("images", ())]
    return [studio(request).shelves.picture(p["filename"], p["type"], p["subfolder"]) for p in told]


async def base64_of(path: Path) -> str:
    """A file as text."""
    return b64encode(await asyncio.to_thread(path.read_bytes)).decode()


def number(given: Mapping[str, Any], name: str, default: float | None = None) -> Any:
    """A number of a body. ValueError for anything else."""
    value = given.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name}: got {value!r}, expected a number")
    return value


def text(given: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text of a body. ValueError for anything else."""
    value = given.get(name)
    if not isinstance(value, str | None):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a text")
    return default if value is None else value


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooLarge, 413), (Full, 507), (Outside, 403), (FileNotFoundError, 404), (KeyError, 409), (OSError, 507), (ValueError, 400),
)


async def failure(request: Request, error: Exception) -> Response:
    """What went wrong, told as the kind of client expects it."""
    status = error.status_code if isinstance(error, HTTPException) else next(s for kind, s in STATUS if isinstance(error, kind))
    why = str(error.detail if isinstance(error, HTTPException) else error)
    path = request.url.path
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": why, "type": kind, "param": None, "code": None}}, status)
    if path.startswith("/sdapi/"):
        return JSONResponse({"error": type(error).__name__, "detail": why, "errors": why}, status)
    if isinstance(error, Refusal):
        return JSONResponse(error.answer, 400)
    if isinstance(error, HTTPException) and path.removeprefix("/api") != "/prompt":
        return Response(status_code=status)
    if path.endswith("/prompt"):
        kinds = {507: "queue_full", 409: "duplicate_prompt_id", 413: "invalid_prompt"}
        refusal = Refusal(kinds.get(status, "invalid_prompt"), "The prompt was not taken", details=why)
        return JSONResponse(refusal.answer, status)
    return JSONResponse({"error": why}, status)
