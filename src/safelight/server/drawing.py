"""What OpenAI's and AUTOMATIC1111's routes have in common: a request becomes a graph of our `generate`, queued like any other prompt."""
from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from safelight.folders import hub_names
from safelight.server.answering import studio
from safelight.server.files import keep_upload
from safelight.server.pictures import opened
from safelight.server.studio import Studio

MODEL = "mini"
SIZE = re.compile(r"^(\d{1,5})x(\d{1,5})$")


def models(at: Studio) -> list[str]:
    """The names that a request may have as its model."""
    return [MODEL, *at.places.models.names("checkpoints"), *at.places.models.names("diffusers"), *hub_names()]


def seeds(first: int, count: int) -> list[int]:
    """One after another from the first; from a drawn one when it is negative."""
    start = first if first >= 0 else secrets.randbelow(2**32)
    return [(start + i) % 2**64 for i in range(count)]


async def kept(request: Request, content: bytes) -> str:
    """The path of a picture that came with a request, checked and kept among the uploads."""
    told, _ = await opened("check", content)
    name = f"request.{str(told['format']).lower()}"
    return str(keep_upload(studio(request).shelves.input, name, content, subfolder="requests"))


async def graph(request: Request, inputs: Mapping[str, Any], *, picture: bytes, mask: bytes, channel: str = "grey") -> dict[str, Any]:
    """`generate` with these inputs, what is None left out; drawing starts from the picture, where the mask says."""
    made: dict[str, Any] = {"draw": {"class_type": "generate", "inputs": {k: v for k, v in inputs.items() if v is not None}}}
    for name, content, op in (("image", picture, "load_image"), ("mask", mask, "load_mask")):
        if content:
            more = {"channel": channel} if name == "mask" else {"raw": True}
            made[name] = {"class_type": op, "inputs": {"path": await kept(request, content), **more}}
            made["draw"]["inputs"][name] = [name, 0]
    return made


def size(text: str) -> tuple[int, int]:
    """Width and height; 0 x 0, the model's own, for `auto`. ValueError for another text."""
    found = SIZE.match(text)
    if text != "auto" and not found:
        raise ValueError(f"size: got {text!r}, expected WIDTHxHEIGHT, such as 512x512, or auto")
    return (int(found[1]), int(found[2])) if found else (0, 0)


def one_of(name: str, value: str, known: Sequence[str]) -> str:
    """The value. ValueError when it is not known."""
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
    return value
