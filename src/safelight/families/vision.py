"""Pictures as conditions: CLIP's picture towers (arXiv:2103.00020), and what models make of that which these saw.

A tower is read as transformers' CLIPVisionModelWithProjection, a folder or a file, alone or beside a text tower, or as OpenCLIP's
`visual.*`, also inside an unCLIP checkpoint. Style models are T2I-Adapter's (arXiv:2302.08453) and the two layers of FLUX's Redux.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate, layer_norm, linear, silu
from transformers import CLIPVisionModelWithProjection

from safelight.families.checkpoint import assembled
from safelight.families.layouts import vision
from safelight.families.noise_levels import sigma_table
from safelight.families.weight_file import WeightFile

MEAN, SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on."""

STEPS = 1000
"""Levels of noise that an unCLIP model knows for what a tower saw."""

HEADS = 8
"""Of T2I-Adapter's style model; shapes do not tell."""

BLOCK = {"self_attn.in_proj_": "attn.in_proj_", "self_attn.out_proj.": "attn.out_proj.", "linear1.": "mlp.c_fc.", "linear2.": "mlp.c_proj.",
         "norm1.": "ln_1.", "norm2.": "ln_2."}
"""torch's names of a transformer layer's tensors, and the style model's."""


class Looked(NamedTuple):
    """What a tower gave for B pictures, float32 on the CPU: `embeds` (B, P), its last layer (B, L, D) and the one before."""

    embeds: Tensor
    states: Tensor
    before: Tensor


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
def look(net: Any, pixels: Tensor, *, crop: bool) -> Looked:
    """What a tower sees of pixels (B, 3, H, W) in [0, 1], made a square of its own size: the middle, or without `crop` all of it. As
    ComfyUI, and not in Pillow's arithmetic as transformers: bicubic with antialiasing, rounded to bytes."""
    side, (h, w) = int(net.config.image_size), pixels.shape[-2:]
    if (h, w) != (side, side):
        whole = [round(n * (side / min(h, w))) for n in (h, w)] if crop else [side, side]
        pixels = interpolate(pixels, whole, mode="bicubic", antialias=True)
        top, left = (whole[0] - side) // 2, (whole[1] - side) // 2
        pixels = pixels[..., top : top + side, left : left + side]
    x = (pixels * 255).clamp(0, 255).round() / 255
    x = (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(SPREAD).view(3, 1, 1)
    out = net(pixel_values=x.to(net.device, net.dtype), output_hidden_states=True)
    return Looked(*(t.float().cpu() for t in (out.image_embeds, out.last_hidden_state, out.hidden_states[-2])))


def label(pictures: Tensor, seed: int, *, mixed: float) -> Tensor:
    """What an unCLIP model is told (arXiv:2204.06125): the pictures with noise, beside how much, (1, 2 D).

    `pictures` (N, D + 2) is for each what a tower saw, how much it counts, and the step of its noise. Every one gets the seed's own noise,
    as ComfyUI; of several the sum is taken, and noised again up to the share `mixed`.
    """
    table, source = sigma_table({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": STEPS}), torch.Generator()

    def noised(x: Tensor, step: int) -> Tensor:
        kept = (1 / (table[step] ** 2 + 1)).sqrt()
        level = get_timestep_embedding(torch.tensor([step]), x.shape[1], flip_sin_to_cos=True, downscale_freq_shift=0)
        return torch.cat([kept.float() * x + (kept * table[step]).float() * torch.randn(x.shape, generator=source), level], dim=1)

    said = []
    for one in pictures:
        source.manual_seed(seed)
        said.append(noised(one[None, :-2], int(one[-1])) * one[-2])
    whole = torch.stack(said).sum(0)
    return noised(whole[:, : pictures.shape[1] - 2], step_of(mixed)) if len(said) > 1 else whole


def step_of(noise: float) -> int:
    """The step of a share of noise in [0, 1]."""
    return round((STEPS - 1) * noise)


def style(path: Path, states: Tensor) -> Tensor:
    """Words (B, N, D) of what a tower saw, its last layer (B, L, W). ValueError when the file is no style model, or another tower's."""
    held = {name: t.float() for name, t in load_file(path).items()}
    redux = "redux_down.weight" in held
    if not redux and "style_embedding" not in held:
        raise ValueError(f"style {path}: it has {WeightFile(path).summary()}; expected style_embedding (T2I-Adapter) or redux_* (Redux)")
    width = held["redux_up.weight" if redux else "style_embedding"].shape[-1]
    if width != states.shape[-1]:
        raise ValueError(f"style {path}: it reads vectors of {width}, the encoder's are of {states.shape[-1]}; use the encoder it is for")
    with torch.no_grad():
        if redux:
            up = silu(linear(states, held["redux_up.weight"], held["redux_up.bias"]))
            return linear(up, held["redux_down.weight"], held["redux_down.bias"])
        return _queried(held, states)


def _queried(held: dict[str, Tensor], states: Tensor) -> Tensor:
    """T2I-Adapter's: what stands at its own places after some layers."""
    own = held["style_embedding"]  # (1, N, W)
    x = torch.cat([states, own.expand(len(states), -1, -1)], dim=1)
    x = layer_norm(x, own.shape[-1:], held["ln_pre.weight"], held["ln_pre.bias"])
    block = nn.TransformerEncoderLayer(
        own.shape[-1], HEADS, len(held["transformer_layes.0.mlp.c_fc.bias"]), 0.0, lambda t: t * torch.sigmoid(1.702 * t), batch_first=True,
        norm_first=True,
    ).eval()
    for i in range(sum(name.endswith("attn.in_proj_weight") for name in held)):
        names = {f"{ours}{end}": f"transformer_layes.{i}.{theirs}{end}" for ours, theirs in BLOCK.items() for end in ("weight", "bias")}
        block.load_state_dict({ours: held[theirs] for ours, theirs in names.items()})
        x = block(x)
    return layer_norm(x[:, -own.shape[1] :], own.shape[-1:], held["ln_post.weight"], held["ln_post.bias"]) @ held["proj"]
