"""ComfyUI's routes for prompts, the queue, the history, node classes and models. Each is there bare and below /api."""
from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import JSONResponse, Response

from safelight import comfy, embed
from safelight.comfy.info import class_info
from safelight.folders import KINDS
from safelight.lineage import versions
from safelight.server.answering import EMPTY, raw, studio, table
from safelight.server.desk import Wanted
from safelight.server.sockets import FEATURES
from safelight.server.telling import entry

router = APIRouter(tags=["ComfyUI"])

COMFYUI = "0.3.64"
"""The ComfyUI whose wire this is."""
RECENT = 1000
"""Entries of the history that are sent when nobody says how many."""


@router.get("/prompt")
async def remaining(request: Request) -> dict[str, Any]:
    """How many prompts run and wait."""
    return {"exec_info": {"queue_remaining": studio(request).desk.remaining}}


@router.post("/prompt")
async def post_prompt(request: Request) -> dict[str, Any]:
    """Queue a prompt. What is acknowledged is on the disk."""
    given = await table(request)
    number, targets, extra = given.get("number"), given.get("partial_execution_targets"), given.get("extra_data")
    if not isinstance(number, int | float | None) or not isinstance(targets, list | None) or not isinstance(extra, dict | None):
        raise ValueError("number is a number, partial_execution_targets a list, extra_data an object")
    client = given.get("client_id") or request.query_params.get("clientId") or ""
    job, ready = await studio(request).submit(
        given.get("prompt"), id=_prompt_id(given.get("prompt_id")), client=str(client)[:200], extra=extra, front=bool(given.get("front")),
        number=None if number is None else float(number), targets=targets and [str(t) for t in targets],
    )
    return {"prompt_id": job.id, "number": int(job.number) if number is None else job.number, "node_errors": ready.errors}


def _prompt_id(given: Any) -> str:
    if given is None:
        return ""
    if not isinstance(given, str) or not 0 < len(given) <= 200 or not given.isprintable():
        raise ValueError("prompt_id: expected a text of 1 to 200 characters, such as a UUID")
    return given


@router.get("/queue")
async def get_queue(request: Request) -> Response:
    """What runs and what waits."""
    jobs = await studio(request).desk.waiting()
    parts = [",".join(j.item for j in jobs if j.state == state) for state in ("running", "pending")]
    return raw(f'{{"queue_running":[{parts[0]}],"queue_pending":[{parts[1]}]}}')


@router.post("/queue")
async def post_queue(request: Request) -> Response:
    """Take waiting prompts out: `clear`, `delete`. Beyond ComfyUI: `pause` (true or false), `move` ({"id", "before"}; else last)."""
    given, at = await table(request), studio(request)
    if given.get("clear"):
        await at.cancel(running=False)
    if "delete" in given:
        await at.cancel(_ids(given["delete"]), running=False)
    if "pause" in given:
        await at.desk.pause(bool(given["pause"]))
        at.pool.feed()
    if isinstance(move := given.get("move"), dict) and not await at.desk.move(str(move.get("id")), move.get("before")):
        raise ValueError("move: `id` and `before` are prompts that wait")
    return EMPTY


def _ids(given: Any) -> list[str]:
    if not isinstance(given, list) or not all(isinstance(i, str) for i in given) or len(given) > 10_000:
        raise ValueError("delete: expected a list of prompt ids")
    return given


@router.get("/history")
async def get_history(request: Request) -> Response:
    """Entries by id, oldest first: of the newest `max_items` those from `offset` on."""
    query = request.query_params
    most, offset = int(query.get("max_items", RECENT)), int(query.get("offset", 0))
    if most < 0 or offset < -1:
        raise ValueError("max_items and offset are counts")
    newest = offset <= 0
    jobs, _ = await studio(request).desk.find(Wanted(ran=True, by="ended", newest=newest, limit=min(most, 10_000), offset=max(offset, 0)))
    told = [f"{json.dumps(j.id)}:{entry(j.item, j.outputs, j.messages, j.state)}" for j in (reversed(jobs) if newest else jobs)]
    return raw("{" + ",".join(told) + "}")


@router.get("/history/{id}")
async def get_entry(request: Request, id: str) -> Response:
    """One entry, or none."""
    job = await studio(request).desk.job(id)
    if job is None or job.ended is None or job.started is None:
        return raw("{}")
    return raw(f"{{{json.dumps(id)}:{entry(job.item, job.outputs, job.messages, job.state)}}}")


@router.post("/history")
async def post_history(request: Request) -> Response:
    """`clear` it, or `delete` entries."""
    given = await table(request)
    if given.get("clear"):
        await studio(request).desk.forget(None)
    if "delete" in given:
        await studio(request).desk.forget(_ids(given["delete"]))
    return EMPTY


@router.post("/interrupt")
async def interrupt(request: Request) -> Response:
    """Stop what runs; with `prompt_id` only that one."""
    given, at = await table(request), studio(request)
    ids = [str(given["prompt_id"])] if given.get("prompt_id") else list(at.tellings)
    if running := [i for i in ids if i in at.tellings]:
        await at.cancel(running)
    return EMPTY


@router.post("/free")
async def free(request: Request) -> Response:
    """Let workers forget models that nothing uses."""
    given = await table(request)
    if given.get("unload_models") or given.get("free_memory"):
        studio(request).pool.free()
    return EMPTY


@router.get("/object_info")
async def object_info(request: Request) -> Response:
    """Every node class."""
    told = await asyncio.to_thread(comfy.object_info, studio(request).places)
    return raw(json.dumps(told, ensure_ascii=False))


@router.get("/object_info/{name:path}")
async def object_info_of(request: Request, name: str) -> dict[str, Any]:
    """One node class, or none."""
    return await asyncio.to_thread(class_info, name, studio(request).places)


@router.get("/system_stats")
async def system_stats(request: Request) -> dict[str, Any]:
    """The machine, as far as this process and the workers know it."""
    total, free = _memory()
    known = versions()
    system = {
        "os": sys.platform, "ram_total": total, "ram_free": free, "comfyui_version": COMFYUI, "required_frontend_version": "1.27.10",
        "installed_templates_version": None, "required_templates_version": None, "python_version": platform.python_version(),
        "pytorch_version": known.get("torch", ""), "embedded_python": False, "argv": ["safelight", "serve"],
        "safelight_version": known.get("safelight", ""),
    }
    machines = [w.machine or {} for w in studio(request).pool.workers]
    return {"system": system, "devices": [
        {"name": m.get("name", "cpu"), "type": m.get("type", "cpu"), "index": m.get("index"), "vram_total": m.get("vram_total", total),
         "vram_free": m.get("vram_free", free), "torch_vram_total": m.get("vram_total", total), "torch_vram_free": m.get("vram_free", free)}
        for m in machines
    ]}


def _memory() -> tuple[int, int]:
    """Bytes of memory: all, and what is free."""
    if sys.platform == "win32":
        return 0, 0
    page = os.sysconf("SC_PAGE_SIZE")
    return page * os.sysconf("SC_PHYS_PAGES"), page * os.sysconf("SC_AVPHYS_PAGES")


@router.get("/features")
async def features() -> dict[str, Any]:
    """What this server can do."""
    return dict(FEATURES)


@router.get("/embeddings")
async def embeddings(request: Request) -> list[str]:
    """Names without suffixes."""
    return [os.path.splitext(n)[0] for n in studio(request).places.models.names("embeddings")]


@router.get("/models")
async def kinds() -> list[str]:
    """Kinds of models."""
    return list(KINDS)


@router.get("/models/{kind}")
async def names(request: Request, kind: str) -> Response:
    """The models of a kind."""
    try:
        return JSONResponse(studio(request).places.models.names(kind))
    except ValueError:
        return Response(status_code=404)


@router.get("/experiment/models")
async def model_folders(request: Request) -> list[dict[str, Any]]:
    """Kinds with their folders."""
    models = studio(request).places.models
    return [{"name": kind, "folders": [str(p.path) for p in models.of(kind)]} for kind in KINDS]


@router.get("/experiment/models/{kind}")
async def model_files(request: Request, kind: str) -> Response:
    """The models of a kind, with sizes and times."""
    models = studio(request).places.models
    try:
        paths = [str(p.path) for p in models.of(kind)]
    except ValueError:
        return Response(status_code=404)
    found = [(n, e, e.stat()) for n, e in models.walk(kind)]
    where = {n: next((i for i, p in enumerate(paths) if e.path.startswith(p)), 0) for n, e, _ in found}
    return JSONResponse(
        [{"name": n, "pathIndex": where[n], "modified": s.st_mtime, "created": s.st_ctime, "size": s.st_size} for n, _, s in found]
    )


@router.get("/view_metadata/{kind}")
async def view_metadata(request: Request, kind: str) -> Response:
    """What a .safetensors file says of itself."""
    try:
        path = studio(request).places.models.find(kind, request.query_params.get("filename", ""))
        told = await asyncio.to_thread(embed.safetensors_texts, Path(path)) if path.suffix == ".safetensors" else {}
    except (ValueError, OSError):
        told = {}
    return JSONResponse(told) if told else Response(status_code=404)


@router.get("/extensions")
@router.get("/experiment/models/preview/{rest:path}", status_code=404)
async def nothing_listed() -> list[str]:
    """There are no scripts for the editor here."""
    return []


@router.get("/i18n")
@router.get("/workflow_templates")
@router.get("/global_subgraphs")
@router.get("/node_replacements")
async def nothing() -> dict[str, Any]:
    """Nothing of the kind."""
    return {}


sockets = APIRouter()


@sockets.websocket("/ws")
@sockets.websocket("/api/ws")
async def ws(socket: WebSocket) -> None:
    """What happens, as it happens."""
    await socket.app.state.studio.sockets.serve(socket)


@sockets.get("/internal/folder_paths", tags=["ComfyUI"])
async def folder_paths(request: Request) -> dict[str, list[str]]:
    """The folders of each kind of model."""
    return {kind: [str(p.path) for p in studio(request).places.models.of(kind)] for kind in KINDS}


@sockets.get("/internal/files/{kind}", tags=["ComfyUI"])
async def folder_files(request: Request, kind: str) -> Response:
    """The files right in the folder for input, output or temp, newest first."""
    try:
        return JSONResponse(studio(request).shelves.root(kind).names(newest=True))
    except ValueError:
        return JSONResponse({"error": "Invalid directory type"}, 400)


@sockets.get("/internal/logs/raw", tags=["ComfyUI"])
async def logs() -> dict[str, Any]:
    """Logs are not shown to clients."""
    return {"entries": [], "size": {"cols": 80, "rows": 24}}


@sockets.patch("/internal/logs/subscribe", tags=["ComfyUI"])
async def subscribe() -> Response:
    """Taken note of; there is nothing to send."""
    return EMPTY
