"""Prompts through a text tower that reads a window at a time (CLIP, OpenCLIP, BERT): weights on words, prompts of any length."""
from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTextModelWithProjection, CLIPTokenizer, PreTrainedTokenizerFast

from safelight.families.prompt import parse
from safelight.families.sources import Parts

KEEP_TOGETHER = 8
"""A stretch of one weight of fewer tokens than this is not cut at the end of a chunk; ComfyUI's figure."""


@dataclass(frozen=True)
class Token:
    """One token id and how strongly it counts; `fresh` where a stretch begins that stays together: text of one pair of brackets, or a word
    that a patch added."""

    id: int
    weight: float
    fresh: bool


@dataclass(frozen=True)
class Word:
    """A spelling that stands for tokens of its own, whatever the tokenizer makes of it: a regular expression without groups, the ids, and a
    factor on the weight."""

    pattern: str
    ids: tuple[int, ...]
    weight: float = 1.0


@dataclass(frozen=True)
class Chunk:
    """What the tower reads at once: `ids` and `weights` with begin, end and padding, all of the window's length."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class Read:
    """What a tower says of prompts: `tokens` (B, n * window, D), and `pooled` (B, P) of each prompt's first chunk, projected where the
    tower has a projection; nothing where the last layer alone was read."""

    tokens: Tensor
    pooled: Tensor | None


class ClipText:
    """A tokenizer and a text model. `window` is the length of a chunk with its two marks (77 in CLIP, 512 in Taiyi's BERT).

    `base` last layers are always left out (SDXL: 1); `normed` says whether an earlier layer passes the final normalisation. `words` are
    spellings that a patch added.
    """

    words: tuple[Word, ...] = ()

    def __init__(self, tokenizer: Any, model: nn.Module, *, base: int = 0, normed: bool = True) -> None:
        self.tokenizer, self.model, self.base, self.normed = tokenizer, model, base, normed
        config: Any = model.config
        self.layers = int(config.num_hidden_layers)
        self.window = min(int(tokenizer.model_max_length), int(config.max_position_embeddings))
        self.begin, self.end = _mark(tokenizer, "bos", "cls"), _mark(tokenizer, "eos", "sep")
        self.pad = int(tokenizer.pad_token_id) if tokenizer.pad_token_id is not None else self.end

    def tokens(self, text: str) -> list[Token]:
        """The text's tokens, with the weights its brackets say."""
        return tokens(self.tokenizer, text, self.words)

    @property
    def embedding(self) -> nn.Embedding:
        """The table of the tokens' vectors."""
        model: Any = self.model
        table: nn.Embedding = model.get_input_embeddings()
        return table

    def chunks(self, text: str) -> list[Chunk]:
        """At least one chunk, filled as ComfyUI does: long stretches are cut where a chunk ends, short ones go to the next whole."""
        room = self.window - 2
        rows: list[list[Token]] = [[]]
        for stretch in _stretches(self.tokens(text)):
            long = len(stretch) >= min(KEEP_TOGETHER, room)
            while len(rows[-1]) + len(stretch) > room:
                cut = room - len(rows[-1]) if long else 0
                rows[-1] += stretch[:cut]
                stretch = stretch[cut:]
                rows.append([])
            rows[-1] += stretch
        if len(rows) > 1 and not rows[-1]:
            rows.pop()
        return [self._framed(row) for row in rows]

    def _framed(self, row: Sequence[Token]) -> Chunk:
        fill = self.window - 2 - len(row)
        ids = (self.begin, *(t.id for t in row), self.end, *([self.pad] * fill))
        return Chunk(ids, (1.0, *(t.weight for t in row), 1.0, *([1.0] * fill)))

    def encode(self, prompts: Sequence[str], *, skip: int = 0) -> Tensor:
        """The tokens of `read`."""
        return self.read(prompts, skip=skip).tokens

    def read(self, prompts: Sequence[str], *, skip: int = 0) -> Read:
        """Float32; `skip` leaves out that many last layers more. Gradients flow.

        A weighted token is moved along the line from the empty prompt's vector to its own, as ComfyUI does; `pooled` knows no weights.
        Prompts of fewer chunks are repeated up to the common multiple: attention over repeated keys gives what it gives over one of each,
        so a prompt means the same alone and in a batch.
        """
        left_out = self.base + skip
        if not 0 <= left_out < self.layers:
            last = self.layers - 1 - self.base
            raise ValueError(f"encode_text: skip is {skip}; this text tower has {self.layers} layers, so it must be {-self.base} to {last}")
        rows = [self.chunks(p) for p in prompts]
        flat = [c for row in rows for c in row]
        told = any(w != 1.0 for c in flat for w in c.weights)
        hidden, pooled = self._hidden(torch.tensor([c.ids for c in (*flat, self._framed([]))[: len(flat) + told]]), left_out)
        if told:
            hidden = weighted(hidden[:-1], hidden[-1:], [c.weights for c in flat])
        counts = [len(row) for row in rows]
        longest = math.lcm(*counts)
        parts = hidden.split(counts)  # each (chunks, window, D)
        first = None if pooled is None else torch.stack([p[0] for p in pooled[: len(flat)].split(counts)])
        return Read(torch.stack([p.flatten(0, 1).repeat(longest // len(p), 1) for p in parts]), first)

    def plain_attention(self) -> None:
        """Attention whose backward pass is fast on a CPU."""
        model: Any = self.model
        model.set_attn_implementation("eager")

    def _hidden(self, ids: Tensor, left_out: int) -> tuple[Tensor, Tensor | None]:
        model: Any = self.model
        ids = ids.to(next(self.model.parameters()).device)
        if self.normed and not left_out:
            last: Tensor = model(input_ids=ids).last_hidden_state
            return last.float(), None
        out = model(input_ids=ids, output_hidden_states=True)
        state: Tensor = out.hidden_states[-1 - left_out]
        if self.normed:
            state = model.final_layer_norm(state)
        pooled: Tensor | None = out.text_embeds if isinstance(model, CLIPTextModelWithProjection) else out.pooler_output
        return state.float(), None if pooled is None else pooled.float()


def tokens(tokenizer: Any, text: str, words: Sequence[Word] = ()) -> list[Token]:
    """A prompt's tokens. Where spaces are no part of tokens (CLIP, BERT), each stretch of one weight is read by itself, as ComfyUI does;
    elsewhere the text is read whole, so that `(red:1.0)` gives the very ids of `red`, and a token has its last letter's weight."""
    pieces = parse(text)
    letters = [(i, weight) for i, (piece, weight) in enumerate(pieces) for _ in piece]
    plain = "".join(piece for piece, _ in pieces)
    ends = [sum(len(p) for p, _ in pieces[: i + 1]) for i in range(len(pieces))] if _spaces_are_nothing(tokenizer) else [len(plain)]
    out: list[Token] = []
    for begin, end in pairwise((0, *ends)):
        for start, stop, word in _spellings(plain[begin:end], words):
            here = letters[begin + start : begin + stop]
            if word is not None:
                out += [Token(id, here[-1][1] * word.weight, i == 0) for i, id in enumerate(word.ids)]
            else:
                out += _spelled(tokenizer, plain[begin + start : begin + stop], here)
    return out


def _spaces_are_nothing(tokenizer: Any) -> bool:
    one, other = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a", " a"))
    return bool(one == other)


def _spellings(plain: str, words: Sequence[Word]) -> Iterator[tuple[int, int, Word | None]]:
    """(start, stop, the word it is) from the first letter to the last; of several words that fit, the one with the longest pattern."""
    known, at = sorted(words, key=lambda w: -len(w.pattern)), 0
    for found in re.finditer("|".join(f"({w.pattern})" for w in known), plain) if known else ():
        yield at, found.start(), None
        yield found.start(), found.end(), known[(found.lastindex or 1) - 1]
        at = found.end()
    yield at, len(plain), None


def _spelled(tokenizer: Any, plain: str, letters: Sequence[tuple[int, float]]) -> list[Token]:
    """Tokens of a text whose letters have each the number of their stretch and their weight."""
    read = tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)
    out: list[Token] = []
    before = -1
    for token, (_, stop) in zip(read["input_ids"], read["offset_mapping"], strict=True):
        stretch, weight = letters[max(stop - 1, 0)] if letters else (0, 1.0)
        out.append(Token(int(token), weight, stretch != before))
        before = stretch
    return out


def weighted(hidden: Tensor, empty: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """(N, L, D) moved from the empty prompt's (1, L, D) to beyond or before its own, each token by its weight; 1 is left as it is."""
    w = torch.tensor(weights, device=hidden.device)[..., None]
    return torch.where(w == 1.0, hidden, empty + (hidden - empty) * w)


def side_by_side(read: Sequence[Tensor]) -> Tensor:
    """Several towers' tokens (B, L, D) as one, (B, L, D1 + D2); as long as the shortest, as ComfyUI."""
    length = min(t.shape[1] for t in read)
    return torch.cat([t[:, :length] for t in read], dim=-1)


def tokenizer(parts: Parts, part: str = "tokenizer") -> Any:
    """A model's fast tokenizer, in any of the layouts they are stored in. ValueError when there is none."""
    place = parts.folder(part)
    made: dict[str, Any] = {"tokenizer.json": PreTrainedTokenizerFast, "vocab.json": CLIPTokenizer, "vocab.txt": BertTokenizer}
    for name, cls in made.items():
        if (place / name).is_file():
            return cls.from_pretrained(place, local_files_only=True)
    raise ValueError(f"model {parts.source}: no {', '.join(made)} under {part}/")


def _stretches(tokens: Sequence[Token]) -> list[list[Token]]:
    out: list[list[Token]] = []
    for token in tokens:
        if token.fresh:
            out.append([])
        out[-1].append(token)
    return out


def _mark(tokenizer: Any, *names: str) -> int:
    for name in names:
        found = getattr(tokenizer, f"{name}_token_id")
        if found is not None:
            return int(found)
    raise ValueError(f"tokenizer: no {names[0]}_token; a text tower needs begin and end marks (tokenizer_config.json)")
