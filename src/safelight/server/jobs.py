"""The new frontend's routes: the queue and the history as one list of jobs, searched in the database."""
from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from safelight.server.answering import studio, table
from safelight.server.desk import ORDERS, Job, Wanted
from safelight.server.validating import workflow

router = APIRouter(prefix="/api", tags=["jobs"])

STATES = {"pending": "pending", "in_progress": "running", "completed": "done", "failed": "failed", "cancelled": "cancelled"}
STATUS = {state: status for status, state in STATES.items()}
BY = {"created_at": "created", "execution_duration": "duration"} | {name: name for name in ORDERS}
MOST = 1000


@router.get("/jobs")
async def list_jobs(request: Request) -> Response:
    """By `status` (several with commas), `sort_by`, `sort_order`, `limit`, `offset`. Beyond ComfyUI: `q` (words of prompts, models and node
    classes), `since` and `until` (seconds since 1970)."""
    query = request.query_params
    try:
        statuses = [s for s in query.get("status", "").split(",") if s] or list(STATES)
        limit, offset = min(int(query.get("limit", MOST)), MOST), int(query.get("offset", 0))
        if limit <= 0 or offset < 0 or query.get("sort_order", "desc") not in ("asc", "desc"):
            raise ValueError("limit is more than 0, offset at least 0, sort_order asc or desc")
        wanted = Wanted(
            [STATES[s] for s in statuses], query.get("q", "")[:1000], since=float(query.get("since", 0)),
            until=float(query.get("until", 1e12)), by=BY[query.get("sort_by", "created_at")],
            newest=query.get("sort_order", "desc") == "desc", limit=limit, offset=offset,
        )
    except (KeyError, ValueError) as e:
        return JSONResponse({"error": f"bad value: {e}"}, 400)
    jobs, total = await studio(request).desk.find(wanted)
    pages = {"offset": offset, "limit": limit, "total": total, "has_more": offset + len(jobs) < total}
    return JSONResponse({"jobs": [listed(j) for j in jobs], "pagination": pages})


@router.get("/jobs/{id}")
async def one_job(request: Request, id: str) -> Response:
    """One with all that is known of it."""
    job = await studio(request).desk.job(id)
    if job is None:
        return JSONResponse({"error": "Job not found"}, 404)
    status = {"status_str": "success" if job.state == "done" else "error", "completed": job.state == "done"}
    more = {
        "outputs": json.loads(job.outputs), "execution_status": {**status, "messages": json.loads(job.messages)} if job.ended else None,
        "workflow": {"prompt": json.loads(job.prompt), "extra_data": json.loads(job.extra)},
    }
    return JSONResponse(listed(job) | more)


@router.post("/jobs/cancel")
async def cancel_jobs(request: Request) -> Response:
    """Several."""
    ids = (await table(request)).get("job_ids")
    wrong = [i for i in ids if not isinstance(i, str)] if isinstance(ids, list) else []
    if not isinstance(ids, list) or wrong or not 0 < len(ids) <= MOST:
        return JSONResponse({"error": f"job_ids: expected a list of 1 to {MOST} ids", "invalid_ids": wrong}, 400)
    return JSONResponse({"cancelled": await studio(request).cancel(ids)})


@router.post("/jobs/{id}/cancel")
async def cancel_job(request: Request, id: str) -> dict[str, Any]:
    """One, whether it waits or runs."""
    return {"cancelled": await studio(request).cancel([id])}


@router.get("/safelight/queue")
async def queue(request: Request) -> dict[str, Any]:
    """Whether the queue is paused, what each worker does, and how far the prompts that run are, or what in it they wait for."""
    at = studio(request)
    workers = [{"device": w.device, "ready": w.machine is not None, "machine": w.machine, "jobs": list(w.jobs)} for w in at.pool.workers]
    progress = {id: {"node": t.current, "share": t.progress, "waits": t.waits} for id, t in at.tellings.items()}
    return {"paused": at.desk.paused, "remaining": at.desk.remaining, "workers": workers, "progress": progress}


def listed(job: Job) -> dict[str, Any]:
    """A job as lists have it."""
    every = [(node, kind, p) for node, ui in json.loads(job.outputs).items() for kind, ps in ui.items() for p in ps]
    shown = [{**p, "nodeId": node, "mediaType": kind} for node, kind, p in every if isinstance(p, dict)]
    best = next((p for p in shown if p["type"] == "output"), shown[0] if shown else None)
    told: dict[str, Any] = {
        "id": job.id, "status": STATUS[job.state], "priority": job.number, "create_time": int(job.created * 1000),
        "execution_start_time": job.started and int(job.started * 1000), "execution_end_time": job.ended and int(job.ended * 1000),
        "outputs_count": len(shown), "previewable_outputs_count": sum(p["mediaType"] == "images" for p in shown), "preview_output": best,
        "execution_error": _error(job), "workflow_id": _workflow(json.loads(job.extra)).get("id"),
    }
    return {k: v for k, v in told.items() if v is not None}


def _workflow(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    found = workflow(extra)
    return found if isinstance(found, dict) else {}


def _error(job: Job) -> dict[str, Any] | None:
    told = next((data for kind, data in json.loads(job.messages) if kind == "execution_error"), None)
    return told and {k: told[k] for k in ("node_id", "node_type", "exception_message", "exception_type", "traceback")}
