"""OpenAI's routes for pictures: /v1/images/generations, /v1/images/edits, /v1/models. Its Python client works against them."""
from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile

from safelight.server.answering import base64_of, ended, number, pictures, reads, studio, table, text
from safelight.server.drawing import MODEL, graph, models, one_of, seeds, size
from safelight.server.reading import read

router = APIRouter(prefix="/v1", tags=["OpenAI"])

THEIRS = ("dall-e", "gpt-image", "chatgpt")
"""Models of OpenAI's that clients name by default; ours draws instead."""
MOST = 10
NUMBERS = ("n", "seed", "steps", "num_inference_steps", "guidance_scale", "strength")


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "safelight"}


reads(router, {"/models": lambda at: {"object": "list", "data": [_model(name) for name in models(at)]}})


@router.get("/models/{name:path}")
async def one_model(request: Request, name: str) -> dict[str, Any]:
    """One of the models."""
    return _model(one_of("model", name, models(studio(request))))


@router.post("/images/generations")
async def generations(request: Request) -> dict[str, Any]:
    """Draw `n` pictures of `prompt`. Beyond OpenAI: `seed`, `steps` or `num_inference_steps`, `guidance_scale`, `negative_prompt`."""
    return await _drawn(request, await table(request), {})


@router.post("/images/edits")
async def edits(request: Request) -> dict[str, Any]:
    """Draw `image` anew after `prompt`, where the `mask` is transparent; without one all of it, by `strength`."""
    async with request.form(max_files=3, max_fields=30) as form:
        files = {k.removesuffix("[]"): await v.read() for k, v in form.items() if isinstance(v, UploadFile)}
        given = {k: read(v.encode()) if k in NUMBERS else v for k, v in form.items() if isinstance(v, str)}
    if "image" not in files:
        raise ValueError("image: there is no picture in the form")
    return await _drawn(request, given, files)


async def _drawn(request: Request, given: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    if given.get("stream") not in (None, False, "false"):
        raise ValueError("stream: this server answers when the pictures are done; leave it out")
    count, model = int(number(given, "n", 1)), text(given, "model", MODEL)
    if not 1 <= count <= MOST or not text(given, "prompt"):
        raise ValueError(f"n is {count}, 1 to {MOST} are possible" if given.get("prompt") else "prompt: it is missing or empty")
    form = one_of("response_format", text(given, "response_format", "b64_json" if "gpt-image" in model else "url"), ("url", "b64_json"))
    wide, high = size(text(given, "size", "auto"))
    steps = number(given, "steps", number(given, "num_inference_steps"))
    inputs = {
        "model": MODEL if model.startswith(THEIRS) else one_of("model", model, models(studio(request))), "prompt": given["prompt"],
        "negative": given.get("negative_prompt"), "seeds": seeds(int(number(given, "seed", -1)), count), "width": wide, "height": high,
        "scale": number(given, "guidance_scale"), "steps": None if steps is None else int(steps),
        "denoise": number(given, "strength", 0.75) if files and "mask" not in files else None,
    }
    made = await graph(request, inputs, picture=files.get("image", b""), mask=files.get("mask", b""), channel="transparency")
    job, _ = await studio(request).submit(made)
    done = await ended(request, job.id)
    return {"created": int(time.time()), "data": [await _told(request, p, form) for p in pictures(request, done)]}


async def _told(request: Request, path: Path, form: str) -> dict[str, Any]:
    if form == "b64_json":
        return {"b64_json": await base64_of(path)}
    return {"url": f"{request.base_url}view?{urlencode(studio(request).shelves.told(path))}"}
