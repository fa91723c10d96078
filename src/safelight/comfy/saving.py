"""What ComfyUI's saving nodes write besides plain pictures: moving pictures, latents, a part of a model, an adapter."""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safelight import embed
from safelight.comfy.data import bytes8
from safelight.disk import place, put
from safelight.values import Image, Latent, Model, Value

DENOISER = "model.diffusion_model."
PARTS: Mapping[str, Mapping[str, Sequence[str]]] = {"model": {"": (DENOISER,)}, "vae": {"": ("first_stage_model.",)}, "clip": {
    "_clip_l": ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.", "text_encoders.clip_l.transformer."),
    "_clip_g": ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.", "text_encoders.clip_g.transformer."),
    "_clip_h": ("cond_stage_model.model.",), "_t5xxl": ("text_encoders.t5xxl.transformer.",)}}
"""For each part what is put behind a file's name, and how the names of its tensors begin in a checkpoint; a denoiser alone keeps them."""


def write(value: Value, form: Mapping[str, Any], stem: Path, texts: Mapping[str, str]) -> list[Path]:
    """Files named `stem` and what is needed behind it; `form` says how, see the nodes. ValueError for a part that is not there."""
    if isinstance(value, Image):
        return [_moving(value, form, stem.with_name(stem.name + form["suffix"]), texts)]
    if isinstance(value, Latent):
        return [_latent(value, stem.with_name(f"{stem.name}.latent"), texts)]
    if isinstance(value, Model):
        return _part(value, str(form["part"]), stem)
    return value.save(stem.with_name(f"{stem.name}.safetensors"))


def _moving(image: Image, form: Mapping[str, Any], path: Path, texts: Mapping[str, str]) -> Path:
    from PIL import Image as Pil

    (first, *rest), raw = map(Pil.fromarray, bytes8(image)), io.BytesIO()
    own = {"save_all": True, "append_images": rest, "duration": int(1000.0 / form["fps"]), **form}
    if path.suffix == ".webp":
        first.save(raw, "WEBP", **own, **embed.save_options(texts, jpeg=False))
        put(path, raw.getvalue())
    else:
        first.save(raw, "PNG", **own)
        put(path, embed.png_with_texts(raw.getvalue(), {k: v for k, v in texts.items() if v}))
    return path


VERSION, OURS = "latent_format_version_0", "safelight.family"
UNITS = {"sd": (0.18215, 0.0), "sdxl": (0.13025, 0.0), "kolors": (0.13025, 0.0), "sd3": (1.5305, 0.0609)}
"""Scale and shift of each family's published autoencoder: ComfyUI's latents are as that one says them, ours (z - shift) scale."""


def _latent(latent: Latent, path: Path, texts: Mapping[str, str]) -> Path:
    import torch
    from safetensors.torch import save_file

    z = latent.samples.cpu().float()
    scale, shift = _units(z, [latent.family])
    held = {"latent_tensor": (z / scale + shift).contiguous(), VERSION: torch.tensor([])}
    place(path.parent, path, partial(save_file, held, metadata={**texts, OURS: latent.family}))
    return path


def _units(z: Any, families: Sequence[str]) -> tuple[float, float]:
    """Those that all these families share; an empty latent has none."""
    found = {UNITS.get(name) for name in families} if z.count_nonzero() else {(1.0, 0.0)}
    if len(found) != 1 or not (only := found.pop()):
        raise ValueError(f"latent: got family {', '.join(families) or 'none'}; expected one of {', '.join(UNITS)}, or some of one unit")
    return only


def read(path: Path, families: Sequence[str]) -> Latent:
    """ComfyUI's file of a latent, of the family that it names, or of those given. ValueError for another file, naming it."""
    from safelight.families.weight_file import WeightFile

    file = WeightFile(path)
    if len(shape := file.shapes.get("latent_tensor", ())) != 4:
        raise ValueError(f"latent: {path}: got latent_tensor of the shape {shape}; expected the four dimensions of pictures' latents")
    told = [file.metadata.get(OURS, "")] if file.metadata.get(OURS) else families
    z = file.read("latent_tensor").float() / (1.0 if VERSION in file.shapes else UNITS["sd"][0])
    scale, shift = _units(z, told)
    return Latent((z - shift) * scale, next(iter(told), ""))


def _part(model: Model, part: str, stem: Path) -> list[Path]:
    """The whole model is written beside it first, with its patches in it, and the part is cut from that."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    out = []
    with TemporaryDirectory(dir=stem.parent) as folder:
        with safe_open(model.save(Path(folder) / "whole.safetensors")[0], "pt") as file:
            for end, begins in PARTS[part].items():
                names = {n: begin for n in file.offset_keys() for begin in begins if n.startswith(begin)}
                cut = {n if begin == DENOISER else n.removeprefix(begin): file.get_tensor(n) for n, begin in names.items()}
                out += [(cut, stem.with_name(f"{stem.name}{end}.safetensors"))] * bool(cut)
        for cut, path in out:
            place(path.parent, path, partial(save_file, cut, metadata={"format": "pt"}))
    if not out:
        raise ValueError(f"save: {model.source} has no {part} of its own in it")
    return [path for _, path in out]
