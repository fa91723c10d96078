"""Prompts through a CLIP text tower: weights on words, prompts of any length."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from safelight.families.prompt import parse

KEEP_TOGETHER = 8
"""A word of fewer tokens than this is not cut at the end of a chunk; ComfyUI's figure."""


@dataclass(frozen=True)
class Token:
    """One token id and how strongly it counts; `fresh` where a new word begins."""

    id: int
    weight: float
    fresh: bool


@dataclass(frozen=True)
class Chunk:
    """What the tower reads at once: `ids` and `weights` with begin, end and padding, all of the window's length."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


class ClipText:
    """A tokenizer and a `CLIPTextModel`. `window` is the length of a chunk with its two marks (77 in CLIP)."""

    def __init__(self, tokenizer: Any, model: nn.Module) -> None:
        self.tokenizer, self.model = tokenizer, model
        config: Any = model.config
        self.layers = int(config.num_hidden_layers)
        self.window = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        self.begin, self.end = _mark(tokenizer, "bos"), _mark(tokenizer, "eos")
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.end

    def tokens(self, text: str) -> list[Token]:
        """The text's tokens. It is tokenized whole, so `(red:1.0)` gives the very ids of `red`; a token has its last letter's weight."""
        pieces = parse(text)
        plain = "".join(piece for piece, _ in pieces)
        weights = [w for piece, w in pieces for _ in piece]
        read = self.tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
        out: list[Token] = []
        for token, (start, stop) in zip(read["input_ids"], read["offset_mapping"], strict=True):
            weight = weights[max(stop - 1, 0)] if weights else 1.0
            spaced = start == 0 or plain[start - 1].isspace() or plain[start : start + 1].isspace()
            out.append(Token(int(token), weight, not out or spaced or weight != out[-1].weight))
        return out

    def chunks(self, text: str) -> list[Chunk]:
        """At least one chunk; words stay whole where they fit."""
        room = self.window - 2
        rows: list[list[Token]] = [[]]
        for word in _words(self.tokens(text)):
            while len(rows[-1]) + len(word) > room:
                cut = room - len(rows[-1]) if len(word) >= KEEP_TOGETHER else 0
                rows[-1] += word[:cut]
                word = word[cut:]
                rows.append([])
            rows[-1] += word
        if len(rows) > 1 and not rows[-1]:
            rows.pop()
        return [self._framed(row) for row in rows]

    def _framed(self, row: Sequence[Token]) -> Chunk:
        fill = self.window - 2 - len(row)
        ids = (self.begin, *(t.id for t in row), self.end, *([self.pad] * fill))
        return Chunk(ids, (1.0, *(t.weight for t in row), 1.0, *([1.0] * fill)))

    def encode(self, prompts: Sequence[str], *, skip: int = 0) -> Tensor:
        """(B, n * window, D) float32; `skip` leaves out that many last layers. Gradients flow.

        A weighted token is moved along the line from the empty prompt's vector to its own, as ComfyUI does. Prompts of fewer chunks are
        repeated up to the common multiple: attention over repeated keys gives what it gives over one of each, so a prompt
        means the same alone and in a batch.
        """
        if not 0 <= skip < self.layers:
            raise ValueError(f"encode_text: skip is {skip}; this text tower has {self.layers} layers, so it must be 0 to {self.layers - 1}")
        rows = [self.chunks(p) for p in prompts]
        flat = [c for row in rows for c in row]
        weighted = any(w != 1.0 for c in flat for w in c.weights)
        hidden = self._hidden(torch.tensor([c.ids for c in (*flat, self._framed([]))[: len(flat) + weighted]]), skip)
        if weighted:
            empty, w = hidden[-1:], torch.tensor([c.weights for c in flat], device=hidden.device)[..., None]
            hidden = torch.where(w == 1.0, hidden[:-1], empty + (hidden[:-1] - empty) * w)
        longest = math.lcm(*[len(row) for row in rows])
        parts = hidden.split([len(row) for row in rows])  # each (chunks, window, D)
        return torch.stack([p.flatten(0, 1).repeat(longest // len(p), 1) for p in parts])

    def _hidden(self, ids: Tensor, skip: int) -> Tensor:
        model: Any = self.model
        ids = ids.to(next(self.model.parameters()).device)
        if not skip:
            last: Tensor = model(input_ids=ids).last_hidden_state
            return last.float()
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        normed: Tensor = model.final_layer_norm(states[-1 - skip])
        return normed.float()


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if token.fresh:
            words.append([])
        words[-1].append(token)
    return words


def _mark(tokenizer: Any, which: str) -> int:
    found = getattr(tokenizer, f"{which}_token_id")
    if found is None:
        raise ValueError(f"tokenizer: no {which}_token; a CLIP text tower needs begin and end marks (tokenizer_config.json)")
    return int(found)
