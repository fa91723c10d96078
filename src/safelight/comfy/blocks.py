"""A network's blocks by the names that ComfyUI's merging nodes have for them: those of the original repositories."""
from __future__ import annotations

import re
from collections.abc import Sequence

from safelight.comfy.data import SAYS
from safelight.op import op
from safelight.values import Patch

PLACES = {
    "conv_in": "input_blocks.0", "time_embedding": "time_embed", "add_embedding": "label_emb", "class_embedding": "label_emb",
    "conv_norm_out": "out", "conv_out": "out", "pos_embed": "x_embedder", "pos_embed.pos_embed": "pos_embed", "norm_out": "final_layer",
    "context_embedder": "context_embedder", "proj_out": "final_layer",
    "time_text_embed.timestep_embedder": "t_embedder", "time_text_embed.text_embedder": "y_embedder",
}
UNET = re.compile(r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")


def block(name: str) -> str:
    """The block of a weight named as in a file of `merge_weights`: `input_blocks.4`, `joint_blocks.7`, `out`; empty when it is none's."""
    first, second, *_ = path = [*name.split(".")[1:], ""]
    if first == "transformer_blocks":
        return f"joint_blocks.{second}"
    found = UNET.match(".".join(path))
    if found is None:
        return PLACES.get(f"{first}.{second}") or PLACES.get(first, "")
    way, kind, at = found[1], found[3], int(found[4])
    if way == "mid":
        return f"middle_block.{1 if kind == 'attentions' else 2 * at}"
    place = 3 * int(found[2]) + (2 if kind.endswith("samplers") else at)  # a level has two resnets on the way down, three up
    return f"input_blocks.{place + 1}" if way == "down" else f"output_blocks.{place}"


@op(group="model", registry=SAYS, version=1)
def take_blocks(weights: Patch, *, names: Sequence[str], other: bool = False) -> Patch:
    """Of a network's weights only those of some blocks; `other`: also those that belong to no block."""
    from safetensors.torch import load_file, save

    from safelight.store import current

    held = {name: t for name, t in load_file(weights.weights.path).items() if (b := block(name)) in names or (other and not b)}
    return Patch("full", current().blob(save(held), ".safetensors"))
