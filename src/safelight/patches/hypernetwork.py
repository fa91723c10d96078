"""Hypernetworks of AUTOMATIC1111's: small networks that change what a U-Net's attention takes keys and values from, a pair for each width.

Read layout: `<width>.<0: keys, 1: values>.linear.<n>.weight`, in older ones `linear<n>`, as safetensors with the rest in their notes.
"""
from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from safelight.patches import kept, patch, tell
from safelight.patches.rows import unet_of
from safelight.weights import header

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu, "leakyrelu": F.leaky_relu, "elu": F.elu, "swish": F.hardswish, "tanh": torch.tanh, "sigmoid": torch.sigmoid,
    "softsign": F.softsign, "mish": F.mish, "linear": lambda x: x, "None": lambda x: x,
}
NAME = re.compile(r"(\d+)\.([01])\.(linear\.?)(\d+)\.weight")


def read(path: str) -> dict[tuple[int, int], list[tuple[Tensor, Tensor, str]]]:
    """By width and whether they are for keys (0) or values (1): matrices and norms in order, each with its bias and the activation after
    it. ValueError when it is no hypernetwork of this kind."""
    tensors, out = load_file(path), defaultdict(list)
    found = sorted((int(m[1]), int(m[2]), int(m[4]), m[0]) for m in map(NAME.fullmatch, tensors) if m)
    said = {n: t.partition(" ")[2] for n, t in json.loads(header.read(path).metadata.get("safelight.left", "{}")).items()}
    activation = said.get("activation_func", "linear")
    if {n.removesuffix("weight") + end for *_, n in found for end in ("weight", "bias")} != {*tensors} or activation not in ACTIVATIONS:
        raise ValueError(f"hypernetwork {path}: got {min(tensors)!r} and the activation {activation!r}; expected <width>.<0 or 1>.linear."
                         f"<n> and one of {', '.join(ACTIVATIONS)}")
    ends = {} if said.get("activate_output") == "True" else {(w, i): name for w, i, _, name in found if tensors[name].ndim == 2}
    for width, side, _, name in found:
        plain = tensors[name].ndim == 1 or name in ends.values()
        out[width, side].append((tensors[name], tensors[name.removesuffix("weight") + "bias"], "linear" if plain else activation))
    return out


@patch
def hypernetwork(family: Family, what: Patch) -> Iterator[None]:
    """Take keys and values from x + `what.strength` * network(x) wherever there is a network of x's width; of several, each works on what
    the one before made. Strength 0 changes nothing. A LoRA with `merged` false has to be put on before it."""
    if not what.strength:
        yield
        return
    nets, unet = read(what.weights.path), unet_of(family, "hypernetwork")
    attention = [m for n, m in unet.named_modules() if n.endswith((".attn1", ".attn2"))]
    every = [(layer, (layer.weight.shape[1], i)) for m in attention for i, layer in enumerate((m.to_k, m.to_v))]
    fits = {layer: [(w.to(layer.weight), b.to(layer.weight), a) for w, b, a in nets[key]] for layer, key in every if key in nets}
    if not fits:
        raise ValueError(f"hypernetwork {what.weights.path}: got widths {sorted({w for w, _ in nets})}, none of this {family.name} model's")

    def changed(layer: Any, given: tuple[Tensor]) -> Tensor:
        x = given[0]
        for *tensors, activation in fits[layer]:
            weight, bias = (t.to(x) for t in tensors)  # where networks take turns, the layer lay elsewhere before
            x = ACTIVATIONS[activation](F.linear(x, weight, bias) if weight.ndim == 2 else F.layer_norm(x, weight.shape, weight, bias))
        return given[0] + x * what.strength

    with kept(fits):
        for layer in fits:
            layer.register_forward_pre_hook(changed)
        tell(family, what, f"{len(fits)} of {len(every)} layers have a network of their width")
        yield
