"""CLIP's tokenizer from its merges alone: the ids are transformers', and those of the algorithm."""
from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from transformers import CLIPTokenizer, PreTrainedTokenizerFast

from safelight.families import clip_words


def texts() -> list[str]:
    """Prompts in several scripts, with the signs that tokenizers differ on, and every printable byte."""
    words = ["a", "photo", "of", "A", "Cat's", "eye,", "highly-detailed!!", "4k", "(masterpiece:1.2)",
             "don't", "we'll", "I'm", "it's", "3.14", "§µ", "naïve", "café", "ÀÉÎ", "ﬁne", "１２", "²³", "Ⅳ"]
    marks = ["", " ", "\t\n x", "é", "e\u0301", "一个紫色短发的女孩,微笑", "приве́т мир", "こんにちは", "🙂👍🏽 ok", "'S 'T's"]
    marks += ["<|endoftext|>", "a<|startoftext|>b"]
    many = [" ".join(words[i:] + words[:i])[: 7 + 5 * i] for i in range(len(words))]
    return [*marks, *many, *(chr(i) * 3 + f" x{chr(i)}y" for i in range(33, 383))]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_clips_words_are_transformers_words(pad: str, tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps(clip_words.vocabulary()))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in clip_words.merges()))
    reference = CLIPTokenizer.from_pretrained(tmp_path, pad_token=pad)
    ours = PreTrainedTokenizerFast.from_pretrained(clip_words.clip_folder(pad))
    some = texts()
    assert len(some) > 300
    for options in ({}, {"padding": "max_length", "max_length": 77, "truncation": True}):
        assert ours(some, **options)["input_ids"] == reference(some, **options)["input_ids"]
    assert ours.model_max_length == 77
    assert ours("a photo of a cat")["input_ids"] == [49406, 320, 1125, 539, 320, 2368, 49407]  # as published
    assert (ours.pad_token_id, ours.bos_token_id, ours.eos_token_id) == (0 if pad == "!" else 49407, 49406, 49407)


def test_clips_words_by_the_rule_of_byte_pairs() -> None:
    """Against the algorithm itself: join the most frequent pair first."""
    ranks, ids = {pair: i for i, pair in enumerate(clip_words.merges())}, clip_words.vocabulary()
    letters = {b: w for w, b in zip(ids, [*clip_words.FIRST, *(b for b in range(256) if b not in clip_words.FIRST)], strict=False)}
    ours = PreTrainedTokenizerFast.from_pretrained(clip_words.clip_folder("!"))
    for word in ("masterpiece", "chiaroscuro", "xylophone", "вид", "紫", "zzzzzzzzz"):
        pieces = [letters[b] for b in word.encode()]
        pieces[-1] += "</w>"
        while pairs := [p for p in pairwise(pieces) if p in ranks]:
            best, out = min(pairs, key=ranks.__getitem__), list[str]()
            for piece in pieces:
                joins = bool(out) and (out[-1], piece) == best
                out[-1:] = [out[-1] + piece] if joins else [*out[-1:], piece]
            pieces = out
        assert ours(word, add_special_tokens=False)["input_ids"] == [ids[p] for p in pieces]
