"""Textual inversion (arXiv:2208.01618): vectors of their own for a word, from a safetensors file.

Read layouts: AUTOMATIC1111's `emb_params` and `*`, SDXL's `clip_l` and `clip_g`, diffusers' `<token>`; one vector (D,) or several (n, D).
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from safelight.families.clip_text import ClipText, Word
from safelight.patches import patch, preserved, tell

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

NAMELESS = ("emb_params", "clip_l", "clip_g", "*")
"""Keys that say what the vectors are for; any other key is the token they stand for."""

INSIDE = "string_to_param."
"""Where a .pt file of AUTOMATIC1111 keeps its one tensor, under `*`."""

LARGEST = 2
"""The end mark of old CLIP configurations, for which transformers takes the largest id instead: with vectors added, another token's."""

ENDINGS = r"(?:\.(?:safetensors|pt|bin))?(?![\w-])"
"""What may follow a name: the file's ending. A longer name is another embedding's."""


def read(path: str) -> dict[str, Tensor]:
    """The file's vectors, (n, D) each, by key. ValueError when it is no embedding."""
    try:
        tensors = load_file(path)
    except SafetensorError as e:
        raise ValueError(f"embedding {path}: not a safetensors file ({e}); convert it first") from e
    tensors = {key.removeprefix(INSIDE): t for key, t in tensors.items()}
    out = {key: t.reshape(-1, t.shape[-1]) for key, t in tensors.items() if t.ndim in (1, 2) and t.is_floating_point()}
    if not out or len(out) < len(tensors) or (len(out) > 1 and not set(out) <= set(NAMELESS)):
        got = ", ".join(sorted(tensors)[:4])
        raise ValueError(f"embedding {path}: got tensors {got}; expected emb_params, clip_l and clip_g, or one token's vectors")
    return out


def describe(path: str, name: str) -> dict[str, Any]:
    """How prompts spell it (`words`: `embedding:name` and the file's own token), how many vectors it has, how wide they are, and how many
    tensors that is (`keys`, all of the file's `total`)."""
    found = read(path)
    return {
        "words": [f"embedding:{name}", *(key for key in found if key not in NAMELESS)],
        "vectors": max(len(v) for v in found.values()),
        "widths": sorted({int(v.shape[1]) for v in found.values()}),
        "keys": len(found), "total": len(found),
    }


def pattern(word: str) -> str:
    """The regular expression of a spelling: `embedding:name` with or without a file's ending, a token of diffusers' as it is."""
    return re.escape(word) + (ENDINGS if word.startswith("embedding:") else "")


@patch
def embedding(family: Family, what: Patch) -> Iterator[None]:
    """Give the option `words`, a list of spellings, the file's vectors in every text tower they are wide enough for; other towers skip the
    words. The strength counts as a weight on the word does; 0 leaves the words plain text."""
    if not what.strength:
        yield
        return
    vectors = read(what.weights.path)
    towers = [tower for tower in vars(family).values() if isinstance(tower, ClipText)]
    widths = [tower.embedding.embedding_dim for tower in towers]
    if not any(v.shape[1] in widths for v in vectors.values()):
        has = ", ".join(sorted({str(v.shape[1]) for v in vectors.values()}))
        raise ValueError(f"embedding {what.weights.path}: vectors of {has}, this {family.name} model's are of {widths or 'no CLIP tower'}")
    fitting = sum(v.shape[1] in widths for v in vectors.values())
    tell(family, what, f"{fitting} of {len(vectors)} tensors matched")
    with ExitStack() as stack:
        for tower in towers:
            stack.enter_context(preserved({"text": tower.model}))
            stack.callback(setattr, tower, "words", tower.words)
            _teach(tower, vectors, what)
        yield


def _teach(tower: ClipText, vectors: Mapping[str, Tensor], what: Patch) -> None:
    layer = tower.embedding
    fitting = [v for v in vectors.values() if v.shape[1] == layer.embedding_dim][:1]
    ids = tuple(range(len(layer.weight), len(layer.weight) + sum(len(v) for v in fitting)))
    words = [Word(pattern(str(w)), ids, what.strength) for w in what.options.get("words", ())]
    if fitting:
        grown = torch.cat([layer.weight.detach(), fitting[0].to(layer.weight)])
        layer.weight, layer.num_embeddings = nn.Parameter(grown, requires_grad=layer.weight.requires_grad), len(grown)
    spelled(tower, words)


def spelled(tower: ClipText, words: Sequence[Word]) -> None:
    """Let the tower know these spellings too, whose ids lie beyond its table: those of tokens that were added."""
    if any(word.ids for word in words):
        for module in tower.model.modules():
            if vars(module).get("eos_token_id") == LARGEST:
                vars(module)["eos_token_id"] = tower.end
    tower.words = (*words, *tower.words)
