"""Pictures as conditions: unCLIP, style models, networks that change pictures."""
from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from safelight.comfy.building import Building
from safelight.comfy.node import Given, choice, files, node, real, socket
from safelight.comfy.nodes.conditioning import SIDES, TWO
from safelight.comfy.nodes.loaders import checkpoint

log = logging.getLogger(__name__)
COND, SEEN, STRENGTH = socket("CONDITIONING"), socket("CLIP_VISION_OUTPUT"), (1.0, 0, 10, 0.001)

node("CLIPVisionLoader", "loaders", [choice("clip_name", files("clip_vision"))], "CLIP_VISION", title="Load CLIP Vision")(
    lambda b, n: b.places.find("clip_vision", n["clip_name"]))
node("StyleModelLoader", "loaders", [choice("style_model_name", files("style_models"))], "STYLE_MODEL", title="Load Style Model")(
    lambda b, n: b.places.find("style_models", n["style_model_name"]))
node("unCLIPCheckpointLoader", "loaders", [choice("ckpt_name", files("checkpoints"))], "MODEL", "CLIP", "VAE", "CLIP_VISION",
     parts={"name": "ckpt_name"})(lambda b, n: (*checkpoint(b, n), b.places.find("checkpoints", n["ckpt_name"])))
node("CLIPVisionEncode", "conditioning", [*socket("CLIP_VISION"), *socket("IMAGE"), choice("crop", ("center", "none"))],
     "CLIP_VISION_OUTPUT", title="CLIP Vision Encode")(
    lambda b, n: b.add("see", image=n["image"], encoder=n["clip_vision"], crop=n["crop"]))


@node("unCLIPConditioning", "conditioning", [*COND, *SEEN, real("strength", 1.0, -10, 10), real("noise_augmentation", 0.0, 0, 1)],
      "CONDITIONING")
def unclip(b: Building, n: Given) -> Any:
    """A picture beside a prompt."""
    words, told = n["conditioning"], {"strength": n["strength"], "noise": n["noise_augmentation"]}
    return replace(words, cond=b.add("unclip_cond", cond=words.cond, seen=n["clip_vision_output"], **told))


@node("StyleModelApply", "conditioning/style_model",
      [*COND, *socket("STYLE_MODEL"), *SEEN, real("strength", *STRENGTH), choice("strength_type", ("multiply", "attn_bias"))],
      "CONDITIONING", title="Apply Style Model")
def style(b: Building, n: Given) -> Any:
    """A picture's style after a prompt. A bias of the attention is a matter of FLUX: of the networks here ComfyUI's heed none either."""
    words, strength = n["conditioning"], n["strength"] if n["strength_type"] == "multiply" else 1.0
    if strength != n["strength"]:
        log.warning("node %s: strength_type attn_bias does nothing here, as in ComfyUI with this kind of model; take multiply", b.node)
    told = {"seen": n["clip_vision_output"], "path": n["style_model"], "strength": strength}
    return replace(words, cond=b.add("style_cond", cond=words.cond, **told))


@node("InstructPixToPixConditioning", "conditioning/instructpix2pix", [*TWO, *socket("VAE"), *socket("IMAGE", "pixels")],
      *SIDES, "latent:LATENT")
def change(b: Building, n: Given) -> Any:
    """What a network that changes pictures is shown, and an empty latent of its size."""
    shown = b.add("encode", part="shown", model=n["vae"], image=n["pixels"])
    sides = [replace(n[side], cond=b.add("change_cond", part=side, cond=n[side].cond, shown=shown)) for side in ("positive", "negative")]
    return *sides, b.add("mix_latents", latent=shown, other=shown, ratio=1.0, scale=0.0)
