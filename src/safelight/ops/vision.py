"""Pictures as conditions: what a picture tower sees, told to models that were trained to be told."""
from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from safelight.events import Progress
from safelight.op import Knob, Work, op
from safelight.values import Cond, Image, Latent, Seen

if TYPE_CHECKING:
    from torch import Tensor


def _encoder(path: Path) -> Path:
    from safelight import folders

    return folders.place("see", "clip_vision", path).absolute()


def _tower(given: Mapping[str, Any]) -> str:
    from safelight import index
    from safelight.values import digest

    place = _encoder(given["encoder"])
    files = [place] if place.is_file() else sorted(f for f in place.iterdir() if f.suffix in (".json", ".safetensors"))
    return digest(*[index.sha256(file) for file in files])


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
    from safelight.weights.pickles import convert

    place = _encoder(encoder)
    if place.is_file():
        place = yield from convert(place)
    net = tower(place, device=torch.device(chosen().device or runtime.choose_device()), dtype=getattr(torch, chosen().dtype or "float32"))
    looked = []
    for i, picture in enumerate(grid(image).split(1), 1):
        looked.append(look(net, picture, crop=crop == "center"))
        yield Progress(step=i, total=len(image), what="pictures")
    return Seen(*map(torch.cat, zip(*looked, strict=True)))


def _extra(cond: Cond, name: str, tensor: Tensor, *, after: bool = False) -> Cond:
    """Every part of the condition with an extra, `after` the one it has where it has one."""
    import torch

    def one(part: Cond) -> Cond:
        had = [part.extras[name]] if after and name in part.extras else []
        return dataclasses.replace(part, extras={**part.extras, name: torch.cat([*had, tensor], dim=1)})

    first, *rest = map(one, cond.parts)
    return dataclasses.replace(first, others=tuple(rest))


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

    from safelight.families.vision import step_of

    if strength == 0:
        return cond
    told = torch.tensor([[strength, float(step_of(noise))]]).expand(len(seen.embeds), -1)
    width, had = seen.embeds.shape[1], [part.extras["pictures"].shape[-1] - 2 for part in cond.parts if "pictures" in part.extras]
    if any(other != width for other in had):
        raise ValueError(f"unclip_cond: seen: got vectors of {width}, and the condition has some of {had[0]}; use one encoder")
    return _extra(cond, "pictures", torch.cat([seen.embeds, told], dim=1)[None], after=True)


def _style(given: Mapping[str, Any]) -> str:
    from safelight import folders, index

    return index.sha256(folders.place("style_cond", "style_models", given["path"], whole=False))


@op(group="text", version=1, fingerprint=_style)
def style_cond(cond: Cond, seen: Seen, *, path: Path, strength: Annotated[float, Knob(0, 10, step=0.01)] = 1.0) -> Work[Cond]:
    """Put what pictures look like after a prompt, as words of its own: T2I-Adapter's style model (arXiv:2302.08453).

    Args:
        seen: from `see`, by the encoder that the style model was trained with (CLIP ViT-L)
        path: the style model's file, or its name in models/style_models
        strength: what the words are multiplied by
    """
    import torch

    from safelight import folders
    from safelight.families.vision import style
    from safelight.weights.pickles import convert

    file = yield from convert(folders.place("style_cond", "style_models", path, whole=False))
    words = style(file, seen.states).flatten(0, 1)[None] * strength  # (1, B N, D)
    if words.shape[-1] != cond.tokens.shape[-1]:
        widths = f"its words are {words.shape[-1]} wide, and the prompt's {cond.tokens.shape[-1]}"
        raise ValueError(f"style_cond: {path}: {widths}; it is for another kind of model")
    first, *rest = (dataclasses.replace(p, tokens=torch.cat([p.tokens, words.expand(len(p.tokens), -1, -1)], dim=1)) for p in cond.parts)
    return dataclasses.replace(first, others=tuple(rest))


@op(group="text", version=1)
def change_cond(cond: Cond, shown: Latent) -> Cond:
    """Show a model that changes pictures the one to change (InstructPix2Pix, arXiv:2211.09800).

    Args:
        cond: what to do, or what not to do; give it to both, and to a third one without it (see DualCFGGuider) for a guidance of its own
        shown: the picture, from encode
    """
    return _extra(cond, "original", shown.samples)
