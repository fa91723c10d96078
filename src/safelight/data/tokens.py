"""How long captions are in a model's tokens, without loading a network."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from safelight.families.sources import open_model, read_config
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
    second = model.family == "sdxl"  # a refiner has the second tower alone, and SDXL counts by it
    part, tower = ("tokenizer_2", "text_encoder_2") if second else ("tokenizer", "text_encoder")

    @cache
    def whole() -> Any:
        from safelight.families import clip_text

        return clip_text.tokenizer(parts, part)

    def weighed(text: str) -> int:
        from safelight.families import clip_text

        return len(clip_text.tokens(whole(), text))

    place = parts.folder(part)
    named, config = place / "tokenizer_config.json", parts.config(tower)
    longest = (read_config(named) if named.is_file() else {}).get("model_max_length") or whole().model_max_length
    window = min(int(longest), int(config.get("max_position_embeddings", longest)))
    return Ruler(_light(place / "tokenizer.json") if (place / "tokenizer.json").is_file() else weighed, window - 2)


def _light(file: Path) -> Callable[[str], int]:
    """Counts as `clip_text.tokens`, without transformers, whose import takes longer than a folder of captions."""
    from tokenizers import Tokenizer

    from safelight.families.prompt import parse

    words = Tokenizer.from_file(str(file))
    words.no_truncation()
    words.no_padding()

    apart = words.encode("a", add_special_tokens=False).ids == words.encode(" a", add_special_tokens=False).ids

    def count(text: str) -> int:
        pieces = [piece for piece, _ in parse(text)]  # where spaces are no part of tokens, what has a weight of its own is read by itself
        return sum(len(words.encode(p, add_special_tokens=False).ids) for p in (pieces if apart else ["".join(pieces)]))

    return count
