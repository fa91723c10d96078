"""What is saved besides plain pictures and whole models."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safelight.comfy.building import Building, Difference
from safelight.comfy.data import SAYS
from safelight.comfy.node import Given, Input, choice, integer, node, real, socket, switch, text
from safelight.comfy.nodes.image import chosen
from safelight.comfy.nodes.merging import laid
from safelight.comfy.saving import read
from safelight.op import op
from safelight.values import Blob, Latent, Model

METHODS = {"default": 4, "fastest": 0, "slowest": 6}
KEPT = Input("latent", "COMBO", options=lambda places: sorted(p.name for p in places.input.glob("*.latent")), loose=True)
MOVING = [*socket("IMAGE", "images"), text("filename_prefix", "ComfyUI"), real("fps", 6.0, 0.01, 1000)]


@node("SaveAnimatedWEBP", "image/animation",
      [*MOVING, switch("lossless", True), integer("quality", 80, 0, 100), choice("method", tuple(METHODS))], ends=True)
def webp(b: Building, n: Given) -> Any:
    """Pictures one after the other."""
    form = {"suffix": ".webp", "fps": n["fps"], "lossless": n["lossless"], "quality": n["quality"], "method": METHODS[n["method"]]}
    b.save(n["images"], n["filename_prefix"], form=form)


@node("SaveAnimatedPNG", "image/animation", [*MOVING, integer("compress_level", 4, 0, 9)], ends=True)
def png(b: Building, n: Given) -> Any:
    """Pictures one after the other."""
    b.save(n["images"], n["filename_prefix"], form={"suffix": ".png", "fps": n["fps"], "compress_level": n["compress_level"]})


for _kind, _name, _prefix in (("model", "ModelSave", "diffusion_models/ComfyUI"), ("vae", "VAESave", "vae/ComfyUI_vae"),
                              ("clip", "CLIPSave", "clip/ComfyUI")):
    def _save(b: Building, n: Given, kind: str = _kind) -> Any:
        """One part of a model, with the LoRAs and merged weights in it."""
        b.save(n["clip"].model if kind == "clip" else n[kind], n["filename_prefix"], form={"part": kind})

    node(_name, "advanced/model_merging", [*socket(_kind.upper()), text("filename_prefix", _prefix)], ends=True)(_save)


@node("LoraSave", "_for_testing",
      [text("filename_prefix", "loras/ComfyUI_extracted_lora"), integer("rank", 8, 1, 4096),
       choice("lora_type", ("standard", "full_diff")), switch("bias_diff", True), *socket("MODEL", "model_diff", optional=True),
       *socket("CLIP", "text_encoder_diff", optional=True)], ends=True, title="Extract and Save Lora", flags=["experimental"])
def lora(b: Building, n: Given) -> Any:
    """The difference of two models as a LoRA; biases stay as they are."""
    if n["lora_type"] != "standard":
        raise ValueError(f"lora_type: got {n['lora_type']!r}; only 'standard' is here, and ModelSave for the whole")
    found = [(n[k], what) for k, what in (("model_diff", "network"), ("text_encoder_diff", "text")) if n.get(k) is not None]
    if not found or not all(isinstance(moved, Difference) for moved, _ in found):
        raise ValueError("model_diff, text_encoder_diff: expected a difference, of ModelMergeSubtract or CLIPMergeSubtract")
    base = tuned = found[0][0].less
    for moved, what in found:
        tuned = laid(b, tuned, moved.more, moved.times, what, part=what)
    b.save(b.add("extract_lora", model=base, tuned=tuned, rank=n["rank"]), n["filename_prefix"], form={"lora": True})


@op(group="latent", registry=SAYS, version=1, fingerprint=lambda given: Blob.of(given["path"]).sha256)
def read_latent(models: Sequence[Model], *, path: Path) -> Latent:
    """A latent from ComfyUI's file; where that does not name its family, it is one of the models'."""
    return read(path, list(dict.fromkeys(m.family for m in models)))


@node("SaveLatent", "_for_testing", [*socket("LATENT", "samples"), text("filename_prefix", "latents/ComfyUI")], ends=True)
def latent(b: Building, n: Given) -> Any:
    """Keep latents, without their masks."""
    b.save(n["samples"], n["filename_prefix"], form={"latent": True})


@node("LoadLatent", "_for_testing", [KEPT], "LATENT")
def load_latent(b: Building, n: Given) -> Any:
    """Latents that were kept; a file of ComfyUI's is taken for one of the prompt's models."""
    return b.add("read_latent", models=list(dict.fromkeys(map(b.model, b.models))), path=str(chosen(b.places, n["latent"], "latent")))
