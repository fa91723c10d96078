"""Prompts through ChatGLM3, Kolors' text encoder: Chinese and English, 256 tokens, weights of 16, 8 or 4 bits."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.pipelines.kolors import text_encoder as glm
from tokenizers import Tokenizer
from torch import Tensor, nn

from safelight.families import sentencepieces
from safelight.families.clip_text import Read
from safelight.families.sources import Parts
from safelight.families.weight_only import BITS, WeightOnly

LENGTH = 256
PREFIX = ("[gMASK]", "sop")
MARKS = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
"""ChatGLM's own tokens; their ids follow those of the vocabulary."""

LAYERS = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
"""The layers whose weights a quantized file stores in few bits."""


class ChatGLMModel(glm.ChatGLMModel):  # type: ignore[misc]
    """diffusers' class, which also reads quantized weights: `quantization_bit` in its configuration is 8 or 4."""

    def __init__(self, config: Any, device: torch.device | None = None, empty_init: bool = False) -> None:
        # Not its own empty start, which takes memory where a loader asked for none.
        super().__init__(config, device=device, empty_init=empty_init)
        if config.quantization_bit:
            if config.quantization_bit not in BITS:
                raise ValueError(f"text_encoder: quantization_bit is {config.quantization_bit}; expected 4, 8, or 0 for plain weights")
            for block in self.encoder.layers:
                for name in LAYERS:
                    parent, _, leaf = name.partition(".")
                    holder: nn.Module = getattr(block, parent)
                    setattr(holder, leaf, WeightOnly(getattr(holder, leaf), config.quantization_bit))


class ChatGLMText:
    """The tokenizer and the model. Prompts are read as they are written: this encoder has no empty prompt's vector beside every token's,
    so brackets weigh nothing and are letters, as in every program that runs Kolors."""

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """ValueError when a part is missing or foreign."""
        self.words = words(parts)
        self.model: Any = parts.build("text_encoder", ChatGLMModel, device=device, dtype=dtype)
        known = self.words.get_vocab_size()
        self.prefix = [known + MARKS.index(mark) for mark in PREFIX]
        self.device = device

    def tokens(self, text: str) -> list[int]:
        """The text's ids, all of them."""
        ids: list[int] = self.words.encode(text, add_special_tokens=False).ids
        return ids

    def read(self, prompts: Sequence[str], *, skip: int = 0) -> Read:
        """`tokens` (B, 256, D) of the last layer but one (`skip`: that many before it), `pooled` (B, D) of the last at the last token.

        Short prompts are filled up on the left, long ones are cut.
        """
        layers = int(self.model.config.num_layers)
        if not -1 <= skip < layers:
            raise ValueError(f"encode_text: skip is {skip}; this text encoder has {layers} layers, so it must be -1 to {layers - 1}")
        rows = [[*self.prefix, *self.tokens(p)][:LENGTH] for p in prompts]
        fill = [LENGTH - len(row) for row in rows]
        ids = [[0] * n + row for n, row in zip(fill, rows, strict=True)]
        shown = [[0] * n + [1] * len(row) for n, row in zip(fill, rows, strict=True)]
        places = [[0] * n + list(range(len(row))) for n, row in zip(fill, rows, strict=True)]
        told = {"input_ids": ids, "attention_mask": shown, "position_ids": places}
        fed = {name: torch.tensor(numbers, device=self.device) for name, numbers in told.items()}
        said = self.model(**fed, output_hidden_states=True, use_cache=False, return_dict=True)
        states: tuple[Tensor, ...] = said.hidden_states  # (256, B, D) each
        return Read(states[-2 - skip].transpose(0, 1).float(), states[-1][-1].float())


def words(parts: Parts) -> Tokenizer:
    """Kolors as first published has its words beside the text encoder's weights."""
    for part in ("tokenizer", "text_encoder"):
        try:
            place = parts.folder(part) / "tokenizer.model"
        except ValueError:
            continue
        if place.is_file():
            return sentencepieces.read(place)
    raise ValueError(f"model {parts.source}: no tokenizer.model under tokenizer/ or text_encoder/; ChatGLM's words are in it")
