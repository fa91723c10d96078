"""A layer and a change of it that is not merged: the layer stays as it is, what is added is computed in every pass."""
from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from safelight.patches.lora.kinds import Change, Lora


class Beside(nn.Module):
    """A layer and a change of it, in the layer's place; `base` is the layer, or another one of these around it.

    A plain LoRA is computed beside the layer: base(x) + scale * up(down(x)), the small part in float32. For the other kinds the changed
    weight is computed anew in every pass. Both give what the merged form gives, to float32 rounding.
    """

    def __init__(self, base: nn.Module, change: Change, strength: float) -> None:
        """The change's tensors are moved to the layer's device."""
        super().__init__()
        self.base, self.strength = base, strength
        self.change: Change = moved(change, weight_of(base).device)
        self.pair = _pair(original(base), self.change)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's, in its dtype."""
        if self.pair is not None:
            plain: Tensor = self.base(x)
            added: Tensor = self.pair(x.float()) * self.strength
            return (plain + added).to(plain.dtype)
        weight, bias = effective(self)
        layer, dtype = original(self), self.weight.dtype
        changed = {"weight": weight.to(dtype)} | ({} if bias is None else {"bias": bias.to(dtype)})
        out: Tensor = functional_call(layer, changed, (x,))
        return out

    @property
    def weight(self) -> Tensor:
        """The layer's own, for who asks what dtype it has."""
        return weight_of(self)

    @property
    def bias(self) -> Tensor | None:
        """The layer's own."""
        return own(self, "bias")


def moved(record: Any, device: torch.device) -> Any:
    """A change, or a part of one, with its tensors on another device."""
    if isinstance(record, Tensor):
        return record.to(device)
    if not dataclasses.is_dataclass(record) or isinstance(record, type):
        return record
    return dataclasses.replace(record, **{f.name: moved(getattr(record, f.name), device) for f in dataclasses.fields(record)})


def original(layer: nn.Module) -> nn.Module:
    """The layer itself, below whatever was put around it."""
    while isinstance(layer, Beside):
        layer = layer.base
    return layer


def own(layer: nn.Module, name: str) -> Tensor | None:
    """The untouched layer's `weight` or `bias`; None when it has none."""
    held: Tensor | None = vars(original(layer))["_parameters"].get(name)
    return held


def weight_of(layer: nn.Module) -> Tensor:
    """The untouched weight."""
    weight = own(layer, "weight")
    assert weight is not None
    return weight


def effective(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with all that was put around the layer in them."""
    if isinstance(layer, Beside):
        weight, bias = effective(layer.base)
        return layer.change.applied(weight, bias, layer.strength)
    return weight_of(layer), own(layer, "bias")


def _pair(layer: nn.Module, change: Change) -> nn.Module | None:
    """down and up as layers of their own, scale in up; None when the change is no plain LoRA or the layer no plain one."""
    kind = change.weight
    if not isinstance(kind, Lora) or kind.factor.b is None or kind.factor.core is not None or change.bias is not None:
        return None
    rank = int(kind.factor.b.shape[0])
    down: nn.Linear | nn.Conv2d
    up: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Conv2d) and layer.groups == 1 and layer.padding_mode == "zeros":
        shape = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, bias=False, device="meta", **shape)  # type: ignore[arg-type]
        up = nn.Conv2d(rank, layer.out_channels, 1, bias=False, device="meta")
    elif isinstance(layer, nn.Linear):
        down = nn.Linear(layer.in_features, rank, bias=False, device="meta")
        up = nn.Linear(rank, layer.out_features, bias=False, device="meta")
    else:
        return None
    down.weight = nn.Parameter(kind.factor.b.float().reshape(down.weight.shape), requires_grad=False)
    up.weight = nn.Parameter((kind.factor.a.float() * kind.scale).reshape(up.weight.shape), requires_grad=False)
    return nn.Sequential(down, up)
