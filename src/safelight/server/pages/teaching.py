"""Train: a form on the left, runs with their curves on the right. A run that was stopped goes on where it was."""
from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, Response

from safelight.folders import current as folders
from safelight.op import load_ops
from safelight.server.answering import studio
from safelight.server.desk import Full, Wanted
from safelight.server.files import Outside
from safelight.server.pages import cards, datasets, runs, shell
from safelight.server.pages.making import said, submit
from safelight.server.pages.shell import render
from safelight.server.studio import Studio
from safelight.server.validating import Refusal

router = APIRouter(prefix="/studio/train")

DEFAULTS: Mapping[str, str] = {
    "path": "", "model": "mini", "kind": "lora", "method": "lora", "trigger": "", "by": "file", "rank": "16", "steps": "400", "batch": "8",
    "lr": "0.001", "optimizer": "adamw", "size": "", "held_out": "0.1", "patience": "0", "seed": "0", "instance": "", "class_name": "",
    "prompts": "",
    **{name: f"{told[4]:g}" for name, told in datasets.SETTINGS.items()},
}
KINDS = (("lora", "a style or a thing (LoRA)"), ("dreambooth", "one subject (DreamBooth)"))
STATES = ("pending", "running", "done", "failed", "cancelled")
PAGE, SAMPLES, POINTS = 10, 8, 2000
"""Runs of a page, prompts drawn at every look, points of a curve."""


def choices(at: Studio) -> dict[str, Any]:
    """The names to choose from."""
    found, settings = folders(), {s.name: s for s in load_ops()["train_lora"].spec.settings}
    return {
        "models": ["mini", *found.names("checkpoints"), *found.names("diffusers")], "kinds": KINDS,
        "methods": list(settings["method"].choices or ()), "optimizers": list(settings["kind"].choices or ()),
        "folders": datasets.folders_below(at.setup.data),
    }


@router.get("")
async def page(request: Request) -> Response:
    """The page; settings in the address are put into the form."""
    at = studio(request)
    given = {**DEFAULTS, **{k: v for k, v in request.query_params.items() if k in DEFAULTS}}
    told = {**await asyncio.to_thread(choices, at), **await history(request)}
    return render(request, "train.html", form=given, **told)


@router.get("/history")
async def more(request: Request) -> Response:
    """Older runs."""
    return render(request, "_runs.html", **await history(request))


async def history(request: Request) -> dict[str, Any]:
    """A page of runs, newest first."""
    at, wanted = studio(request), Wanted(states=STATES, words="train_", limit=PAGE, offset=shell.start(request))
    return await with_runs(at, await cards.listed(at, wanted))


async def with_runs(at: Studio, told: dict[str, Any]) -> dict[str, Any]:
    """`cards`, and `runs`: by their ids what the store has of them."""
    return {**told, "runs": {card.id: await asyncio.to_thread(runs.run, at, card.id, lines(card.form)) for card in told["cards"]}}


def lines(form: Mapping[str, Any]) -> list[str]:
    """The prompts that a form wants drawn on the way."""
    return [x.strip() for x in str(form.get("prompts", "")).splitlines() if x.strip()]


@router.post("")
async def train(request: Request) -> Response:
    """Queue what the form asks for; `preflight`: only say what it would take."""
    at = studio(request)
    async with request.form() as sent:
        given = {**DEFAULTS, **{k: v for k, v in sent.items() if isinstance(v, str) and k in DEFAULTS}}
        ask = sent.get("only") == "preflight"
    try:
        form, graph = asked(at, given, preflight=ask)
        job, _ = await submit(at, graph, form)
    except (Refusal, ValueError, Full, Outside) as e:
        return render(request, "_refused.html", 422, why=said(e))
    return render(request, "_runs.html", **await with_runs(at, {"cards": [cards.card(at, job)], "next": 0}))


@router.post("/{id}/resume")
async def resume(request: Request, id: str) -> Response:
    """Queue a run that was stopped once more: the same training goes on from its last checkpoint."""
    at = studio(request)
    job = await at.desk.job(id)
    form = json.loads(job.extra).get("page") if job is not None else None
    if job is None or not isinstance(form, dict) or form.get("kind") != "train" or job.state not in ("cancelled", "failed"):
        return render(request, "_refused.html", 404, why=f"there is no stopped run {id}")
    try:
        again, _ = await submit(at, json.loads(job.prompt), form)
    except (Refusal, ValueError, Full) as e:
        return render(request, "_refused.html", 422, why=said(e))
    return render(request, "_runs.html", **await with_runs(at, {"cards": [cards.card(at, again)], "next": 0}))


def asked(at: Studio, given: Mapping[str, str], *, preflight: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a form says, and the graph of it: folder, captions written here, curate, caption, train. ValueError for what is no number."""
    if not given["path"]:
        raise ValueError("pictures: there is no folder; choose one")
    path = datasets.place(at, given["path"])
    form: dict[str, Any] = {**given, "kind": "train", "what": given["kind"], "title": given["trigger"] or path.name, "preflight": preflight}
    graph: dict[str, Any] = {"pictures": {"class_type": "folder", "inputs": {"path": str(path)}}}
    last = "pictures"
    if datasets.written(at, path):
        graph["written"] = {"class_type": "take_captions", "inputs": {"data": [last, 0], "path": str(datasets.table(at, path))}}
        last = "written"
    aspect = float(given["max_aspect"])
    sorting = {
        "min_side": int(float(given["min_side"])) or 1, "max_aspect": aspect, "min_aspect": round(1 / aspect, 3),
        "min_contrast": float(given["min_contrast"]), "min_sharpness": float(given["min_sharpness"]),
        "near_duplicates": int(float(given["near_duplicates"])),
    }
    graph["curate"] = {"class_type": "curate", "inputs": {"data": [last, 0], **sorting}}
    by = given["by"] if given["by"] != "file" or last == "pictures" else ""
    last = "curate"
    if any((path / name).is_file() for name in datasets.written(at, path, "choices")):
        named = str(datasets.table(at, path, "choices"))
        graph["choices"] = {"class_type": "choose_pictures", "inputs": {"data": [last, 0], "path": named}}
        last = "choices"
    if by:
        graph["caption"] = {"class_type": "caption", "inputs": {"data": [last, 0], "by": by, "trigger": given["trigger"]}}
        last = "caption"
    elif given["trigger"]:
        graph["caption"] = {"class_type": "reword", "inputs": {"data": [last, 0], "trigger": given["trigger"]}}
        last = "caption"
    graph["model"] = {"class_type": "model", "inputs": {"name": given["model"]}}
    inputs = {"model": ["model", 0], "data": [last, 0], **_knobs(given, preflight)}
    graph["train"] = {"class_type": f"train_{given['kind']}", "inputs": inputs}
    return form, graph


def _knobs(given: Mapping[str, str], preflight: bool) -> dict[str, Any]:
    """The settings of the training op."""
    out: dict[str, Any] = {name: int(given[name]) for name in ("rank", "steps", "batch", "patience", "seed")}
    out |= {"lr": float(given["lr"]), "held_out": float(given["held_out"]), "kind": given["optimizer"], "preflight": preflight}
    out["every"] = max(int(given["steps"]) // 8, 1)
    if wanted := lines(given):
        out |= {"prompts": wanted[:SAMPLES], "samples": len(wanted[:SAMPLES])}
    if given["size"]:
        out["size"] = int(given["size"])
    if given["kind"] == "lora":
        return {**out, "method": given["method"], "trigger": given["trigger"]}
    return {**out, **{name: given[name] for name in ("instance", "class_name") if given[name]}}


@router.get("/{id}/curve")
async def curve(request: Request, id: str) -> Response:
    """Losses so far, or all of an ended run's: {steps, loss, held: [[step, loss, low, high]], over}."""
    at = studio(request)
    job = await at.desk.job(id)
    if job is None:
        return JSONResponse({"error": f"there is no run {id}"}, 404)
    found = await asyncio.to_thread(runs.run, at, id)
    told = drawn(found.record) if found.record.get("loss") else measured(at, id)
    return JSONResponse({**told, "over": job.ended is not None}, headers={"Cache-Control": "no-store"})


def drawn(record: Mapping[str, Any]) -> dict[str, Any]:
    """A training's record as the page draws it, counted from 1 and thinned out."""
    losses = record["loss"]
    losses = losses[:: -(-len(losses) // POINTS)]
    return {"steps": [s + 1 for s, _ in losses], "loss": [x for _, x in losses], "held": [list(h) for h in record.get("held_out", ())]}


def measured(at: Studio, id: str) -> dict[str, Any]:
    """The same from what the run told on its way, where the store has nothing of it any more."""
    telling, file = at.tellings.get(id), at.curve(id)
    kept = json.loads(file.read_bytes()) if telling is None and file.is_file() else {}
    told = telling.measured if telling is not None else kept["measured"] if isinstance(kept, dict) and kept else kept
    losses = [(step, v["loss"]) for step, v in told if "loss" in v]
    held = [[step, v["held-out"], v["low"], v["high"]] for step, v in told if "held-out" in v]
    return {"steps": [s for s, _ in losses], "loss": [x for _, x in losses], "held": held}


@router.get("/{id}/looks")
async def looks(request: Request, id: str) -> Response:
    """What was looked at on the way, once there is more of it than `seen` pictures, or the run is over."""
    at = studio(request)
    job = await at.desk.job(id)
    if job is None:
        return Response(status_code=404)
    card = cards.card(at, job)
    found = await asyncio.to_thread(runs.run, at, id, lines(card.form))
    if job.ended is None and str(len(found.files)) == request.query_params.get("seen"):
        return Response(status_code=204)
    return render(request, "_looks.html", card=card, run=found)


@router.get("/{id}/sample/{name}")
async def sample(request: Request, id: str, name: str) -> Response:
    """A picture that was drawn on the way."""
    file = (await asyncio.to_thread(runs.run, studio(request), id)).files.get(f"samples/{name}")
    if file is None or not runs.SAMPLE.fullmatch(name):
        return Response(status_code=404)
    return FileResponse(file, media_type="image/png", headers={"Cache-Control": "private, max-age=86400"})
