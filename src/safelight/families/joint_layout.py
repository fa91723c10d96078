"""How SD3's transformer lies in single files: the original repository's names, and its configuration read from shapes. No torch here."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from safelight.families.layouts import Cut, Layout
from safelight.families.weight_file import Shapes, WeightFile

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")
HEADS = frozenset(["joint_blocks", "x_embedder", "t_embedder", "y_embedder", "context_embedder", "final_layer", "pos_embed"])
"""First words of a transformer's names; in a file without a prefix, other words are notes."""

RULES = (
    (r"^x_embedder\.", "pos_embed."), (r"^pos_embed$", "pos_embed.pos_embed"), (r"^final_layer\.linear\.", "proj_out."),
    (r"^final_layer\.adaLN_modulation\.1\.", "norm_out.linear."), (r"^t_embedder\.", "time_text_embed.timestep_embedder."),
    (r"^y_embedder\.", "time_text_embed.text_embedder."), (r"\.mlp\.0\.", ".linear_1."), (r"\.mlp\.2\.", ".linear_2."),
    (r"^joint_blocks\.", "transformer_blocks."), (r"x_block\.attn(2?)\.proj\.", r"attn\1.to_out.0."),
    (r"x_block\.attn(2?)\.ln_([qk])\.", r"attn\1.norm_\2."), (r"x_block\.adaLN_modulation\.1\.", "norm1.linear."),
    (r"x_block\.mlp\.fc1\.", "ff.net.0.proj."), (r"x_block\.mlp\.fc2\.", "ff.net.2."),
    (r"context_block\.attn\.proj\.", "attn.to_add_out."), (r"context_block\.attn\.ln_([qk])\.", r"attn.norm_added_\1."),
    (r"context_block\.adaLN_modulation\.1\.", "norm1_context.linear."),
    (r"context_block\.mlp\.fc1\.", "ff_context.net.0.proj."), (r"context_block\.mlp\.fc2\.", "ff_context.net.2."),
)
"""Patterns of the original names -> diffusers' names, one after another."""

QKV = re.compile(r"(?P<block>.*\.)(?P<side>x|context)_block\.(?P<attention>attn2?)\.qkv\.(?P<leaf>\w+)$")


def joint(file: WeightFile, prefixes: Sequence[str] = PREFIXES) -> Layout | None:
    """The transformer in a file, or None."""
    for prefix in prefixes:
        shapes = file.under(prefix)
        if "joint_blocks.0.x_block.attn.qkv.weight" in shapes and "context_embedder.weight" in shapes:
            found = {n: s for n, s in shapes.items() if prefix or n.partition(".")[0] in HEADS}
            last = f"joint_blocks.{_blocks(found) - 1}.context_block.adaLN_modulation.1."
            return Layout(joint_config(found), {new: cut for n in found for new, cut in _names(n, prefix, last)})
    return None


def joint_config(shapes: Shapes) -> dict[str, Any]:
    """SD3Transformer2DModel's configuration from shapes by the original names; heads are of 64 channels where no norm of theirs tells."""
    wide, channels, patch, _ = shapes["x_embedder.proj.weight"]
    normed = "joint_blocks.0.x_block.attn.ln_q.weight" in shapes
    head = shapes["joint_blocks.0.x_block.attn.ln_q.weight"][0] if normed else 64
    dual = [i for i in range(_blocks(shapes)) if f"joint_blocks.{i}.x_block.attn2.qkv.weight" in shapes]
    return {
        "sample_size": 128, "patch_size": patch, "in_channels": channels, "num_layers": _blocks(shapes), "attention_head_dim": head,
        "out_channels": shapes["final_layer.linear.weight"][0] // patch**2, "num_attention_heads": wide // head,
        "joint_attention_dim": shapes["context_embedder.weight"][1], "caption_projection_dim": shapes["context_embedder.weight"][0],
        "pooled_projection_dim": shapes["y_embedder.mlp.0.weight"][1], "pos_embed_max_size": math.isqrt(shapes["pos_embed"][1]),
        "dual_attention_layers": dual, "qk_norm": "rms_norm" if normed else None,
    }


def _blocks(shapes: Shapes) -> int:
    return sum(n.endswith(".x_block.attn.qkv.weight") for n in shapes)


def _names(name: str, prefix: str, last: str) -> Iterator[tuple[str, Cut]]:
    if qkv := QKV.match(name):
        block, attention, leaf = qkv["block"].replace("joint_blocks", "transformer_blocks"), qkv["attention"], qkv["leaf"]
        for i, letter in enumerate("qkv"):
            layer = f"to_{letter}" if qkv["side"] == "x" else f"add_{letter}_proj"
            yield f"{block}{attention}.{layer}.{leaf}", Cut(prefix + name, i, 3)
        return
    new = name
    for old, renamed in RULES:
        new = re.sub(old, renamed, new)
    # Where diffusers has a norm that goes on to nothing else, its two halves are the other way round.
    yield new, Cut(prefix + name, swapped=name.startswith((last, "final_layer.adaLN_modulation.")))
