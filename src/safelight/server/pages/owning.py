"""Models: what lies in the models folders, and where to put more."""
from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.folders import OWN
from safelight.folders import current as folders
from safelight.index import home
from safelight.server.pages.shell import render

router = APIRouter()

KINDS = (
    ("checkpoints", "Models"), ("diffusers", "Models in folders"), ("loras", "LoRAs"), ("controlnet", "ControlNets"),
    ("vae", "Autoencoders"),
    ("embeddings", "Embeddings"), ("text_encoders", "Text encoders"), ("diffusion_models", "Denoisers"),
)


@router.get("/studio/models")
async def page(request: Request) -> Response:
    """The page; `q` narrows it."""
    return render(request, "models.html", **await asyncio.to_thread(_listed, request.query_params.get("q", "")))


def _listed(wanted: str) -> dict[str, Any]:
    found = folders()
    shelves: list[dict[str, Any]] = []
    for kind, heading in KINDS:
        rows = []
        for name, entry in found.walk(kind):
            if wanted.lower() in name.lower():
                seen = entry.stat()
                rows.append({"name": name, "size": 0 if entry.is_dir() else seen.st_size, "when": seen.st_mtime})
        places = [str(place.path) for place in found.of(kind) if not place.path.is_relative_to(OWN)] or [str(home() / "models" / kind)]
        shelves.append({"kind": kind, "heading": heading, "rows": sorted(rows, key=lambda r: str(r["name"]).lower()), "places": places})
    return {"shelves": shelves, "q": wanted, "some": any(s["rows"] for s in shelves)}
