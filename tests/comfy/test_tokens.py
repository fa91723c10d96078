"""How a long prompt is cut into chunks, in ComfyUI's way: where a pair of brackets begins and ends decides."""
from __future__ import annotations

import pytest
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from safelight.families.clip_text import ClipText
from safelight.families.clip_words import clip_folder


@pytest.fixture(scope="module")
def clip() -> ClipText:
    words = CLIPTokenizer.from_pretrained(clip_folder("<|endoftext|>"))
    config = CLIPTextConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)
    return ClipText(words, CLIPTextModel(config))


def read(clip: ClipText, text: str) -> list[list[tuple[str, float]]]:
    """Words and weights of each chunk, without marks and padding."""
    marks, words = {clip.begin, clip.end}, clip.tokenizer.decode
    return [[(words([i]), w) for i, w in zip(c.ids, c.weights, strict=True) if i not in marks] for c in clip.chunks(text)]


def test_a_short_stretch_of_one_weight_is_not_cut(clip: ClipText) -> None:
    before = " ".join(["cat"] * 72)
    first, second = read(clip, f"{before} (red green blue sky sea:1.5)")
    assert len(first) == 72 and second == [(w, 1.5) for w in ("red", "green", "blue", "sky", "sea")]


def test_a_long_stretch_is_cut_where_the_chunk_is_full(clip: ClipText) -> None:
    first, second = read(clip, " ".join(["cat"] * 72) + " (" + " ".join(["dog"] * 10) + ":1.5)")
    assert first[72:] == [("dog", 1.5)] * 3 and second == [("dog", 1.5)] * 7
    plain = read(clip, " ".join(["cat"] * 100))
    assert [len(chunk) for chunk in plain] == [75, 25], "words without brackets are one stretch"


def test_a_bracket_ends_a_word(clip: ClipText) -> None:
    assert read(clip, "(red:1.3)dish") == [[("red", 1.3), ("dish", 1.0)]]
    assert [w for w, _ in read(clip, "(red:1.0) dish")[0]] == [w for w, _ in read(clip, "red dish")[0]]
