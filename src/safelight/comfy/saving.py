"""What ComfyUI's saving nodes write besides plain pictures: moving pictures, a part of a model, an adapter."""
from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safelight import embed
from safelight.disk import place, put
from safelight.values import Image, Model, Value

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
    if isinstance(value, Model):
        return _part(value, str(form["part"]), stem)
    return value.save(stem.with_name(f"{stem.name}.safetensors"))


def _moving(image: Image, form: Mapping[str, Any], path: Path, texts: Mapping[str, str]) -> Path:
    from PIL import Image as Pil

    (first, *rest), raw = map(Pil.fromarray, image.bytes8()), io.BytesIO()
    own = {"save_all": True, "append_images": rest, "duration": int(1000.0 / form["fps"]), **form}
    if path.suffix == ".webp":
        first.save(raw, "WEBP", **own, **embed.save_options(texts, jpeg=False))
        put(path, raw.getvalue())
    else:
        first.save(raw, "PNG", **own)
        put(path, embed.png_with_texts(raw.getvalue(), {k: v for k, v in texts.items() if v}))
    return path


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
