"""LoRA (arXiv:2106.09685): W + s * alpha / rank * up @ down on linear and convolution layers, from a safetensors file.

Read layouts: kohya's `lora_unet_<path with _>.lora_down.weight / .lora_up.weight / .alpha` and `lora_te_...`, and the dotted ones
of diffusers and peft, `unet.<path>.lora_A.weight`, `.lora.down.weight`. A file that does not fit the model is refused, never half used.
"""
from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from safelight.patches import patch, preserved

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

log = logging.getLogger(__name__)

PREFIXES = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}
"""How kohya's layout names a module of each network, before its path."""

ROLE = re.compile(r"^(?P<name>.+?)\.(?:lora_|lora\.)?(?P<role>down|up|A|B|alpha)(?:\.default)?(?:\.weight)?$")

TOLD = ("modelspec.title", "modelspec.architecture", "ss_base_model_version", "ss_network_alpha", "safelight.trigger")
"""Notes of a file that are worth telling."""


@dataclass(frozen=True)
class Pair:
    """One layer's change: `down` (r, in[, k, k]), `up` (out, r[, 1, 1]), and alpha (rank when the file has none)."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return int(self.down.shape[0])

    def delta(self, shape: torch.Size) -> Tensor:
        """alpha / rank * up @ down as float32 of the layer's own weight shape."""
        out = self.up.float().flatten(1) @ self.down.float().flatten(1)
        return (out * (self.alpha / self.rank)).view(shape)


@dataclass(frozen=True)
class Place:
    """Where a pair goes: the network's name, the module's path in it, and the layer itself."""

    part: str
    path: str
    layer: nn.Linear | nn.Conv2d


def kohya_name(part: str, path: str) -> str:
    """The name kohya's layout has for a module: `lora_unet_down_blocks_0_attentions_0_..._to_q`."""
    return PREFIXES[part] + path.removeprefix("text_model.").replace(".", "_")


def places(family: Family) -> dict[str, Place]:
    """Every linear and convolution layer a LoRA can change, by its kohya name."""
    return {
        kohya_name(part, path): Place(part, path, layer)
        for part, network in family.trainable().items()
        if part in PREFIXES
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
    }


def canonical_name(name: str) -> str:
    """A module's name in any layout we read, as kohya writes it."""
    name = name.removeprefix("base_model.model.")
    for part, prefix in PREFIXES.items():
        if name.startswith(f"{part}."):
            return prefix + name.removeprefix(f"{part}.").removeprefix("text_model.").replace(".", "_")
    return name.replace(".", "_")


def read(path: str) -> dict[str, Pair]:
    """A LoRA file's pairs by kohya name. ValueError for a tensor that is no part of a plain LoRA, or half a pair."""
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in load_file(path).items():
        found = ROLE.match(key)
        if not found:
            raise ValueError(f"lora {path}: {key!r} is not part of a plain LoRA (lora_down, lora_up, lora_A, lora_B, alpha)")
        role = {"A": "down", "B": "up"}.get(found["role"], found["role"])
        parts.setdefault(canonical_name(found["name"]), {})[role] = tensor
    return {name: _pair(path, name, roles) for name, roles in parts.items()}


def describe(path: str) -> dict[str, Any]:
    """What a file says of itself: `layers`, `rank` (the largest), and the notes it carries. ValueError when it is no safetensors file."""
    try:
        with safe_open(path, "pt") as f:
            shapes = {key: f.get_slice(key).get_shape() for key in f.keys()}  # noqa: SIM118, it is no mapping
            notes = dict(f.metadata() or {})
    except SafetensorError as e:
        raise ValueError(f"lora {path}: not a safetensors file ({e}); convert it first") from e
    ranks = [shape[0] for key, shape in shapes.items() if (found := ROLE.match(key)) and found["role"] in ("down", "A")]
    if not ranks:
        raise ValueError(f"lora {path}: there is no lora_down or lora_A weight in it; expected a LoRA")
    return {"layers": len(ranks), "rank": max(ranks)} | {k: v for k, v in notes.items() if k in TOLD}


def _pair(path: str, name: str, roles: Mapping[str, Tensor]) -> Pair:
    missing = {"down", "up"} - set(roles)
    if missing:
        raise ValueError(f"lora {path}: {name} has no {' and no '.join(sorted(missing))} weight; the file is incomplete")
    alpha = roles.get("alpha")
    return Pair(roles["down"], roles["up"], float(alpha) if alpha is not None else float(roles["down"].shape[0]))


def match(family: Family, pairs: Mapping[str, Pair], path: str) -> dict[str, Place]:
    """Where every pair goes. ValueError with matched/total when one has no layer of its shape in the model."""
    known = places(family)
    fits = {name: known[name] for name, pair in pairs.items() if name in known and _fits(pair, known[name].layer)}
    lost = [name for name in pairs if name not in fits]
    if lost:
        why = "no such layer" if lost[0] not in known else f"the layer is {tuple(known[lost[0]].layer.weight.shape)}"
        raise ValueError(
            f"lora {path}: {len(fits)} of {len(pairs)} layers match this {family.name} model; first misfit {lost[0]} ({why}). "
            "Use a LoRA that was trained for this model."
        )
    return fits


def _fits(pair: Pair, layer: nn.Linear | nn.Conv2d) -> bool:
    same_ends = pair.up.shape[0] == layer.weight.shape[0] and pair.up.flatten(1).shape[1] == pair.rank
    return same_ends and pair.down.numel() // pair.rank == layer.weight[0].numel()


class Beside(nn.Module):
    """A layer and its LoRA, computed side by side: base(x) + scale * up(down(x)), the small part in float32."""

    def __init__(self, base: nn.Linear | nn.Conv2d, pair: Pair, strength: float) -> None:
        """The pair's tensors are moved to the layer's device."""
        super().__init__()
        device, rank = base.weight.device, pair.rank
        self.base, self.scale = base, strength * pair.alpha / rank
        self.down: nn.Linear | nn.Conv2d
        self.up: nn.Linear | nn.Conv2d
        if isinstance(base, nn.Conv2d):
            shape = {"stride": base.stride, "padding": base.padding, "dilation": base.dilation}
            self.down = nn.Conv2d(base.in_channels, rank, base.kernel_size, bias=False, device=device, **shape)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, base.out_channels, 1, bias=False, device=device)
        else:
            self.down = nn.Linear(base.in_features, rank, bias=False, device=device)
            self.up = nn.Linear(rank, base.out_features, bias=False, device=device)
        self.down.weight = nn.Parameter(pair.down.to(device, torch.float32).view_as(self.down.weight), requires_grad=False)
        self.up.weight = nn.Parameter(pair.up.to(device, torch.float32).view_as(self.up.weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """As the base layer's, in its dtype."""
        plain: Tensor = self.base(x)
        beside: Tensor = self.up(self.down(x.float())) * self.scale
        return (plain + beside).to(plain.dtype)


@patch
def lora(family: Family, what: Patch) -> Iterator[None]:
    """Add a LoRA at `what.strength`. Options: `merged` (true: into the weights; false: computed beside the layers), `text_strength`
    (another strength for the text encoder). Both forms agree to float32 rounding; strength 0 changes nothing."""
    pairs = read(what.weights.path)
    where = match(family, pairs, what.weights.path)
    log.info("lora %s: %d of %d layers matched", what.weights.path, len(where), len(pairs))
    text_strength = float(what.options.get("text_strength", what.strength))
    merged = bool(what.options.get("merged", True))
    with preserved(family.trainable()):
        for name, place in where.items():
            strength = text_strength if place.part == "text_encoder" else what.strength
            if strength and merged:
                _merge(place.layer, pairs[name], strength)
            elif strength:
                _set_module(family.trainable()[place.part], place.path, Beside(place.layer, pairs[name], strength))
        yield


def _merge(layer: nn.Linear | nn.Conv2d, pair: Pair, strength: float) -> None:
    weight = layer.weight
    changed = weight.detach().float() + pair.delta(weight.shape).to(weight.device) * strength
    layer.weight = nn.Parameter(changed.to(weight.dtype).contiguous(memory_format=_layout(weight)), requires_grad=weight.requires_grad)


def _layout(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _set_module(network: nn.Module, path: str, new: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(network.get_submodule(parent), leaf, new)
