"""Linear layers whose weights are stored in 8 or 4 bits, in the layout of ChatGLM's quantized files.

A row's largest value is 127 (7 in 4 bits) times its scale. Two 4-bit numbers share a byte, the first of them in its upper half.
"""
from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

BITS = (4, 8)


class WeightOnly(nn.Module):
    """A linear layer, made whole for every use: `weight` (out, in * bits / 8) int8, `weight_scale` (out,), perhaps `bias` (out,)."""

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        """Of the same size as `linear`, on its device; the numbers are for a file to fill in. ValueError for other than 4 or 8 bits."""
        super().__init__()
        if bits not in BITS or linear.in_features * bits % 8:
            raise ValueError(f"weights: {bits} bits for {linear.in_features} inputs; expected 8, or 4 and an even number of inputs")
        self.bits, weight, rows = bits, linear.weight, linear.out_features
        packed = torch.zeros(rows, linear.in_features * bits // 8, dtype=torch.int8, device=weight.device)
        self.weight = nn.Parameter(packed, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.ones(rows, dtype=weight.dtype, device=weight.device), requires_grad=False)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """As the layer's it was, in x's dtype."""
        whole = unpacked(self.weight, self.bits).to(x.dtype) * self.weight_scale.to(x.dtype)[:, None]
        return nn.functional.linear(x, whole, None if self.bias is None else self.bias.to(x.dtype))


def packed(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """(out, in) -> what a file holds: (out, in * bits / 8) int8 and the scale of each row (out,), in the weight's dtype."""
    scale = weight.abs().amax(dim=1) / (2 ** (bits - 1) - 1)
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    numbers = (weight / scale[:, None]).round().to(torch.int8)
    if bits == 4:
        numbers = (numbers[:, 0::2] << 4) | (numbers[:, 1::2] & 15)
    return numbers, scale


def unpacked(weight: Tensor, bits: int) -> Tensor:
    """The int8 numbers (out, in) of a packed weight."""
    if bits == 8:
        return weight
    return torch.stack([weight >> 4, (weight << 4) >> 4], dim=-1).flatten(1)


def quantized(tensors: Mapping[str, Tensor], names: tuple[str, ...], bits: int) -> dict[str, Tensor]:
    """A network's tensors with the weights of the layers that end in one of `names` packed; the others as they are."""
    out: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        layer, _, leaf = key.rpartition(".")
        if leaf == "weight" and layer.endswith(names):
            out[key], out[f"{layer}.weight_scale"] = packed(tensor, bits)
        else:
            out[key] = tensor
    return out
