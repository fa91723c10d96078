"""Adapters of the LoRA kind from any program's file: read, matched with the model's layers by name, put on and taken off again.

A file that does not fit the model is refused, never half used.
"""
from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safelight.patches import kept, patch, tell
from safelight.patches.lora.beside import Beside, original, own, weight_of
from safelight.patches.lora.describe import describe
from safelight.patches.lora.file import peft_settings, read
from safelight.patches.lora.kinds import Change
from safelight.patches.lora.names import DENOISERS, PREFIXES, Names, Place, kohya_name, places

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

__all__ = ["PREFIXES", "Beside", "Change", "Place", "describe", "kohya_name", "lora", "match", "peft_settings", "places", "read"]

SHOWN = 3
"""How many misfits an error names."""


@patch
def lora(family: Family, what: Patch) -> Iterator[None]:
    """Put an adapter on at `what.strength`.

    Options: `merged` (true: into the weights, at no cost in drawing; false: computed beside the layers), `text_strength` (another strength
    for the text encoders; at 0 the file's part for them need not fit), `alpha` (for files that have none), `config` (peft's settings, for
    files without them). Both forms agree to float32 rounding; strength 0 changes nothing; several add up, and one whose result depends on
    the weight (DoRA) sees those put on before it.
    """
    path = what.weights.path
    given = what.options.get("alpha")
    text_strength = float(what.options.get("text_strength", what.strength))
    changes = read(path, alpha=None if given is None else float(given), config=what.options.get("config"))
    where = match(family, changes, path, text=text_strength != 0.0)
    keys = sum(len(changes[name].keys) for name in where)
    tell(family, what, f"{keys} of {sum(len(c.keys) for c in changes.values())} keys matched, {len(where)} layers")
    networks = family.trainable()
    fits = [fit for some in where.values() for fit in some]
    with kept(_touched(networks, [place for place, _ in fits])):
        for place, change in fits:
            strength = what.strength if place.part in DENOISERS else text_strength
            # What lies around a layer was put on before: the order stays only if this goes around it too.
            if strength and what.options.get("merged", True) and not isinstance(place.layer, Beside):
                _merge(place.layer, change, strength)
            elif strength:
                _set_module(networks[place.part], place.path, Beside(place.layer, change, strength))
        yield


def _touched(networks: Mapping[str, nn.Module], where: Collection[Place]) -> list[nn.Module]:
    """The layers, whose weights change, and the modules that hold them, whose children do."""
    holders = {(place.part, place.path.rpartition(".")[0]) for place in where}
    return [*(place.layer for place in where), *(networks[part].get_submodule(path) for part, path in holders)]


def match(family: Family, changes: Mapping[str, Change], path: str, *, text: bool = True) -> dict[str, list[tuple[Place, Change]]]:
    """Where every change goes, by its name: to one layer, or piece by piece to several. `text` false: what names a text encoder may go
    nowhere.

    ValueError with matched and total keys and the first misfits when a change has no layer of its shape, or two have the same one.
    """
    names = Names(family)
    where: dict[str, list[tuple[Place, Change]]] = {}
    lost: dict[str, str] = {}
    taken: dict[tuple[str, str], str] = {}
    for name, change in changes.items():
        found = names.find(name)
        fits = list(zip(found, change.pieces(len(found)), strict=True)) if found else []
        why = next(filter(None, (_misfit(piece, place) for place, piece in fits)), "") if fits else "no such layer"
        first = [taken.setdefault((place.part, place.path), name) for place in found] if not why else []
        why = why or next((f"the same layer as {other}" for other in first if other != name), "")
        if not why:
            where[name] = fits
        elif text or not _names_text(name):
            lost[name] = why
    if lost:
        raise ValueError(_refusal(family, changes, path, lost=lost))
    return where


def _misfit(change: Change, place: Place) -> str:
    able = own(place.layer, "bias") is not None or isinstance(original(place.layer), nn.Linear | nn.Conv2d)
    return change.misfit(weight_of(place.layer)) or ("the layer has no bias" if change.bias is not None and not able else "")


def _names_text(name: str) -> bool:
    return name.startswith(("lora_te", "text_encoder"))


def _refusal(family: Family, changes: Mapping[str, Change], path: str, *, lost: Mapping[str, str]) -> str:
    total = sum(len(c.keys) for c in changes.values())
    gone = sum(len(changes[name].keys) for name in lost)
    some = "; ".join(f"{changes[name].keys[0]} ({why})" for name, why in list(lost.items())[:SHOWN])
    more = f" and {len(lost) - SHOWN} more layers" if len(lost) > SHOWN else ""
    advice = "Use one that was trained for this model."
    if all(map(_names_text, lost)):
        advice = "It is the text encoder's part that does not fit: use another, or leave that part out with text_strength=0."
    return f"lora {path}: {total - gone} of {total} keys match this {family.name} model; misfits: {some}{more}. {advice}"


def _merge(layer: nn.Module, change: Change, strength: float) -> None:
    weight, bias = weight_of(layer), own(layer, "bias")
    new_weight, new_bias = change.applied(weight.detach(), None if bias is None else bias.detach(), strength)
    if change.weight is not None:
        layer.register_parameter("weight", _like(weight, new_weight.contiguous(memory_format=_layout(weight))))
    if change.bias is not None and new_bias is not None:
        layer.register_parameter("bias", _like(weight if bias is None else bias, new_bias))


def _like(old: Tensor, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new.to(old.dtype), requires_grad=old.requires_grad)


def _layout(weight: Tensor) -> torch.memory_format:
    channels_last = weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format


def _set_module(network: nn.Module, path: str, new: nn.Module) -> None:
    """`path` is one of the network's own, from its module tree."""
    parent, _, leaf = path.rpartition(".")
    network.get_submodule(parent).register_module(leaf, new)
