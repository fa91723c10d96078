"""A folder of small models, a picture with a hole, and the prompts that bench/parity sends to both programs."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil

from bench.parity.compare import filled
from safelight.comfy import Places
from safelight.folders import roots
from tests import checkpoints

ROOT = Path(__file__).parents[2] / "bench" / "parity" / "prompts"
SIDE, STEPS = 64, 3
NAMES: dict[str, Any] = {
    "checkpoint": "tiny.safetensors", "inpaint": "inpaint.safetensors", "lora": "one.safetensors", "lora2": "two.safetensors",
    "vae": "other.safetensors", "embedding": "mood", "controlnet": "edges.safetensors", "picture": "hole.png", "side": SIDE,
    "half": SIDE, "quarter": SIDE // 4,
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def shipped(name: str, **names: Any) -> dict[str, Any]:
    """A prompt of bench/parity with this folder's names, in few steps."""
    found: dict[str, Any] = filled(json.loads((ROOT / f"{name}.json").read_text("utf-8")), {**NAMES, **names})
    for entry in found.values():
        if entry["class_type"] == "KSampler":
            entry["inputs"]["steps"] = STEPS
    return found


def places(root: Path) -> Places:
    """Checkpoints of SD 1.x's layout, an inpainting one, LoRAs, a VAE, an embedding, a ControlNet, and the picture."""
    models = root / "models"
    layout = _by_eight(checkpoints.sd1(words=checkpoints.WORDS))
    nets = checkpoints.networks(layout)
    checkpoints.checkpoint(models / "checkpoints" / NAMES["checkpoint"], layout, nets)
    painting = _by_eight(checkpoints.sd1("StableDiffusionInpaintPipeline", words=checkpoints.WORDS, in_channels=9))
    checkpoints.checkpoint(models / "checkpoints" / NAMES["inpaint"], painting, checkpoints.networks(painting, seed=1))
    other = checkpoints.networks(layout, seed=2)
    checkpoints.save(models / "vae" / NAMES["vae"], checkpoints.vae_names(other["vae"]))
    source = torch.Generator().manual_seed(0)
    for name in (NAMES["lora"], NAMES["lora2"]):
        checkpoints.save(models / "loras" / name, _lora(nets, source))
    checkpoints.save(models / "embeddings" / "mood.safetensors", {"emb_params": torch.randn(2, 32, generator=source)})
    checkpoints.save(models / "controlnet" / NAMES["controlnet"], _control(nets["unet"], source))
    _picture(root / "input" / NAMES["picture"])
    return Places(roots(models), root / "input", root / "out")


def _by_eight(layout: checkpoints.Layout) -> checkpoints.Layout:
    """With a VAE of eight pixels a cell, as the real ones: few cells, so fast."""
    return replace(layout, vae=checkpoints._vae((32,) * 4, 0.18215))


def _lora(nets: dict[str, Any], source: torch.Generator) -> dict[str, torch.Tensor]:
    out = {}
    for prefix, net in (("lora_unet", nets["unet"]), ("lora_te", nets["text_encoder"])):
        for path, layer in net.named_modules():
            if isinstance(layer, torch.nn.Linear) and path.endswith(("to_q", "to_v", "q_proj", "fc1")):
                inner = path if prefix == "lora_unet" or path.startswith("text_model.") else f"text_model.{path}"
                name = f"{prefix}_{inner.replace('.', '_')}"
                out[f"{name}.lora_down.weight"] = torch.randn(2, layer.in_features, generator=source) / 4
                out[f"{name}.lora_up.weight"] = torch.randn(layer.out_features, 2, generator=source) / 4
                out[f"{name}.alpha"] = torch.tensor(2.0)
    return out


def _control(unet: Any, source: torch.Generator) -> dict[str, torch.Tensor]:
    from diffusers import ControlNetModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    return {n: t if t.count_nonzero() else torch.randn(t.shape, generator=source) / 8 for n, t in net.state_dict().items()}


def _picture(path: Path) -> None:
    path.parent.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 4), np.uint8)
    pixels[..., 3] = 255
    pixels[16:40, 8:48, 3] = 0
    Pil.fromarray(pixels).save(path)
