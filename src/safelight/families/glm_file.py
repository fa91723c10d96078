"""ChatGLM3 in a file of its own, as ComfyUI's Kolors nodes use it: plain weights, or 8 or 4 bits with a scale a row. No torch here."""
from __future__ import annotations

from safelight.families.layouts import Cut, Layout
from safelight.families.weight_file import WeightFile

PREFIXES = ("", "transformer.", "text_encoder.")
LAYERS = tuple(f"encoder.layers.0.{name}.weight" for name in ("self_attention.query_key_value", "mlp.dense_h_to_4h"))
"""What tells its sizes, beside the words' vectors."""


def chatglm(file: WeightFile) -> Layout | None:
    """The text encoder in a file, or None; its configuration is read from shapes, what they do not tell is ChatGLM3's."""
    for prefix in PREFIXES:
        shapes = file.under(prefix)
        if {"embedding.word_embeddings.weight", *LAYERS} <= shapes.keys():
            break
    else:
        return None
    words, width = shapes["embedding.word_embeddings.weight"]
    qkv, wide = (shapes[name][0] for name in LAYERS)
    head = 4 * shapes.get("rotary_pos_emb.inv_freq", (32,))[0]
    packed = "encoder.layers.0.mlp.dense_h_to_4h.weight_scale" in shapes
    bits = (8 * shapes[LAYERS[1]][1] // width) if packed else 0
    config = {
        "architectures": ["ChatGLMModel"], "padded_vocab_size": words, "hidden_size": width, "ffn_hidden_size": wide // 2,
        "num_layers": sum(name.endswith(".input_layernorm.weight") for name in shapes), "seq_length": 32768, "original_rope": True,
        "kv_channels": head, "num_attention_heads": width // head, "multi_query_attention": True,
        "multi_query_group_num": (qkv - width) // (2 * head), "add_bias_linear": False,
        "add_qkv_bias": "encoder.layers.0.self_attention.query_key_value.bias" in shapes, "quantization_bit": bits,
    }
    return Layout(config, {name: Cut(prefix + name) for name in shapes})
