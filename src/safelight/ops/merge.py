"""Weights of whole models, to be laid into another model's."""
from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from safelight.op import op
from safelight.values import Model, Patch

if TYPE_CHECKING:
    from torch import Tensor

BLOCKS = {"mid_block": "middle", "up_blocks": "out", "conv_norm_out": "out", "conv_out": "out"}
"""Where a U-Net's parts belong; all others are of the input."""


def _weights(model: Model, part: str, blocks: str) -> dict[str, Tensor]:
    """Copies in float32 of a part's weights with the model's LoRAs in them, by the names that `patches.full` has."""
    import torch

    from safelight.patches.full import homes
    from safelight.runtime import lease

    patches = tuple(dataclasses.replace(p, options={**p.options, "merged": True}) if p.kind == "lora" else p for p in model.patches)
    with lease(dataclasses.replace(model, patches=patches), device="cpu", dtype=torch.float32, holder="merge_weights") as family:
        return {
            name: getattr(*places[0]).detach().clone(memory_format=torch.contiguous_format) for name, places in homes(family).items()
            if name.startswith("text_encoder") == (part == "text") and not name.startswith("vae.")
            and blocks in ("all", BLOCKS.get(name.split(".")[1], "input"))
        }


@op(group="model", version=1)
def merge_weights(
    model: Model, base: Model | None = None, *, less: Model | None = None, part: Literal["network", "text"] = "network",
    blocks: Literal["all", "input", "middle", "out"] = "all",
) -> Patch:
    """Take a model's weights, its LoRAs in them, to lay them into another model of the same shape: `with_full`'s strength says how much.

    With `base` and `less` they are those of `base` plus the difference of `model` and `less`: what a fine-tuning added, moved elsewhere.

    Args:
        model: whose weights
        base: for a difference, what it is added to
        less: for a difference, what is taken away
        part: network: the U-Net or transformer; text: the text encoders
        blocks: of a U-Net, only its way down (with what comes before), its middle or its way up
    """
    from safetensors.torch import save

    from safelight.store import current

    if (base is None) != (less is None):
        raise ValueError("merge_weights: base, less: got one of them, expected both for a difference, or none")
    found = _weights(model, part, blocks)
    if base is not None and less is not None:
        for sign, other in ((-1, less), (1, base)):
            there = _weights(other, part, blocks)
            odd = next((n for n in found.keys() | there.keys() if n not in there or n not in found or there[n].shape != found[n].shape), "")
            if odd:
                raise ValueError(f"merge_weights: {odd} is not alike in {model.source} and {other.source}; expected models of one shape")
            found = {name: t.add_(there[name], alpha=sign) for name, t in found.items()}
    if not found:
        raise ValueError(f"merge_weights: {model.source} has no weights for part={part}, blocks={blocks}")
    return Patch("full", current().blob(save(found), ".safetensors"))
