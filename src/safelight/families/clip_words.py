"""The words of text encoders whose files have none: CLIP's byte-pair merges (see clip/README.md), T5's pieces (see t5/README.md)."""
from __future__ import annotations

import json
import lzma
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from safelight.disk import place
from safelight.index import home
from safelight.values import digest

WINDOW = 77
FIRST = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that stand for themselves as letters and come first; the others follow, as letters from 256 on."""


@cache
def merges() -> list[tuple[str, str]]:
    """The 48894 pairs, most frequent first."""
    return [(a, b) for a, b in (line.split() for line in _unpacked("clip", "merges.txt.xz").decode().splitlines())]


def vocabulary() -> dict[str, int]:
    """Word -> id: letters, letters that end a word, merged pieces, begin and end."""
    others = [b for b in range(256) if b not in FIRST]
    letters = [chr(b) for b in FIRST] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges()), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


def clip_folder(pad: str) -> Path:
    """A folder with the tokenizer as transformers reads it, made in Safelight's own folder when it is first asked for."""

    def words() -> bytes:
        from transformers import CLIPTokenizer

        made = CLIPTokenizer(vocab=vocabulary(), merges=merges(), pad_token=pad, model_max_length=WINDOW)
        return str(made.backend_tokenizer.to_str()).encode()

    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": pad}
    return _folder(digest("clip 1", pad), words, {"tokenizer_class": "CLIPTokenizer", "model_max_length": WINDOW, **marks})


def t5_folder() -> Path:
    """The same for T5's words."""
    marks = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    return _folder(digest("t5 1"), lambda: _unpacked("t5", "tokenizer.json.xz"), {"tokenizer_class": "T5Tokenizer", **marks})


def _folder(key: str, words: Callable[[], bytes], told: Mapping[str, Any]) -> Path:
    folder = home() / "tokenizers" / key[:12]
    if not (folder / "tokenizer_config.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        place(folder, folder / "tokenizer.json", lambda to: to.write_bytes(words()))
        place(folder, folder / "tokenizer_config.json", lambda to: to.write_text(json.dumps(told), "utf-8"))
    return folder


def _unpacked(*names: str) -> bytes:
    return lzma.decompress(files("safelight.families").joinpath(*names).read_bytes())
