"""Textual inversion (arXiv:2208.01618): vectors for one new word as what is trained; all other vectors, and the model, stay as they are."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from safelight.families.clip_text import ClipText, Word
from safelight.patches import preserved
from safelight.patches.embedding import pattern, spelled
from safelight.train.methods import Token
from safelight.train.trainables.steady import Steady

if TYPE_CHECKING:
    from safelight.families import Family

TWO = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
"""What programs call the vectors of a model with two towers."""


def towers(family: Family) -> dict[str, ClipText]:
    """The text encoders that read a window at a time, by their parts' names."""
    held = {id(tower.model): tower for tower in vars(family).values() if isinstance(tower, ClipText)}
    return {part: held[id(net)] for part, net in family.trainable().items() if id(net) in held}


@dataclass(frozen=True)
class Vectors(Steady):
    """The new word's vectors (n, D) by the file's names. `layers` are the towers that know the word."""

    layers: Mapping[str, ClipText]

    @contextmanager
    def off(self) -> Iterator[None]:
        """The word is plain letters again, for as long as the block lasts."""
        known = {name: tower.words for name, tower in self.layers.items()}
        for tower in self.layers.values():
            tower.words = tower.words[1:]
        try:
            yield
        finally:
            for name, tower in self.layers.items():
                tower.words = known[name]


@contextmanager
def embedding(family: Family, what: Token) -> Iterator[Vectors]:
    """The word that `what` names in every CLIP tower, float32, with the meaning of `init_word`; gone when the block ends.

    ValueError when the model reads its text in another way, or the words are empty.
    """
    known = towers(family)
    if not known:
        raise ValueError(f"train_embedding: this {family.name} model has no CLIP text encoder that a word could be added to; train a LoRA")
    names = TWO if len(known) > 1 else dict.fromkeys(known, "emb_params" if what.layout == "webui" else what.token)
    with ExitStack() as stack:
        parameters: dict[str, nn.Parameter] = {}
        for part, tower in known.items():
            stack.enter_context(preserved({part: tower.model}))
            stack.callback(setattr, tower, "words", tower.words)
            parameters[names[part]] = vectors = nn.Parameter(begin(tower, what))
            layer = tower.embedding
            first = layer.num_embeddings
            vars(layer)["forward"] = _beside(layer.forward, first, vectors)
            spelled(tower, [Word(pattern(what.token), tuple(range(first, first + len(vectors))))])
        yield Vectors(parameters, True, {names[part]: tower for part, tower in known.items()})


def begin(tower: ClipText, what: Token) -> Tensor:
    """(vectors, D) float32: those of `init_word`'s tokens, over and over."""
    ids = tower.tokenizer(what.init_word, add_special_tokens=False)["input_ids"]
    if not ids or not what.token.strip() or not what.init_word.strip():
        raise ValueError(f"train_embedding: token {what.token!r}, init_word {what.init_word!r}; expected a word each")
    table = tower.embedding.weight.detach().float()
    return table[[ids[i % len(ids)] for i in range(what.vectors)]].clone()


def _beside(plain: Callable[[Tensor], Tensor], first: int, vectors: Tensor) -> Callable[[Tensor], Tensor]:
    """The table's lookup, with ids from `first` on looked up in `vectors`."""

    def look(ids: Tensor) -> Tensor:
        known = plain(ids.clamp(max=first - 1))
        own = nn.functional.embedding((ids - first).clamp(min=0), vectors).to(known.dtype)
        return torch.where((ids >= first)[..., None], own, known)

    return look
