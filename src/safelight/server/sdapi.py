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
from safelight.server.answering import base64_of, ended, number, pictures, studio, table, text
from safelight.server.drawing import MODEL, graph, models, one_of, seeds

router = APIRouter(prefix="/sdapi/v1", tags=["AUTOMATIC1111"])

UPLOADS = 50 * 2**20
TITLES = {**{title.lower(): name for name, title in SAMPLERS.items()}, **{name: name for name in SAMPLERS}}
KINDS = {**{title.lower(): name for name, title in SCHEDULES.items()}, **{name: name for name in SCHEDULES}}


@router.post("/txt2img")
async def txt2img(request: Request) -> dict[str, Any]:
    """Pictures of a prompt."""
    return await _drawn(request, await table(request))


@router.post("/img2img")
async def img2img(request: Request) -> dict[str, Any]:
    """Pictures that start from `init_images`, where the `mask` is white."""
    given = await table(request, most=UPLOADS)
    found = given.get("init_images")
    if not isinstance(found, list) or not found:
        raise ValueError("init_images: expected a list with a picture in base64")
    mask = _bytes("mask", given["mask"]) if given.get("mask") else b""
    return await _drawn(request, given, _bytes("init_images", found[0]), mask)


async def _drawn(request: Request, given: Mapping[str, Any], picture: bytes = b"", mask: bytes = b"") -> dict[str, Any]:
    sampler, schedule = _way(text(given, "sampler_name", text(given, "sampler_index", "Euler")), text(given, "scheduler", "automatic"))
    own = given.get("override_settings") or {}
    count = int(number(given, "batch_size", 1)) * int(number(given, "n_iter", 1))
    if not 1 <= count <= studio(request).setup.most.batch:
        raise ValueError(f"batch_size x n_iter: got {count}, expected 1 to {studio(request).setup.most.batch}")
    model = _model(request, text(own, "sd_model_checkpoint", _options(request)["sd_model_checkpoint"]))
    inputs = {
        "model": model, "prompt": text(given, "prompt"),
        "negative": text(given, "negative_prompt"), "seeds": seeds(int(number(given, "seed", -1)), count), "emphasis": "a1111",
        "steps": int(number(given, "steps", 20)), "scale": number(given, "cfg_scale", 7.0), "sampler": sampler, "schedule": schedule,
        "width": int(number(given, "width", 0)), "height": int(number(given, "height", 0)),
        "denoise": number(given, "denoising_strength", 0.75) if picture else None,
    }
    job, _ = await studio(request).submit(await graph(request, inputs, picture=picture, mask=mask))
    files = pictures(request, await ended(request, job.id))
    told = [embed.texts_of(f).get("parameters", "") for f in files]
    info = {**{k: inputs[k] for k in ("prompt", "steps", "width", "height")}, "negative_prompt": inputs["negative"],
            "seed": inputs["seeds"][0], "all_seeds": inputs["seeds"], "sampler_name": sampler, "cfg_scale": inputs["scale"],
            "infotexts": told, "sd_model_name": model}
    known = {k: v for k, v in given.items() if k not in ("init_images", "mask")}
    return {"images": [await base64_of(f) for f in files], "parameters": known, "info": json.dumps(info)}


def _way(sampler: str, schedule: str) -> tuple[str, str]:
    """Our names for the sampler and the schedule, which older clients write behind the sampler."""
    named, known = sampler.lower(), load_ops()["generate"].spec.setting
    for title, name in KINDS.items():
        if named not in TITLES and named.endswith(f" {title}"):
            named, schedule = named.removesuffix(f" {title}"), name
    kind = schedule.lower()
    found = one_of("sampler_name", TITLES.get(named, named), [str(c) for c in known["sampler"].choices or ()])
    every = [str(c) for c in known["schedule"].choices or ()]
    return found, "normal" if kind == "automatic" else one_of("scheduler", KINDS.get(kind, kind), every)


def _model(request: Request, name: str) -> str:
    """A model by its name, or by the title that `sd-models` gives it, with or without the suffix."""
    bare = name.partition(" [")[0]
    known = models(studio(request).places.models)
    return next((m for m in known if bare in (m, m.rpartition(".")[0])), None) or one_of("sd_model_checkpoint", bare, known)


def _bytes(name: str, given: Any) -> bytes:
    try:
        return b64decode(str(given).partition(",")[2] if str(given).startswith("data:") else given, validate=True)
    except (binascii.Error, ValueError, TypeError) as e:
        raise ValueError(f"{name}: it is not base64: {e}") from e


@router.get("/progress")
async def progress(request: Request) -> dict[str, Any]:
    """How far the oldest prompt that runs is, and its latest preview."""
    tellings = list(studio(request).tellings.values())
    share = tellings[0].progress if tellings else 0.0
    latest = tellings[0].latest if tellings else None
    state = {"skipped": False, "interrupted": False, "job": tellings[0].id if tellings else "", "job_count": len(tellings), "job_no": 0,
             "sampling_step": 0, "sampling_steps": 0}
    picture = latest and b64encode(latest[1]).decode()
    return {"progress": share, "eta_relative": 0.0, "state": state, "current_image": picture, "textinfo": None}


@router.post("/interrupt")
async def interrupt(request: Request) -> dict[str, Any]:
    """Stop what runs."""
    at = studio(request)
    if at.tellings:
        await at.cancel(list(at.tellings))
    return {}


@router.post("/png-info")
async def png_info(request: Request) -> dict[str, Any]:
    """What a picture says of how it was made."""
    content = _bytes("image", (await table(request, most=UPLOADS)).get("image"))
    if not content.startswith(embed.PNG):
        raise ValueError("image: expected a PNG in base64")
    items = embed.png_texts(content)
    told = items.get("parameters", "")
    return {"info": told, "items": items, "parameters": parameters.read(told) if told else {}}


def _options(request: Request) -> dict[str, Any]:
    found: dict[str, Any] = request.app.state.options
    return found


@router.get("/options")
async def get_options(request: Request) -> dict[str, Any]:
    """The settings that there are."""
    return _options(request)


@router.post("/options")
async def post_options(request: Request) -> dict[str, Any]:
    """`sd_model_checkpoint` chooses the model; others are taken note of."""
    given = await table(request)
    if "sd_model_checkpoint" in given:
        _options(request)["sd_model_checkpoint"] = _model(request, text(given, "sd_model_checkpoint"))
    return {}


@router.get("/sd-models")
async def sd_models(request: Request) -> list[dict[str, Any]]:
    """The models there are."""
    names = models(studio(request).places.models)
    same = {"hash": None, "sha256": None, "config": None}
    return [{"title": n, "model_name": n.rpartition(".")[0] or n, "filename": n, **same} for n in names]


@router.get("/samplers")
async def samplers() -> list[dict[str, Any]]:
    """The samplers there are, by the names that this program knows them by."""
    names = [str(c) for c in load_ops()["generate"].spec.setting["sampler"].choices or ()]
    return [{"name": SAMPLERS.get(n, n), "aliases": [n], "options": {}} for n in names]


@router.get("/schedulers")
async def schedulers() -> list[dict[str, Any]]:
    """The schedules there are."""
    names = [str(c) for c in load_ops()["generate"].spec.setting["schedule"].choices or ()]
    same = {"aliases": None, "default_rho": -1.0, "need_inner_model": False}
    return [{"name": n, "label": SCHEDULES.get(n, n), **same} for n in names]


@router.get("/loras")
async def loras(request: Request) -> list[dict[str, Any]]:
    """The LoRAs there are."""
    at = studio(request).places.models
    return [{"name": n.rpartition(".")[0], "alias": n.rpartition(".")[0], "path": e.path, "metadata": {}} for n, e in at.walk("loras")]


DEFAULTS = {"sd_model_checkpoint": MODEL, "samples_format": "png", "CLIP_stop_at_last_layers": 1}
