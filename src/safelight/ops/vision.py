"""Pictures as conditions: what a picture tower sees, told to models that were trained to be told."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from safelight.op import Knob, Work, op
from safelight.ops.control import _hash, _place, _sound
from safelight.ops.text import _each
from safelight.values import Cond, Image, Latent, Seen


def _tower(given: Mapping[str, Any]) -> str:
    place = _place("see", given["encoder"], "clip_vision")
    return _hash(place, *[f for f in sorted(place.glob("*")) if f.suffix in (".json", ".safetensors")])


@op(group="image", version=1, fingerprint=_tower)
def see(image: Image, *, encoder: Path, crop: Literal["center", "none"] = "center") -> Work[Seen]:
    """Look at pictures with CLIP, for models that take pictures as conditions.

    Args:
        encoder: the CLIP vision model: a folder, a file (also an unCLIP checkpoint, which has one in it), or its name in models/clip_vision
        crop: how a picture becomes a square: `center` takes its middle, `none` stretches all of it
    """
    import torch

    from safelight import runtime
    from safelight.computing import chosen
    from safelight.families.vision import look, tower
    from safelight.sampling.resize import grid

    place = _place("see", encoder, "clip_vision")
    file = Path((yield from _sound(place)).path) if place.is_file() else place
    device, dtype = torch.device(chosen().device or runtime.choose_device()), getattr(torch, chosen().dtype or "float32")
    return look(tower(file, device=device, dtype=dtype), grid(image), crop=crop == "center")


@op(group="text", version=1)
def unclip_cond(
    cond: Cond, seen: Seen, *, strength: Annotated[float, Knob(-10, 10, step=0.01)] = 1.0,
    noise: Annotated[float, Knob(0, 1, step=0.01)] = 0.0,
) -> Cond:
    """Let pictures be part of a prompt to an unCLIP model, or stand for the pooled text of SDXL. Several add up; others ignore them.

    Args:
        seen: from `see`, by the encoder that the model was trained with
        strength: how much each picture counts; 0 changes nothing
        noise: how far drawn pictures may go from it
    """
    import torch

    told = torch.cat([seen.embeds, torch.tensor([[strength, noise]]).expand(len(seen.embeds), -1)], dim=1)[None]  # (1, B, P + 2)

    def change(part: Cond) -> Cond:
        had = part.extras.get("pictures", told[:, :0])
        if had.shape[2] != told.shape[2]:
            raise ValueError(f"unclip_cond: seen: got vectors of {told.shape[2] - 2}, cond has some of {had.shape[2] - 2}; use one encoder")
        return dataclasses.replace(part, extras={**part.extras, "pictures": torch.cat([had, told], dim=1)})

    return _each(cond, change) if strength else cond


def _style(given: Mapping[str, Any]) -> str:
    return _hash(_place("style_cond", given["path"], "style_models"))


@op(group="text", version=1, fingerprint=_style)
def style_cond(cond: Cond, seen: Seen, *, path: Path, strength: Annotated[float, Knob(0, 10, step=0.01)] = 1.0) -> Work[Cond]:
    """Put what pictures look like after a prompt, as words: T2I-Adapter's style model (arXiv:2302.08453).

    Args:
        seen: from `see`, by the encoder that the style model was trained with (CLIP ViT-L)
        path: the style model's file, or its name in models/style_models
        strength: what the words are multiplied by
    """
    import torch

    from safelight.families.vision import style

    file = yield from _sound(_place("style_cond", path, "style_models"))
    words = style(file.path, seen.states).flatten(0, 1)[None] * strength  # (1, B N, D)
    if (wide := words.shape[2]) != cond.tokens.shape[2]:
        raise ValueError(f"style_cond: {path}: its words are {wide} wide, and the prompt's {cond.tokens.shape[2]}; it is for other models")
    return _each(cond, lambda p: dataclasses.replace(p, tokens=torch.cat([p.tokens, words.expand(len(p.tokens), -1, -1)], dim=1)))


@op(group="text", version=1)
def change_cond(cond: Cond, shown: Latent) -> Cond:
    """Show a model that changes pictures the one to change (InstructPix2Pix, arXiv:2211.09800).

    Args:
        cond: what to do, or what not to do
        shown: the picture, from encode
    """
    return _each(cond, lambda part: dataclasses.replace(part, extras={**part.extras, "original": shown.samples}))
