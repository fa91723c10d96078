"""Generate: a form on the left, what came of it on the right."""
from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.folders import current as folders
from safelight.op import load_ops
from safelight.server.answering import studio
from safelight.server.desk import Full, Wanted
from safelight.server.pages import board, cards, shell
from safelight.server.pages.shell import render
from safelight.server.studio import Studio
from safelight.server.validating import Refusal

router = APIRouter()

DEFAULTS: Mapping[str, str] = {
    "model": "mini", "lora": "", "strength": "1", "prompt": "", "negative": "", "width": "", "height": "", "steps": "20", "scale": "5",
    "sampler": "", "seed": "-1", "count": "4", "mode": "one", "x": "", "x_values": "", "y": "", "y_values": "", "z": "", "z_values": "",
}
AXES = ("scale", "steps", "sampler", "seed", "strength", "prompt", "lora", "model")
RESULT = " [output]"
MOST = 64
"""Pictures of one grid or storyboard."""
PAGE = 12
STATES = ("pending", "running", "done", "failed")


def choices(at: Studio) -> dict[str, Any]:
    """The names to choose from; LoRAs that were trained here are marked as results."""
    found, settings = folders(), {s.name: s for s in load_ops()["generate"].spec.settings}
    return {
        "models": ["mini", *found.names("checkpoints"), *found.names("diffusers")], "loras": [*found.names("loras"), *own_loras(at)],
        "samplers": list(settings["sampler"].choices or ()),
    }


def own_loras(at: Studio) -> list[str]:
    """Weights among the results, the newest first: `NAME [output]`."""
    root = at.shelves.output.path
    found = sorted(root.rglob("*.safetensors"), key=lambda p: -p.stat().st_mtime)[:100]
    return [f"{p.relative_to(root).as_posix()}{RESULT}" for p in found if p.relative_to(root).parts[0][0] != "."]


@router.get("/")
async def page(request: Request) -> Response:
    """The page; settings in the address are put into the form."""
    given = {**DEFAULTS, **{k: v for k, v in request.query_params.items() if k in DEFAULTS}}
    told = {**await asyncio.to_thread(choices, studio(request)), **await history(request)}
    return render(request, "generate.html", form=given, axes=AXES, **told)


@router.get("/studio/history")
async def more(request: Request) -> Response:
    """Older ones."""
    return render(request, "_cards.html", **await history(request))


async def history(request: Request) -> dict[str, Any]:
    """A page of cards, newest first."""
    wanted = Wanted(states=STATES, limit=PAGE, offset=shell.start(request))
    told = await cards.listed(studio(request), wanted)
    return {**told, "cards": [c for c in told["cards"] if c.kind not in ("train", "score")], "older": "/studio/history"}


@router.post("/studio/generate")
async def generate(request: Request) -> Response:
    """Queue what the form asks for; its card."""
    async with request.form() as sent:
        given = {**DEFAULTS, **{k: v for k, v in sent.items() if isinstance(v, str) and k in DEFAULTS}}
    try:
        form, graph = asked(studio(request), given)
        job, _ = await submit(studio(request), graph, form)
    except (Refusal, ValueError, Full) as e:
        return render(request, "_refused.html", 422, why=said(e))
    return render(request, "_cards.html", cards=[cards.card(studio(request), job)], next=0, older="")


async def submit(at: Studio, graph: Mapping[str, Any], form: Mapping[str, Any]) -> tuple[Any, Any]:
    """Take a page's graph in, with what its form said."""
    return await at.submit(graph, extra={"page": form, "preview_method": "auto"})


def said(e: Exception) -> str:
    """Why a prompt was refused, in words."""
    if not isinstance(e, Refusal):
        return str(e)
    answer: dict[str, Any] = e.answer
    told = [x for node in answer["node_errors"].values() for x in node["errors"]] or [answer["error"]]
    return "; ".join(f"{x['message']}: {x['details']}" if x["details"] else str(x["message"]) for x in told[:4])


def asked(at: Studio, given: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a form says, with its seed drawn, and the graph of it. ValueError for what is no number, or too many pictures."""
    if not given["prompt"].strip():
        raise ValueError("prompt: there is none; say what to draw")
    seed = int(given["seed"])
    form: dict[str, Any] = {**given, "kind": "generate", "title": given["prompt"], "seed": secrets.randbelow(2**32) if seed < 0 else seed}
    if given["width"] and given["height"]:
        form["size"] = f"{given['width']}x{given['height']}"
    graph: dict[str, Any] = {}
    return (_board if given["mode"] == "board" else _grid)(at, graph, form), graph


def _board(at: Studio, graph: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """One op draws all lines; what it drew is saved picture by picture and as a sheet."""
    path, lines = board.kept(at, board.rows(form["prompt"], form["seed"]))
    if len(lines) > MOST:
        raise ValueError(f"storyboard: {len(lines)} prompts; at most {MOST} at once")
    shot = ["1", 0]
    graph["1"] = {"class_type": "storyboard", "inputs": {"path": path, **_settings(at, graph, form, "1")}}
    graph["save"] = {"class_type": "SaveImage", "inputs": {"images": shot, "filename_prefix": "storyboard"}}
    graph["sheet"] = {"class_type": "sheet", "inputs": {"image": shot, "columns": board.COLUMNS}}
    return {**form, "title": lines[0]["prompt"], "lines": lines}


def _grid(at: Studio, graph: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """One op a cell; without axes one for all pictures."""
    axes = {axis: _values(form, axis) for axis in "zyx"}
    cells = list(itertools.product(*axes.values()))
    if len(cells) > MOST:
        raise ValueError(f"grid: {' x '.join(str(len(v)) for v in axes.values())} is {len(cells)} pictures; at most {MOST}")
    for i, values in enumerate(cells, 1):
        cell = {**form, **{form[axis]: v for axis, v in zip(axes, values, strict=True) if v}}
        seed, count = int(cell["seed"]), 1 if len(cells) > 1 else int(cell["count"])
        inputs = {"prompt": cell["prompt"], "seeds": [seed + k for k in range(count)], **_settings(at, graph, cell, str(i))}
        graph[str(i)] = {"class_type": "generate", "inputs": inputs}
    return {**form, "grid": {axis: [form[axis], v] for axis, v in axes.items()}} if len(cells) > 1 else form


def _values(given: Mapping[str, Any], axis: str) -> list[str]:
    name, apart = given[axis], "|" if given[axis] == "prompt" else ","
    found = [v.strip() for v in given[f"{axis}_values"].split(apart) if v.strip()]
    if name and name not in AXES:
        raise ValueError(f"grid: {name!r} is no axis; expected one of {', '.join(AXES)}")
    return (found or [""]) if name else [""]


def _settings(at: Studio, graph: dict[str, Any], form: Mapping[str, Any], node: str) -> dict[str, Any]:
    """What drawing ops share; the nodes of the model and the LoRA are added where they are not there yet."""
    model: list[Any] = [f"model {form['model']}", 0]
    graph.setdefault(str(model[0]), {"class_type": "model", "inputs": {"name": form["model"]}})
    if name := form["lora"]:
        path = str(at.shelves.output.find(name.removesuffix(RESULT))) if name.endswith(RESULT) else name
        graph.setdefault(f"lora {name}", {"class_type": "load_lora", "inputs": {"path": path}})
        worn = {"model": model, "lora": [f"lora {name}", 0], "strength": float(form["strength"])}
        graph[f"with {node}"] = {"class_type": "with_lora", "inputs": worn}
        model = [f"with {node}", 0]
    inputs: dict[str, Any] = {"model": model, "steps": int(form["steps"]), "scale": float(form["scale"])}
    inputs |= {name: form[name] for name in ("negative", "sampler") if form[name]}
    return inputs | {name: int(form[name]) for name in ("width", "height") if form[name]}
