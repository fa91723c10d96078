"""ComfyUI's routes for prompts, the queue, the history, node classes and models. Each is there bare and below /api."""
from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
from typing import Any

from fastapi import APIRouter, Request, WebSocket
from starlette.responses import JSONResponse, Response

from safelight import comfy, embed
from safelight.comfy.info import class_info
from safelight.folders import KINDS
from safelight.lineage import versions
from safelight.server.answering import EMPTY, MISSING, ids, raw, reads, studio, table
from safelight.server.desk import Job, Wanted
from safelight.server.sockets import FEATURES
from safelight.server.studio import Studio
from safelight.server.telling import entry

router, sockets = APIRouter(tags=["ComfyUI"]), APIRouter(tags=["ComfyUI"])

COMFYUI = "0.3.64"
"""The ComfyUI whose wire this is."""
RECENT = 1000
"""Entries of the history that are sent when nobody says how many."""


@router.post("/prompt")
async def post_prompt(request: Request) -> Response:
    """Queue a prompt. What is acknowledged is on the disk."""
    given = await table(request)
    number, targets, extra, id = (given.get(k) for k in ("number", "partial_execution_targets", "extra_data", "prompt_id"))
    if not isinstance(number, int | float | None) or not isinstance(targets, list | None) or not isinstance(extra, dict | None):
        raise ValueError("number is a number, partial_execution_targets a list, extra_data an object")
    if id is not None and not (isinstance(id, str) and 0 < len(id) <= 200 and id.isprintable()):
        raise ValueError("prompt_id: expected a text of 1 to 200 characters, such as a UUID")
    client = str(given.get("client_id") or request.query_params.get("clientId") or "")[:200]
    job, ready = await studio(request).submit(
        given.get("prompt"), id=id or "", client=client, extra=extra, front=bool(given.get("front")),
        number=None if number is None else float(number), targets=targets and [str(t) for t in targets],
    )
    return JSONResponse({"prompt_id": job.id, "number": int(job.number) if number is None else job.number, "node_errors": ready.errors})


@router.post("/workflow/convert")
async def convert(request: Request) -> Response:
    """An editor's workflow (litegraph's JSON, bare or as `workflow`) as the prompt that its editor would queue."""
    given = await table(request)
    workflow = given["workflow"] if isinstance(given.get("workflow"), dict) else given
    return JSONResponse(await asyncio.to_thread(comfy.convert, workflow, studio(request).places))


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
    if given.get("clear") or "delete" in given:
        await at.cancel(None if given.get("clear") else ids(given, "delete"), running=False)
    if "pause" in given:
        await at.desk.pause(bool(given["pause"]))
        at.pool.hungry.set()
    if isinstance(move := given.get("move"), dict) and not await at.desk.move(str(move.get("id")), move.get("before")):
        raise ValueError("move: `id` and `before` are prompts that wait")
    return EMPTY


@router.get("/history")
async def get_history(request: Request) -> Response:
    """Entries by id, oldest first: `max_items` from `offset` on, without an offset the newest."""
    query = request.query_params
    most, offset = int(query.get("max_items", RECENT)), int(query.get("offset", -1))
    newest = offset < 0
    jobs, _ = await studio(request).desk.find(
        Wanted(ran=True, by="ended", newest=newest, limit=min(max(most, 0), 10_000), offset=max(offset, 0))
    )
    return _entries(jobs[::-1] if newest else jobs)


@router.get("/history/{id}")
async def get_entry(request: Request, id: str) -> Response:
    """One entry, or none."""
    job = await studio(request).desk.job(id)
    return _entries([job] if job is not None and job.ended and job.started else [])


def _entries(jobs: list[Job]) -> Response:
    return raw("{" + ",".join(f"{json.dumps(j.id)}:{entry(j)}" for j in jobs) + "}")


@router.post("/history")
async def post_history(request: Request) -> Response:
    """`clear` it, or `delete` entries."""
    given = await table(request)
    if given.get("clear") or "delete" in given:
        await studio(request).desk.forget(None if given.get("clear") else ids(given, "delete"))
    return EMPTY


@router.post("/interrupt")
async def interrupt(request: Request) -> Response:
    """Stop what runs; with `prompt_id` only that one."""
    given, at = await table(request), studio(request)
    at.interrupt(str(given["prompt_id"]) if given.get("prompt_id") else None)
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
    return raw(json.dumps(await asyncio.to_thread(comfy.object_info, studio(request).places), ensure_ascii=False))


@router.get("/object_info/{name:path}")
async def object_info_of(request: Request, name: str) -> dict[str, Any]:
    """One node class, or none."""
    return await asyncio.to_thread(class_info, name, studio(request).places)


@router.get("/models/{kind}")
async def names(request: Request, kind: str) -> Response:
    """The models of a kind."""
    known = kind in studio(request).places.models.places or kind in KINDS
    return JSONResponse(studio(request).places.models.names(kind)) if known else MISSING


@router.get("/experiment/models/{kind}")
async def model_files(request: Request, kind: str) -> list[dict[str, Any]]:
    """The models of a kind, with sizes and times."""
    models = studio(request).places.models
    paths = [str(p.path) for p in models.of(kind)]
    told = [(n, next((i for i, p in enumerate(paths) if e.path.startswith(p)), 0), e.stat()) for n, e in models.walk(kind)]
    return [{"name": n, "pathIndex": i, "modified": s.st_mtime, "created": s.st_ctime, "size": s.st_size} for n, i, s in told]


@router.get("/view_metadata/{kind}")
async def view_metadata(request: Request, kind: str) -> Response:
    """What a .safetensors file says of itself."""
    try:
        path = studio(request).places.models.find(kind, request.query_params.get("filename", ""))
        told = await asyncio.to_thread(embed.safetensors_texts, path) if path.suffix == ".safetensors" else {}
    except (ValueError, OSError):
        told = {}
    return JSONResponse(told) if told else MISSING


def system_stats(at: Studio) -> dict[str, Any]:
    """The machine, as far as this process and the workers know it."""
    page = os.sysconf("SC_PAGE_SIZE") if sys.platform != "win32" else 0
    total, free = (page * os.sysconf(name) if page else 0 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES"))
    known, machines = versions(), [w.machine or {} for w in at.pool.workers]
    system = {
        "os": sys.platform, "ram_total": total, "ram_free": free, "comfyui_version": COMFYUI, "required_frontend_version": "1.27.10",
        "installed_templates_version": None, "required_templates_version": None, "python_version": platform.python_version(),
        "pytorch_version": known.get("torch", ""), "embedded_python": False, "argv": ["safelight", "serve"],
        "safelight_version": known.get("safelight", ""),
    }
    usual = {"name": "cpu", "type": "cpu", "index": None, "vram_total": total, "vram_free": free}
    devices = [{k: m.get(k, v) for k, v in usual.items()} for m in machines]
    return {"system": system, "devices": [d | {f"torch_{k}": d[k] for k in ("vram_total", "vram_free")} for d in devices]}


reads(router, {
    "/prompt": lambda at: {"exec_info": {"queue_remaining": at.desk.remaining}},
    "/system_stats": system_stats,
    "/features": lambda _: FEATURES,
    "/embeddings": lambda at: [os.path.splitext(n)[0] for n in at.places.models.names("embeddings")],
    "/models": lambda _: list(KINDS),
    "/experiment/models": lambda at: [{"name": k, "folders": [str(p.path) for p in at.places.models.of(k)]} for k in KINDS],
    "/extensions": lambda _: [],
    **dict.fromkeys(("/i18n", "/workflow_templates", "/global_subgraphs", "/node_replacements"), lambda _: {}),
    "/users": lambda _: {"storage": "server", "migrated": True},
})
reads(sockets, {
    "/internal/folder_paths": lambda at: {kind: [str(p.path) for p in at.places.models.of(kind)] for kind in KINDS},
    "/internal/logs/raw": lambda _: {"entries": [], "size": {"cols": 80, "rows": 24}},  # logs are not shown to clients
})


@sockets.websocket("/ws")
@sockets.websocket("/api/ws")
async def ws(socket: WebSocket) -> None:
    """What happens, as it happens."""
    await socket.app.state.studio.sockets.serve(socket)


@sockets.get("/internal/files/{kind}")
async def folder_files(request: Request, kind: str) -> Response:
    """The files right in the folder for input, output or temp, newest first."""
    try:
        return JSONResponse(studio(request).shelves.root(kind).newest())
    except ValueError:
        return JSONResponse({"error": "Invalid directory type"}, 400)


@sockets.patch("/internal/logs/subscribe")
async def subscribe() -> Response:
    """Taken note of; there is nothing to send."""
    return EMPTY
