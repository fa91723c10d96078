"""A small real CLIP pair with random weights, written as the embedded one is: `clip/` and `tokenizer/` side by side."""
from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

from tests.tiny import tokenizer


def write(folder: Path, *, seed: int = 0, size: int = 32) -> Path:
    """The folder that holds both; its `clip` is what ClipTowers.load takes."""
    words = tokenizer(48)
    marks = {"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id}
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = CLIPTextConfig(vocab_size=len(words), max_position_embeddings=48, **shape, **marks)
    vision = CLIPVisionConfig(image_size=size, patch_size=8, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
    model.save_pretrained(folder / "clip")
    words.save_pretrained(folder / "tokenizer")
    return folder
