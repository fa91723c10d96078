"""How the networks of U-Net families lie in single files: their tensors' names there, and their configurations, read from shapes.

Two sets of names are known for each: those of the original repositories (LDM, SGM, OpenCLIP) and those of diffusers and transformers.
"""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, takewhile
from typing import Any, NamedTuple

from safelight.families.weight_file import Shapes, WeightFile

UNET = ("model.diffusion_model.", "diffusion_model.", "unet.", "")
VAE = ("first_stage_model.", "vae.", "")
UNET_HEADS = frozenset({
    "input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out", "conv_in", "down_blocks", "mid_block", "up_blocks",
    "time_embedding", "add_embedding", "class_embedding", "conv_norm_out", "conv_out", "encoder_hid_proj",
})
"""First words of a U-Net's names; in a file without a prefix, other words are notes."""

LATENT_UNITS = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
"""What a VAE's weights do not tell: it is a matter of the model that was trained on its latents."""


class Cut(NamedTuple):
    """Where a network's tensor comes from: a tensor of the file, all of it or the i-th of n equal pieces along its first axis; a matrix
    turned, or its two halves exchanged."""

    name: str
    piece: int = 0
    of: int = 1
    turned: bool = False
    swapped: bool = False


@dataclass(frozen=True)
class Layout:
    """One part in a file: its configuration in diffusers' or transformers' terms, and its tensors by the network's names.

    Without tensors it says how to read a part that is given from elsewhere (units of latents, the text encoder's activation).
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, Cut] = field(default_factory=dict)

    def told(self, **more: Any) -> Layout:
        """The same with more in its configuration."""
        return replace(self, config={**self.config, **more})


def _count(shapes: Shapes, name: str) -> int:
    """How many i there are, from 0, for which `name` with i in it is a name."""
    return sum(1 for _ in takewhile(lambda i: name.format(i) in shapes, count()))


# The U-Net (arXiv:2112.10752; SDXL arXiv:2307.01952).


def unet(file: WeightFile, prefixes: Sequence[str] = UNET) -> Layout | None:
    """The U-Net in a file, or None. ValueError when its blocks are none that a U-Net here can have."""
    for prefix in prefixes:
        found = {n: s for n, s in file.under(prefix).items() if prefix or n.partition(".")[0] in UNET_HEADS}
        if "input_blocks.0.0.weight" in found and "time_embed.0.weight" in found:
            names = _unet_names(found)
        elif "down_blocks.0.resnets.0.conv1.weight" in found and "time_embedding.linear_1.weight" in found:
            names = {n: n for n in found}
        else:
            continue
        config = unet_config({new: found[old] for new, old in names.items()}, file.path)
        return Layout(config, {new: Cut(prefix + old) for new, old in names.items()})
    return None


def _unet_names(found: Shapes) -> dict[str, str]:
    """diffusers' name -> LDM's, by diffusers' own converter, which moves values about without looking at them."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    downs = [i for i in range(1, 64) if f"input_blocks.{i}.0.op.weight" in found]
    per_block = downs[0] - 1 if downs else sum(f"input_blocks.{i}.0.in_layers.2.weight" in found for i in range(1, 64))
    # Both SDXL and SD 2.x's unCLIP have it; the latter attends at its first level.
    pictured, told = "input_blocks.1.1.norm.weight" in found, "label_emb.0.0.weight" in found
    config: dict[str, Any] = {"layers_per_block": per_block}
    config |= {"class_embed_type": "projection"} if pictured and told else {"addition_embed_type": "text_time" if told else None}
    renamed: dict[str, str] = convert_ldm_unet_checkpoint({f"model.diffusion_model.{n}": n for n in found}, config)
    kept = set(renamed.values())
    return renamed | {n: n for n in found if n not in kept}  # what is no U-Net's stays, to be named when it is in the way


def unet_config(shapes: Shapes, path: str) -> dict[str, Any]:
    """UNet2DConditionModel's configuration from shapes by its own names.

    Heads leave no trace in shapes: SD 1.x (convolutions around its transformers) has eight, everything later heads of 64 channels.
    """
    levels = range(_count(shapes, "down_blocks.{}.resnets.0.conv1.weight"))
    widths = [shapes[f"down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels]
    layers = _count(shapes, "down_blocks.0.resnets.{}.conv1.weight")
    down = [_depths(shapes, f"down_blocks.{i}", layers) for i in levels]
    up = [_depths(shapes, f"up_blocks.{i}", layers + 1) for i in levels]
    mid = _depths(shapes, "mid_block", 1)[0]
    first = next((n for n in shapes if n.endswith("attentions.0.proj_in.weight")), None)
    cross = next((s[1] for n, s in shapes.items() if n.endswith("transformer_blocks.0.attn2.to_k.weight")), None)
    if first is None or cross is None:
        raise ValueError(f"{path}: a U-Net without attention to text; expected one of a text-to-image model")
    linear = len(shapes[first]) == 2
    config: dict[str, Any] = {
        "in_channels": shapes["conv_in.weight"][1], "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": widths, "layers_per_block": layers, "cross_attention_dim": cross, "norm_num_groups": 32,
        "down_block_types": ["CrossAttnDownBlock2D" if any(d) else "DownBlock2D" for d in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(d) else "UpBlock2D" for d in up],
        "attention_head_dim": [max(w // 64, 1) for w in widths] if linear else 8,
        "use_linear_projection": linear, "upcast_attention": cross == 1024,
    }
    return config | _depth_config(down, up, mid) | _embeddings(shapes)


def _depths(shapes: Shapes, block: str, layers: int) -> list[int]:
    return [_count(shapes, f"{block}.attentions.{j}.transformer_blocks.{{}}.norm1.weight") for j in range(layers)]


def _depth_config(down: list[list[int]], up: list[list[int]], mid: int) -> dict[str, Any]:
    """How many transformer layers each attention has; distilled SDXL models have other numbers in every one."""
    even = [max(d) or mid or 1 for d in down]
    plain = all(len(set(d)) == 1 for d in (*down, *up)) and [max(d) for d in up] == [max(d) for d in reversed(down)]
    if plain and even[-1] == (mid or even[-1]):
        told: dict[str, Any] = {"transformer_layers_per_block": even}
    else:
        told = {f"{way}transformer_layers_per_block": [d if any(d) else 1 for d in side] for way, side in (("", down), ("reverse_", up))}
    return told | ({} if mid else {"mid_block_type": "UNetMidBlock2D"})


def _embeddings(shapes: Shapes) -> dict[str, Any]:
    """What it is told besides: size and pooled text (SDXL), pictures (unCLIP, arXiv:2204.06125), the scale of distilled guidance
    (arXiv:2310.04378), ChatGLM's projection."""
    told: dict[str, Any] = {}
    if "add_embedding.linear_1.weight" in shapes:
        told |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        told["projection_class_embeddings_input_dim"] = shapes["add_embedding.linear_1.weight"][1]
    if "class_embedding.linear_1.weight" in shapes:
        width = shapes["class_embedding.linear_1.weight"][1]
        told |= {"class_embed_type": "projection", "projection_class_embeddings_input_dim": width}
    if "time_embedding.cond_proj.weight" in shapes:
        told["time_cond_proj_dim"] = shapes["time_embedding.cond_proj.weight"][1]
    if "encoder_hid_proj.weight" in shapes:
        told |= {"encoder_hid_dim_type": "text_proj", "encoder_hid_dim": shapes["encoder_hid_proj.weight"][1]}
    return told


# The autoencoder.

_VAE_RULES = (
    (r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
    (r"(attentions\.0)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.0)\.(?:q|query)\.", r"\1.to_q."),
    (r"(attentions\.0)\.(?:k|key)\.", r"\1.to_k."),
    (r"(attentions\.0)\.(?:v|value)\.", r"\1.to_v."),
    (r"(attentions\.0)\.(?:proj_out|proj_attn)\.", r"\1.to_out.0."),
)
_VAE_HEADS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")


def vae(file: WeightFile, prefixes: Sequence[str] = VAE) -> Layout | None:
    """The autoencoder in a file, or None; its units of latents are the family's to say."""
    for prefix in prefixes:
        found = {n: s for n, s in file.under(prefix).items() if n.startswith(_VAE_HEADS)}
        if "decoder.conv_in.weight" not in found or "encoder.conv_in.weight" not in found:
            continue
        levels = _count(found, "decoder.up.{}.block.0.conv1.weight")
        names = {_vae_name(n, levels): n for n in found}
        config = vae_config({new: found[old] for new, old in names.items()})
        return Layout(config, {new: Cut(prefix + old) for new, old in names.items()})
    return None


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up_blocks.{levels - 1 - int(m[1])}.", name)
    for old, new in _VAE_RULES:
        name = re.sub(old, new, name)
    return name


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """AutoencoderKL's configuration from shapes by its own names."""
    levels = range(_count(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight"))
    return {
        "in_channels": shapes["encoder.conv_in.weight"][1], "out_channels": shapes["decoder.conv_out.weight"][0],
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "block_out_channels": [shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.weight"][0] for i in levels],
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * len(levels), "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "norm_num_groups": 32, "mid_block_add_attention": "encoder.mid_block.attentions.0.to_q.weight" in shapes,
        "use_quant_conv": "quant_conv.weight" in shapes, "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


# Text encoders (CLIP arXiv:2103.00020; OpenCLIP).

_NOT_TEXT = re.compile(
    r"^(visual|vision_model|visual_projection|logit_scale|logit_bias|attn_mask|vocab_size|context_length|input_resolution)\b"
)


def clip(file: WeightFile, prefix: str) -> Layout | None:
    """A CLIP text encoder under a prefix by transformers' names, or None."""
    under = (n for n in file.under(prefix) if not _NOT_TEXT.match(n) and not n.endswith("position_ids"))
    names = {n.removeprefix("text_model."): prefix + n for n in under}
    found = {new: file.shapes[old] for new, old in names.items()}
    if "embeddings.token_embedding.weight" not in found or "encoder.layers.0.mlp.fc1.weight" not in found:
        return None
    tensors = {new: Cut(old) for new, old in names.items()}
    config = _clip_config(found, "quick_gelu" if found["embeddings.token_embedding.weight"][1] not in (1024, 1280) else "gelu")
    return Layout(config, tensors)


def _clip_config(shapes: Shapes, activation: str) -> dict[str, Any]:
    vocabulary, width = shapes["embeddings.token_embedding.weight"]
    return {
        "vocab_size": vocabulary, "hidden_size": width, "intermediate_size": shapes["encoder.layers.0.mlp.fc1.weight"][0],
        "num_hidden_layers": _count(shapes, "encoder.layers.{}.mlp.fc1.weight"), "num_attention_heads": max(width // 64, 1),
        "max_position_embeddings": shapes["embeddings.position_embedding.weight"][0], "hidden_act": activation,
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "bos_token_id": vocabulary - 2, "eos_token_id": vocabulary - 1, "pad_token_id": vocabulary - 1,
    }


_OPEN_RULES = (
    ("transformer.resblocks.", "encoder.layers."), ("ln_1.", "layer_norm1."), ("ln_2.", "layer_norm2."),
    (".c_fc.", ".fc1."), (".c_proj.", ".fc2."), (".attn.", ".self_attn."),
    ("ln_final.", "final_layer_norm."), ("positional_embedding", "embeddings.position_embedding.weight"),
    ("class_embedding", "embeddings.class_embedding"), ("conv1.", "embeddings.patch_embedding."), ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."),
)


def open_clip(file: WeightFile, prefix: str, *, without_last: bool = False) -> Layout | None:
    """A text encoder under a prefix by OpenCLIP's names, or None; `without_last` leaves out the last layer, as SD 2.x does."""
    found = {n: s for n, s in file.under(prefix).items() if not _NOT_TEXT.match(n)}
    if "transformer.resblocks.0.attn.in_proj_weight" not in found or "token_embedding.weight" not in found:
        return None
    layers = _count(found, "transformer.resblocks.{}.attn.in_proj_weight") - without_last
    tensors = {new: cut for name in found for new, cut in _open_names(name, prefix)}
    tensors = {n: c for n, c in tensors.items() if not n.startswith(f"encoder.layers.{layers}.")}
    shapes = {new: found[cut.name.removeprefix(prefix)] for new, cut in tensors.items()}
    if "text_projection" in found:
        shapes["text_projection.weight"] = found["text_projection"][::-1]
    return Layout(_clip_config(shapes, "gelu") | {"pad_token_id": 0}, tensors)


def _open_names(name: str, prefix: str) -> Iterator[tuple[str, Cut]]:
    if name == "text_projection":  # a matrix from the right, where transformers has a layer
        yield "text_projection.weight", Cut(prefix + name, turned=True)
        return
    new = name if name.startswith(("text_projection", "embeddings.")) else name.replace("token_embedding.", "embeddings.token_embedding.")
    for old, renamed in _OPEN_RULES:
        new = new.replace(old, renamed)
    if ".in_proj_" not in new:
        yield new, Cut(prefix + name)
        return
    for i, letter in enumerate("qkv"):
        yield new.replace(".in_proj_", f".{letter}_proj."), Cut(prefix + name, i, 3)


# Picture towers.

VISION = ("visual.", "embedder.model.visual.")
"""Where OpenCLIP's lies, alone and in an unCLIP model."""

HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
"""Attention heads by width: ViT-B, L, H and bigG."""


def vision(file: WeightFile) -> Layout | None:
    """CLIP's picture tower in a file, whatever else is there, by transformers' names or OpenCLIP's; None when there is none. ValueError for
    one whose shape is not known."""
    prefix = next((p for p in VISION if f"{p}proj" in file.shapes), None)
    if prefix is None:
        theirs = (n for n in file.shapes if n.startswith(("vision_model.", "visual_projection.")) and not n.endswith("position_ids"))
        tensors = {n: Cut(n) for n in theirs}
    else:
        named = (pair for n in file.under(prefix) if n != "proj" for pair in _open_names(n, prefix))
        tensors = {f"vision_model.{new}": cut for new, cut in named} | {"visual_projection.weight": Cut(f"{prefix}proj", turned=True)}
    if "vision_model.embeddings.patch_embedding.weight" not in tensors:
        return None
    return Layout(vision_config({n: file.shapes[c.name][:: -1 if c.turned else 1] for n, c in tensors.items()}, file.path), tensors)


def vision_config(shapes: Shapes, path: str) -> dict[str, Any]:
    """CLIPVisionConfig from shapes by transformers' names; those of OpenAI and OpenCLIP are known. ValueError for others."""
    parts = ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight", "encoder.layers.0.mlp.fc1.weight")
    patch, positions, inner = (shapes.get(f"vision_model.{part}", (0, 0, 0, 0)) for part in parts)
    width, projection = patch[0], shapes.get("visual_projection.weight", (0,))[0]
    if width not in HEADS or not projection:
        raise ValueError(f"encoder: {path} is no CLIP vision model known by its width, {width}; add its config.json")
    return {
        "hidden_size": width, "intermediate_size": inner[0], "projection_dim": projection,
        "num_hidden_layers": _count(shapes, "vision_model.encoder.layers.{}.layer_norm1.weight"),
        "num_attention_heads": HEADS[width], "image_size": math.isqrt(positions[0] - 1) * patch[-1], "patch_size": patch[-1],
        "hidden_act": "quick_gelu" if width < 1280 else "gelu",  # the smaller ones are OpenAI's own
    }


# What is no network.


def scheduler(file: WeightFile, network: Layout) -> Layout:
    """Noise levels as all of Stable Diffusion has them; what the network predicts is in the file's notes, or else in one of its tensors.

    The notes are `modelspec.prediction_type`, and the tensors `v_pred` and `ztsnr` that trainers leave; `edm_vpred.*` are CosXL's. SD 2.x
    says it nowhere: the one vector that differs between its two kinds is read, with ComfyUI's threshold. ValueError for what is unknown.
    """
    edm = [n for n in ("edm_mean", "edm_std") if n in file.shapes]
    if edm:
        raise ValueError(f"{file.path}: trained by EDM on latents in units of their own ({edm[0]}), which are not read")
    ends = {e: float(file.read(f"edm_vpred.{e}")) for e in ("sigma_min", "sigma_max") if f"edm_vpred.{e}" in file.shapes}
    if ends:
        return Layout({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction", "sigma_data": 1.0, **ends})
    noted = file.metadata.get("modelspec.prediction_type", "").lower()
    if noted not in ("", "epsilon", "eps", "v", "v_prediction"):
        raise ValueError(f"{file.path}: its metadata says prediction_type {noted!r}; known are epsilon and v")
    v = noted.startswith("v") if noted else "v_pred" in file.shapes or _sd2_says_v(file, network)
    return Layout({
        "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if v else "epsilon", "rescale_betas_zero_snr": "ztsnr" in file.shapes,
    })


def _sd2_says_v(file: WeightFile, network: Layout) -> bool:
    told = network.tensors.get("up_blocks.3.attentions.2.transformer_blocks.0.norm1.bias")
    if told is None or network.config["cross_attention_dim"] != 1024 or network.config["in_channels"] != 4:
        return False
    return float(file.read(told.name).float().std(unbiased=False)) > 0.09


def clip_words(pad: str = "<|endoftext|>") -> Layout:
    """CLIP's own words, with the token that fills up short prompts: the end mark in SD 1.x, `!` (id 0) in OpenCLIP's towers."""
    return Layout({"vocabulary": "clip", "pad_token": pad})
