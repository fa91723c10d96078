"""What all routes share: the studio behind a request, bodies read strictly, errors as each kind of client expects them."""
from __future__ import annotations

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from safelight.server import reading
from safelight.server.desk import Full, Job, Taken
from safelight.server.files import Outside
from safelight.server.guard import TooLarge
from safelight.server.studio import Studio
from safelight.server.validating import Refusal

EMPTY = Response(status_code=200)
MISSING = JSONResponse({"error": "there is none"}, 404)
SHORT = 2**14
"""Bytes of JSON that are read faster than another thread begins to."""


def studio(request: Request) -> Studio:
    """The server's state."""
    found: Studio = request.app.state.studio
    return found


def reads(router: APIRouter, told: Mapping[str, Callable[[Studio], Any]]) -> None:
    """Routes that only say what there is."""
    for path, what in told.items():
        router.add_api_route(path, _reading(what), name=path.strip("/"))


def _reading(what: Callable[[Studio], Any]) -> Callable[[Request], Any]:
    async def read(request: Request) -> Response:
        return JSONResponse(await asyncio.to_thread(what, studio(request)))

    return read


def raw(text: str, status: int = 200) -> Response:
    """JSON that is text already."""
    return Response(text, status, media_type="application/json")


async def body(request: Request, most: int = reading.BODY) -> Any:
    """The request's JSON. ValueError when it is not sound."""
    text = await request.body()
    return reading.read(text, most) if len(text) < SHORT else await asyncio.to_thread(reading.read, text, most)


async def table(request: Request, most: int = reading.BODY) -> dict[str, Any]:
    """The same where an object is expected; an empty one for no body."""
    found = await body(request, most) if (await request.body()).strip() else {}
    if not isinstance(found, dict):
        raise ValueError(f"got {type(found).__name__}, expected an object")
    return found


def ids(given: Mapping[str, Any], name: str) -> list[str]:
    """A list of ids of a body. ValueError for anything else."""
    found = given[name]
    if not isinstance(found, list) or not all(isinstance(i, str) for i in found) or len(found) > reading.NODES:
        raise ValueError(f"{name}: expected a list of ids")
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
    value = default if given.get(name) is None else given[name]
    if isinstance(value, bool) or not isinstance(value, int | float | None):
        raise ValueError(f"{name}: got {value!r}, expected a number")
    return value


def text(given: Mapping[str, Any], name: str, default: str = "") -> str:
    """A text of a body. ValueError for anything else."""
    value = default if given.get(name) is None else given[name]
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {type(value).__name__}, expected a text")
    return value


STATUS: tuple[tuple[type[Exception], int], ...] = (
    (TooLarge, 413), (Full, 507), (Outside, 403), (PermissionError, 403), (FileNotFoundError, 404), (FileExistsError, 409),
    (NotADirectoryError, 409), (IsADirectoryError, 409), (Taken, 409), (OSError, 507), (ValueError, 400), (OverflowError, 400),
    (KeyError, 500),
)


async def failure(request: Request, error: Exception) -> Response:
    """What went wrong, told as the kind of client expects it."""
    status = error.status_code if isinstance(error, HTTPException) else next(s for kind, s in STATUS if isinstance(error, kind))
    why, path = str(error.detail if isinstance(error, HTTPException) else error), request.url.path
    if status == 500:
        logging.getLogger(__name__).error("%s %s", request.method, path, exc_info=error)
        why = "the server made a mistake, which its log tells of"
    if path.startswith("/v1/"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        return JSONResponse({"error": {"message": why, "type": kind, "param": None, "code": None}}, status)
    if path.startswith("/sdapi/"):
        return JSONResponse({"error": type(error).__name__, "detail": why, "errors": why}, status)
    if path.removeprefix("/api") == "/prompt":
        kinds = {507: "queue_full", 409: "duplicate_prompt_id"}
        kind = kinds.get(status, "invalid_prompt")
        told = error if isinstance(error, Refusal) else Refusal(kind, "The prompt was not taken", details=why)
        return JSONResponse(told.answer, status)
    return JSONResponse({"error": why}, status, getattr(error, "headers", None))
