"""Adapter files: from the tensors of any program's file to what they do to each layer, and what a file says of itself.

A key is a layer's name and, at its end, what the tensor is of it. The ends are kohya's and LyCORIS's (`.lora_down.weight`, `.alpha`,
`.dora_scale`, `.hada_w1_a`, `.lokr_w2`, `.diff`), diffusers' and peft's (`.lora_A.weight`, `.lora.down.weight`,
`.lora_linear_layer.down.weight`, `.lora_magnitude_vector`) and those of `unet.load_attn_procs` (`.processor.to_q_lora.down.weight`).
"""
from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load
from torch import Tensor

from safelight.patches.lora.kinds import Change, Dora, Factor, Full, Kind, Loha, Lokr, Lora
from safelight.weights.header import Header
from safelight.weights.header import read as read_header

END = re.compile(
    r"(?:(?:\.lora_|\.lora\.|_lora\.|\.lora_linear_layer\.)(?P<pair>down|up|mid|A|B)(?:\.(?!weight|bias)\w+)?(?P<what>\.weight|\.bias)?"
    r"|(?:\.lora|_lora)?\.(?P<alone>alpha|dora_scale|diff|diff_b|w_norm|b_norm|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)"
    r"(?:\.default)?"
    r"|\.(?P<rows>lora_magnitude_vector|magnitude)(?:\.(?!weight)\w+)?(?:\.weight)?)$"
)
SAME = {"A": "down", "B": "up", "w_norm": "diff", "b_norm": "diff_b"}

LONGEST = 400
"""Characters of a key; no program writes a tenth more than half of that."""

ASIDE = ("bundle_emb.", "_aux.")
"""How keys begin that are no part of an adapter: OneTrainer's embeddings for the text encoders, notes of slider trainers."""

CONFIG = "lora_adapter_metadata"
"""Where diffusers keeps peft's settings in a file's header, JSON, every name with the network before it or none."""


@dataclass
class Layer:
    """The tensors of one layer by role, the names they have in the file, and the layer's own."""

    name: str
    roles: dict[str, Tensor] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scales:
    """What alpha is where a layer has no tensor for it: what peft's settings say, else what the user says, else the rank."""

    path: str
    config: Mapping[str, Any]
    given: float | None

    def of(self, layer: Layer, rank: float | None) -> float:
        """alpha / rank, or alpha / sqrt(rank) for rank-stabilized ones (arXiv:2312.03732); 1 when nothing has a rank."""
        told = layer.roles.pop("alpha", None)
        if told is not None:
            if told.numel() != 1 or not math.isfinite(float(told)):
                raise ValueError(f"lora {self.path}: alpha of {layer.name} is no number; the file is broken")
            return float(told) / rank if rank else 1.0
        part, _, path = layer.name.partition(".")
        alpha, config = self._setting(part, path)
        rank = rank or self._number(config.get("r"))
        alpha = self.given if alpha is None else alpha
        if alpha is None or not rank:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _setting(self, part: str, path: str) -> tuple[float | None, Mapping[str, Any]]:
        """alpha by the settings of the layer's network, and those settings."""
        inner = {k.removeprefix(f"{part}."): v for k, v in self.config.items() if k.startswith(f"{part}.")}
        config = inner or self.config
        alpha, patterns = config.get("lora_alpha", config.get("alpha")), config.get("alpha_pattern") or {}
        for ending, value in patterns.items() if isinstance(patterns, dict) else ():
            if f".{part}.{path}".endswith(f".{ending.removeprefix('^')}"):
                alpha = value
        return self._number(alpha), config

    def _number(self, value: Any) -> float | None:
        if value is not None and not (isinstance(value, int | float) and math.isfinite(value)):
            raise ValueError(f"lora {self.path}: {CONFIG} has {value!r} where alpha or the rank should be; expected a number")
        return value


def opened(path: str) -> Header:
    """The checked header. ValueError when it is no sound safetensors file."""
    try:
        return read_header(path)
    except ValueError as e:
        raise ValueError(f"lora {path}: not a safetensors file ({e}); convert it first") from e


def read(path: str, *, alpha: float | None = None, config: Mapping[str, Any] | None = None) -> dict[str, Change]:
    """What a file does to each layer, by the layer's name in it, every dot a `_`.

    `alpha` is for layers that have none of their own, `config` peft's settings when they are not in the file's header.

    ValueError for a tensor that is no part of an adapter we know, for half an adapter, and for two tensors of one meaning.
    """
    layers: dict[str, Layer] = {}
    header = opened(path)
    config = settings(path, header.metadata) or config or {}
    tensors = load(Path(path).read_bytes())  # at once: tensor by tensor takes four times as long
    for key in header.tensors:
        if key.startswith(ASIDE):
            continue
        name, role = split(path, key)
        layer = layers.setdefault(name.replace(".", "_"), Layer(name))
        if role in layer.roles:
            raise ValueError(f"lora {path}: {key!r} and another key say the same of one layer; the file holds more than one adapter")
        layer.roles[role] = tensors[key]
        layer.keys.append(key)
    if not layers:
        raise ValueError(f"lora {path}: there is no adapter in it")
    return {flat: _change(path, layer, Scales(path, config, alpha)) for flat, layer in layers.items()}


def settings(path: str, notes: Mapping[str, str]) -> dict[str, Any]:
    """peft's settings from a file's notes; empty when there are none. ValueError when they cannot be read."""
    try:
        known = json.loads(notes.get(CONFIG, "{}"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"lora {path}: {CONFIG} in its header is no JSON ({e})") from e
    if not isinstance(known, dict):
        raise ValueError(f"lora {path}: {CONFIG} in its header is no table")
    return known


def peft_settings(file: Path) -> dict[str, Any]:
    """Options for the patch of a file that peft wrote, `config`, from the adapter_config.json beside it; empty when there is none.
    ValueError when it cannot be read."""
    beside = file.with_name("adapter_config.json")
    if file.stem != "adapter_model" or not beside.is_file():
        return {}
    known = settings(str(beside), {CONFIG: beside.read_text(encoding="utf-8")})
    told = {name: known[name] for name in ("r", "lora_alpha", "alpha", "alpha_pattern", "use_rslora") if known.get(name)}
    return {"config": told} if told else {}


def split(path: str, key: str) -> tuple[str, str]:
    """A key's layer and role. ValueError for one that ends in nothing we know."""
    found = END.search(key) if len(key) <= LONGEST else None
    if not found or not found.start():
        raise ValueError(
            f"lora {path}: {key[:LONGEST]!r} is not part of an adapter of a known kind (LoRA, LoCon, LoHa, LoKr, DoRA, full differences)"
        )
    role = found["pair"] or found["alone"] or "magnitude"
    role = SAME.get(role, role) + ("_bias" if found["what"] == ".bias" else "")
    return key[: found.start()].replace("base_model.model.", "", 1).replace(".processor.", "."), role


def _change(path: str, layer: Layer, scales: Scales) -> Change:
    roles = layer.roles
    kind, scale = _kind(path, layer, scales)
    bias = roles.pop("diff_b", None)
    if "up_bias" in roles and bias is None and isinstance(kind, Lora):
        bias = roles.pop("up_bias") * scale
    magnitude, rows = roles.pop("dora_scale", None), roles.pop("magnitude", None)
    if rows is not None and magnitude is None:
        magnitude = rows.flatten()
    if magnitude is not None and kind is not None and not isinstance(kind, Full):
        kind, magnitude = Dora(kind, magnitude), None
    if roles or magnitude is not None or (kind is None and bias is None):
        left = ", ".join(key for key in layer.keys) if kind is None else ", ".join(sorted(roles) or ["dora_scale"])
        raise ValueError(f"lora {path}: {layer.name} has {left} and what belongs to it is missing; the file is incomplete")
    return Change(kind, bias, tuple(layer.keys))


def _kind(path: str, layer: Layer, scales: Scales) -> tuple[Kind | None, float]:
    """What moves the weight, and its scale. Takes the tensors it uses out of the layer."""
    roles = layer.roles
    if {"down", "up"} & roles.keys():
        need(path, layer, "down", "up")
        up, down, mid = roles.pop("up"), roles.pop("down"), roles.pop("mid", None)
        scale = scales.of(layer, int(down.shape[0]) if down.ndim else None)
        return Lora(Factor(up if mid is None else up.flatten(1).T, down, mid), scale), scale
    if any(role.startswith("hada_") for role in roles):
        need(path, layer, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
        first, second = (_factor(path, layer, "hada_w", n, core=f"hada_t{n}") for n in (1, 2))
        scale = scales.of(layer, first.rank)
        return Loha(first, second, scale), scale
    if any(role.startswith("lokr_") for role in roles):
        small, large = (_factor(path, layer, "lokr_w", n, core=f"lokr_t{n}") for n in (1, 2))
        scale = scales.of(layer, small.rank if large.rank is None else large.rank)
        return Lokr(small, large, scale), scale
    scale = scales.of(layer, None)
    return (Full(roles.pop("diff")), scale) if "diff" in roles else (None, scale)


def _factor(path: str, layer: Layer, stem: str, n: int, *, core: str) -> Factor:
    whole = layer.roles.pop(f"{stem}{n}", None)
    if whole is not None:
        return Factor(whole)
    need(path, layer, f"{stem}{n}_a", f"{stem}{n}_b")
    return Factor(layer.roles.pop(f"{stem}{n}_a"), layer.roles.pop(f"{stem}{n}_b"), layer.roles.pop(core, None))


def need(path: str, layer: Layer, *roles: str) -> None:
    """ValueError when the layer lacks one of them."""
    missing = [role for role in roles if role not in layer.roles]
    if missing:
        raise ValueError(f"lora {path}: {layer.name} has no {' and no '.join(missing)} weight; the file is incomplete")
