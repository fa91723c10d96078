"""Pictures as conditions: CLIP's picture towers (arXiv:2103.00020), and what models make of what these see."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm
from transformers import CLIPVisionModelWithProjection

from safelight.families.checkpoint import assembled
from safelight.families.layouts import vision
from safelight.families.noise_levels import sigma_table
from safelight.families.weight_file import WeightFile
from safelight.values import Seen

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on."""

BLOCK = {"self_attn.in_proj_": "attn.in_proj_", "self_attn.out_proj.": "attn.out_proj.", "linear1.": "mlp.c_fc.", "linear2.": "mlp.c_proj.",
         "norm1.": "ln_1.", "norm2.": "ln_2."}
"""torch's names of a transformer layer's tensors, and the style model's."""


def tower(place: Path, *, device: torch.device, dtype: torch.dtype) -> Any:
    """The picture tower in a file, or in a folder with config.json. ValueError when there is none, or none whose shape is known."""
    cls = CLIPVisionModelWithProjection
    if (place / "config.json").is_file():
        return cls.from_pretrained(place, use_safetensors=True, local_files_only=True, dtype=dtype).to(device).eval()
    if not place.is_file():
        raise ValueError(f"encoder: got {place}, expected a CLIP vision model, as a file or a folder with config.json")
    file = WeightFile(place)
    if (found := vision(file)) is None:
        raise ValueError(f"encoder: {place} is no CLIP vision model: it has {file.summary()}")
    return assembled(file, found, cls, what="picture encoder", device=device, dtype=dtype)


@torch.no_grad()
def look(net: Any, pixels: Tensor, *, crop: bool) -> Seen:
    """What a tower sees of pixels (B, 3, H, W) in [0, 1], made a square of its own size: the middle, or without `crop` all of it. As
    ComfyUI, and not in Pillow's arithmetic as transformers: bicubic with antialiasing, rounded to bytes."""
    side, (h, w) = int(net.config.image_size), pixels.shape[-2:]
    if (h, w) != (side, side):
        whole = [round(n * (side / min(h, w))) for n in (h, w)] if crop else [side, side]
        pixels = interpolate(pixels, whole, mode="bicubic", antialias=True)
        top, left = (whole[0] - side) // 2, (whole[1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    mean, spread = (torch.tensor(t).view(3, 1, 1) for t in (MEAN, SPREAD))
    x = ((pixels * 255).clamp(0, 255).round() / 255 - mean) / spread
    out = [net(pixel_values=one.to(net.device, net.dtype), output_hidden_states=True) for one in x.split(1)]
    found = ([o.image_embeds for o in out], [o.last_hidden_state for o in out], [o.hidden_states[-2] for o in out])
    return Seen(*(torch.cat(tensors).float().cpu() for tensors in found))


def label(pictures: Tensor, seed: int, *, mixed: float) -> Tensor:
    """What an unCLIP model is told (arXiv:2204.06125): pictures with noise, beside how much, (1, 2 P).

    `pictures` (N, P + 2) is for each its embedding, how much it counts, and its share of noise. Every one gets the seed's own noise, as in
    ComfyUI; of several the sum is taken, and noised again by the share `mixed`.
    """
    table, sources = sigma_table({"beta_schedule": "squaredcos_cap_v2"}), [torch.Generator().manual_seed(seed) for _ in pictures]

    def noised(x: Tensor, share: float, source: torch.Generator) -> Tensor:
        step = round((len(table) - 1) * share)
        kept = (1 / (table[step] ** 2 + 1)).sqrt()
        level = get_timestep_embedding(torch.tensor([step]), x.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([kept.float() * x + (kept * table[step]).float() * torch.randn(x.shape, generator=source), level], dim=1)

    said = [noised(one[None, :-2], float(one[-1]), source) * one[-2] for one, source in zip(pictures, sources, strict=True)]
    whole = torch.stack(said).sum(0)
    return noised(whole[:, : pictures.shape[1] - 2], mixed, sources[-1]) if len(said) > 1 else whole


@torch.no_grad()
def style(path: str, states: Tensor) -> Tensor:
    """Words (B, N, D) of what a tower's last layer (B, L, W) has, by T2I-Adapter's style model (arXiv:2302.08453): what stands at places
    of its own after some layers. ValueError when the file is none, or another tower's."""
    held = {name: t.float() for name, t in load_file(path).items()}
    own = held.get("style_embedding")  # (1, N, W)
    if own is None or own.shape[-1] != states.shape[-1]:
        has = f"it has {WeightFile(path).summary()}; expected style_embedding" if own is None else f"it reads vectors of {own.shape[-1]}"
        raise ValueError(f"style model {path}: {has}, for an encoder with vectors of {states.shape[-1]}; take T2I-Adapter's, and its CLIP")
    x, width = torch.cat([states, own.expand(len(states), -1, -1)], dim=1), own.shape[-1]
    x = layer_norm(x, [width], held["ln_pre.weight"], held["ln_pre.bias"])
    inner, soft = len(held["transformer_layes.0.mlp.c_fc.bias"]), lambda t: t * torch.sigmoid(1.702 * t)
    block = nn.TransformerEncoderLayer(width, 8, inner, 0.0, soft, batch_first=True, norm_first=True).eval()  # heads leave no trace
    for i in range(sum(name.endswith("attn.in_proj_weight") for name in held)):
        ends = [(ours + end, theirs + end) for ours, theirs in BLOCK.items() for end in ("weight", "bias")]
        block.load_state_dict({ours: held[f"transformer_layes.{i}.{theirs}"] for ours, theirs in ends})
        x = block(x)
    return layer_norm(x[:, -own.shape[1] :], [width], held["ln_post.weight"], held["ln_post.bias"]) @ held["proj"]
