"""What an adapter file says of itself, from its header alone."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from safelight.patches.lora.file import ASIDE, opened, settings, split
from safelight.weights.header import Header

TOLD = ("modelspec.title", "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "ss_network_alpha", "safelight.trigger")
"""Notes of a file that are worth telling."""

TRIGGERS = ("modelspec.trigger_phrase", "safelight.trigger", "ss_trigger_words", "trigger_words")

WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 1280: "SDXL refiner", 2048: "SDXL or Kolors"}
"""Who has text vectors of this width, which the projections of cross attention read."""

NETWORKS = (
    ("text_encoder", ("lora_te_", "lora_te1_", "text_encoder.", "text_encoders.clip_l.", "text_encoders.clip_h.", "text_model.")),
    ("text_encoder_2", ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g.")),
    ("text_encoder_3", ("lora_te3_", "text_encoder_3.", "text_encoders.t5xxl.")),
    ("transformer", ("lora_transformer_", "transformer.")),
)

TAGS = 10


def describe(path: str) -> dict[str, Any]:
    """`dialect`, `kinds`, `layers`, `keys` (adapter's, of the file's `total`), `rank` (the largest), `ranks`, `networks`, `alpha` (where
    it is from), `base` (a guess at the model), `trigger`, `tags` (the most frequent of the training captions) and the notes worth telling;
    what is unknown is left out. ValueError when it is no safetensors file or no adapter."""
    read = opened(path)
    parts = {key: split(path, key) for key in read.tensors if not key.startswith(ASIDE)}
    if not parts:
        raise ValueError(f"lora {path}: there is no adapter in it; expected LoRA, LoCon, LoHa, LoKr, DoRA or full differences")
    roles = {role for _, role in parts.values()}
    names = {name.replace(".", "_") for name, _ in parts.values()}
    ranks = Counter(rank for key, (_, role) in parts.items() if (rank := _rank(role, read.tensors[key].shape)))
    told: dict[str, Any] = {
        "dialect": dialect(read), "kinds": kinds(read, roles), "layers": len(names), "keys": len(parts), "total": len(read.tensors),
        "rank": max(ranks, default=0), "ranks": sorted(ranks), "networks": networks([*read.tensors]), "alpha": _alpha(path, read, roles),
        "base": _base(read, parts), "trigger": _trigger(read.metadata), "tags": _tags(read.metadata),
        "embeddings": sorted({key.split(".")[1] for key in read.tensors if key.startswith("bundle_emb.")}),
    }
    return {k: v for k, v in told.items() if v or k == "rank"} | {k: v for k, v in read.metadata.items() if k in TOLD}


def dialect(read: Header) -> str:
    """Which program's names these are."""
    text = " ".join(read.tensors)
    blocks = ", LDM block names" if any(f"{b}_block" in text for b in ("input", "middle", "output")) else ""
    if "ot_revision" in read.metadata or "bundle_emb." in text:
        return f"OneTrainer{blocks}"
    if "lora_unet_" in text or "lora_te" in text or "lora_transformer_" in text:
        return f"kohya{blocks or (', diffusers block names' if '_blocks_' in text else '')}"
    if "diffusion_model." in text or "text_encoders." in text:
        return "ComfyUI"
    if ".processor." in text or "_lora." in text:
        return "attn_procs"
    if text.startswith("blocks.") and "down_blocks" not in text:
        return "DiffSynth"
    if "base_model.model." in text:
        return "peft"
    if "lycoris_" in text:
        return "LyCORIS"
    return "OneTrainer" if ".lora_down." in text else "diffusers"


def kinds(read: Header, roles: set[str]) -> list[str]:
    """Of lora, locon, loha, lokr, dora and full, those in the file."""
    convolutions = any(len(shape) == 4 and shape[-1] > 1 for shape in (e.shape for e in read.tensors.values()))
    found = {
        "lora": "down" in roles and not convolutions,
        "locon": "down" in roles and convolutions,
        "loha": any(role.startswith("hada_") for role in roles),
        "lokr": any(role.startswith("lokr_") for role in roles),
        "dora": bool(roles & {"dora_scale", "magnitude"}),
        "full": bool(roles & {"diff", "diff_b"}),
    }
    return [kind for kind, there in found.items() if there]


def networks(keys: list[str]) -> list[str]:
    """Which networks it changes, by their names in a model."""
    keys = [key.removeprefix("base_model.model.") for key in keys if not key.startswith(ASIDE)]
    found = {next((part for part, heads in NETWORKS if key.startswith(heads)), "unet") for key in keys}
    return sorted(found, key=lambda part: (part not in ("unet", "transformer"), part))


def _rank(role: str, shape: tuple[int, ...]) -> int:
    return shape[0] if shape and role in ("down", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2_b") else 0


def _alpha(path: str, read: Header, roles: set[str]) -> str:
    if "alpha" in roles:
        return "in the file"
    return "in its notes" if any(k.endswith("lora_alpha") for k in settings(path, read.metadata)) else "none"


def _base(read: Header, parts: Mapping[str, tuple[str, str]]) -> str:
    for key, (name, role) in parts.items():
        if role == "down" and name.endswith("to_k") and "attn2" in name and len(read.tensors[key].shape) > 1:
            return WIDTHS.get(read.tensors[key].shape[1], "")
    return ""


def _trigger(notes: Mapping[str, str]) -> str:
    return next((notes[k] for k in TRIGGERS if notes.get(k)), "")


def _tags(notes: Mapping[str, str]) -> list[str]:
    """kohya's `ss_tag_frequency`: counts of tags, by folder."""
    try:
        folders = json.loads(notes.get("ss_tag_frequency", "{}"))
    except (ValueError, RecursionError):
        return []
    count: Counter[str] = Counter()
    for tags in folders.values() if isinstance(folders, dict) else ():
        for tag, n in tags.items() if isinstance(tags, dict) else ():
            count[str(tag).strip()] += n if isinstance(n, int) else 0
    return [tag for tag, _ in count.most_common(TAGS) if tag]
