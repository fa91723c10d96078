"""AUTOMATIC1111's routes: /sdapi/v1/txt2img, img2img, options, progress, png-info, and lists of what there is."""
from __future__ import annotations

import binascii
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request

from safelight import embed, parameters
from safelight.op import load_ops
from safelight.parameters import SAMPLERS, SCHEDULES
from safelight.server.answering import base64_of, ended, number, pictures, reads, studio, table, text
from safelight.server.drawing import graph, models, one_of, seeds
from safelight.server.sockets import UPLOADS
from safelight.server.studio import Studio

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])

TITLES = {title.lower(): name for name, title in SAMPLERS.items()}
KINDS = {title.lower(): name for name, title in SCHEDULES.items()}


def _choices(setting: str) -> list[str]:
    return [str(c) for c in load_ops()["generate"].spec.setting[setting].choices or ()]


@router.post("/txt2img")
async def txt2img(request: Request) -> dict[str, Any]:
    """Pictures of a prompt."""
    return await _drawn(request, await table(request))


@router.post("/img2img")
async def img2img(request: Request) -> dict[str, Any]:
    """Pictures that start from `init_images`, where the `mask` is white."""
    given = await table(request, UPLOADS)
    found = given.get("init_images")
    if not isinstance(found, list) or not found:
        raise ValueError("init_images: expected a list with a picture in base64")
    return await _drawn(request, given, _bytes("init_images", found[0]), _bytes("mask", given["mask"]) if given.get("mask") else b"")


async def _drawn(request: Request, given: Mapping[str, Any], picture: bytes = b"", mask: bytes = b"") -> dict[str, Any]:
    at = studio(request)
    sampler, schedule = _way(text(given, "sampler_name", text(given, "sampler_index", "Euler")), text(given, "scheduler", "automatic"))
    count = int(number(given, "batch_size", 1)) * int(number(given, "n_iter", 1))
    if not 1 <= count <= at.setup.most.batch:
        raise ValueError(f"batch_size x n_iter: got {count}, expected 1 to {at.setup.most.batch}")
    own = given.get("override_settings") or {}
    inputs: dict[str, Any] = {
        "model": _model(at, text(own, "sd_model_checkpoint", at.options["sd_model_checkpoint"])), "prompt": text(given, "prompt"),
        "negative": text(given, "negative_prompt"), "seeds": seeds(int(number(given, "seed", -1)), count), "emphasis": "a1111",
        "steps": int(number(given, "steps", 20)), "scale": number(given, "cfg_scale", 7.0), "sampler": sampler, "schedule": schedule,
        "width": int(number(given, "width", 0)), "height": int(number(given, "height", 0)),
        "denoise": number(given, "denoising_strength", 0.75) if picture else None,
    }
    job, _ = await at.submit(await graph(request, inputs, picture=picture, mask=mask))
    files = pictures(request, await ended(request, job.id))
    told = {"negative_prompt": "negative", "all_seeds": "seeds", "sampler_name": "sampler", "cfg_scale": "scale", "sd_model_name": "model"}
    info = {name: inputs[told.get(name, name)] for name in (*told, "prompt", "steps", "width", "height")}
    info |= {"seed": inputs["seeds"][0], "infotexts": [embed.texts_of(f).get("parameters", "") for f in files]}
    known = {k: v for k, v in given.items() if k not in ("init_images", "mask")}
    return {"images": [await base64_of(f) for f in files], "parameters": known, "info": json.dumps(info)}


def _way(sampler: str, schedule: str) -> tuple[str, str]:
    """Our names for the sampler and the schedule, which older clients write behind the sampler."""
    named, kind = sampler.lower(), schedule.lower()
    for title, name in KINDS.items():
        if named not in TITLES and named.endswith(f" {title}"):
            named, kind = named.removesuffix(f" {title}"), name
    found = one_of("sampler_name", TITLES.get(named, named), _choices("sampler"))
    return found, "normal" if kind == "automatic" else one_of("scheduler", KINDS.get(kind, kind), _choices("schedule"))


def _model(at: Studio, name: str) -> str:
    """A model by its name, or by the title that `sd-models` gives it, with or without the suffix."""
    bare, known = name.partition(" [")[0], models(at)
    return next((m for m in known if bare in (m, m.rpartition(".")[0])), None) or one_of("sd_model_checkpoint", bare, known)


def _bytes(name: str, given: Any) -> bytes:
    try:
        return b64decode(str(given).partition(",")[2] if str(given).startswith("data:") else given, validate=True)
    except (binascii.Error, ValueError, TypeError) as e:
        raise ValueError(f"{name}: it is not base64: {e}") from e


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Stop what runs."""
    studio(request).interrupt(None)
    return {}


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """What a picture says of how it was made."""
    content = _bytes("image", (await table(request, UPLOADS)).get("image"))
    if not content.startswith(embed.PNG):
        raise ValueError("image: expected a PNG in base64")
    items = embed.png_texts(content)
    told = items.get("parameters", "")
    return {"info": told, "items": items, "parameters": parameters.read(told) if told else {}}


@router.post("/options")
async def post_options(request: Request) -> dict[str, Any]:
    """`sd_model_checkpoint` chooses the model; others are taken note of."""
    given, at = await table(request), studio(request)
    if "sd_model_checkpoint" in given:
        at.options["sd_model_checkpoint"] = _model(at, text(given, "sd_model_checkpoint"))
    return {}


def progress(at: Studio) -> dict[str, Any]:
    """How far the oldest prompt that runs is, and its latest preview."""
    first = next(iter(at.tellings.values()), None)
    state = {"skipped": False, "interrupted": False, "job": first.id if first else "", "job_count": len(at.tellings), "job_no": 0,
             "sampling_step": 0, "sampling_steps": 0}
    picture = b64encode(first.latest[1]).decode() if first and first.latest else None
    share = first.progress if first else 0.0
    return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": picture, "textinfo": None}


SAME = {"hash": None, "sha256": None, "config": None}
reads(router, {
    "/progress": progress,
    "/options": lambda at: at.options,
    "/sd-models": lambda at: [{"title": n, "model_name": n.rpartition(".")[0] or n, "filename": n, **SAME} for n in models(at)],
    "/samplers": lambda _: [{"name": SAMPLERS.get(n, n), "aliases": [n], "options": {}} for n in _choices("sampler")],
    "/schedulers": lambda _: [{"name": n, "label": SCHEDULES.get(n, n), "aliases": None} for n in _choices("schedule")],
    "/loras": lambda at: [
        {"name": n.rpartition(".")[0], "alias": n, "path": e.path, "metadata": {}} for n, e in at.places.models.walk("loras")
    ],
})
