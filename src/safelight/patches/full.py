"""Weights of a model's own networks, trained: put in place of those it has, from a safetensors file.

Names are `unet.`, `transformer.`, `text_encoder.`, ... and then diffusers' and transformers' own, so that `model(unet=FILE)` reads a file
with a whole network too.
"""
from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from safelight.patches import kept, patch, tell

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

Home = list[tuple[nn.Module, str]]
"""Where a parameter is held: modules and the names they have for it; several where weights are shared."""


def homes(family: Family) -> dict[str, Home]:
    """Every parameter of floating point, by its name in the file."""
    out: dict[str, Home] = {}
    for part, network in family.trainable().items():
        known: dict[int, str] = {}
        for path, p in network.named_parameters(remove_duplicate=False):
            if p.is_floating_point():
                holder, _, name = path.rpartition(".")
                out.setdefault(known.setdefault(id(p), f"{part}.{path}"), []).append((network.get_submodule(holder), name))
    return out


def put(home: Home, p: nn.Parameter) -> None:
    """Let the modules hold another parameter."""
    for module, name in home:
        module.register_parameter(name, p)


@patch
def full(family: Family, what: Patch) -> Iterator[None]:
    """Put the file's weights in place of the model's; at a strength s, was + s (trained - was). Strength 0 changes and reads nothing.

    ValueError with matched/total when a tensor is no weight of this model's.
    """
    if not what.strength:
        yield
        return
    path = what.weights.path
    tensors, places = load_file(path), homes(family)
    held = {name: getattr(*places[name][0]) for name in tensors if name in places}
    lost = [name for name, t in tensors.items() if name not in held or held[name].shape != t.shape]
    if lost:
        raise ValueError(
            f"full {path}: {len(tensors) - len(lost)} of {len(tensors)} tensors fit this {family.name} model; first misfit {lost[0]}; "
            "use weights that were trained from this model"
        )
    tell(family, what, f"{len(tensors)} of {len(tensors)} tensors matched")
    with kept({id(module): module for name in tensors for module, _ in places[name]}.values()):
        for name, t in tensors.items():
            was = held[name]
            new = t.to(was.device, torch.float32)
            mixed = new if what.strength == 1 else torch.lerp(was.detach().float(), new, what.strength)
            laid = torch.empty_like(was).copy_(mixed)  # in the memory layout of the old one
            put(places[name], nn.Parameter(laid, requires_grad=was.requires_grad))
        yield
