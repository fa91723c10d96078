"""T5's encoder (arXiv:1910.10683, in its version 1.1) in single files: inside a checkpoint, or alone. No torch here."""
from __future__ import annotations

from safelight.families.layouts import Cut, Layout
from safelight.families.weight_file import WeightFile

PREFIXES = ("text_encoders.t5xxl.transformer.", "text_encoder_3.", "")
SAME = ("shared.weight", "encoder.embed_tokens.weight")
"""Two names of the words' vectors; files have one of them or both."""


def t5(file: WeightFile) -> Layout | None:
    """The text encoder in a file, or None; everything but the activation is read from shapes."""
    for prefix in PREFIXES:
        shapes = {n: s for n, s in file.under(prefix).items() if n.startswith(("shared.", "encoder."))}
        first = {n.removeprefix("encoder.block.0.layer."): s for n, s in shapes.items() if n.startswith("encoder.block.0.layer.")}
        words = next((n for n in SAME if n in shapes), None)
        if words and {"0.SelfAttention.q.weight", "0.SelfAttention.relative_attention_bias.weight"} <= first.keys():
            break
    else:
        return None
    gated = "1.DenseReluDense.wi_0.weight" in first
    buckets, heads = first["0.SelfAttention.relative_attention_bias.weight"]
    config = {
        "architectures": ["T5EncoderModel"], "vocab_size": shapes[words][0], "d_model": shapes[words][1],
        "d_kv": first["0.SelfAttention.q.weight"][0] // heads, "num_heads": heads, "relative_attention_num_buckets": buckets,
        "d_ff": first["1.DenseReluDense.wi_0.weight" if gated else "1.DenseReluDense.wi.weight"][0],
        "num_layers": sum(n.endswith(".SelfAttention.q.weight") for n in shapes), "feed_forward_proj": "gated-gelu" if gated else "relu",
    }
    return Layout(config, {n: Cut(prefix + n) for n in shapes} | {n: Cut(prefix + words) for n in SAME})
