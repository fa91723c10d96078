"""How long captions are in a model's tokens, without loading a network."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from safelight.families.sources import open_model
from safelight.values import Model


@dataclass(frozen=True)
class Ruler:
    """`count` says how many tokens a caption takes, without begin and end marks; `room` is how many the model reads at once.

    More than that are cut by most trainers. Safelight reads further windows, but for Kolors, which has one.
    """

    count: Callable[[str], int]
    room: int


def ruler(model: Model) -> Ruler:
    """The model's own tokenizer; of several the first. ValueError when it has none."""
    parts = open_model(model)
    if model.family == "kolors":
        from safelight.families import chatglm

        words = chatglm.words(parts)
        return Ruler(lambda text: len(words.encode(text, add_special_tokens=False).ids), chatglm.LENGTH - len(chatglm.PREFIX))
    from safelight.families import clip_text

    second = model.family == "sdxl"  # a refiner has the second tower alone, and SDXL counts by it
    tokenizer: Any = clip_text.tokenizer(parts, "tokenizer_2" if second else "tokenizer")
    config = parts.config("text_encoder_2" if second else "text_encoder")
    window = min(int(tokenizer.model_max_length), int(config.get("max_position_embeddings", tokenizer.model_max_length)))
    return Ruler(lambda text: len(clip_text.tokens(tokenizer, text)), window - 2)
