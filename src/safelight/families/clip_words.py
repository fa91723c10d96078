"""CLIP's words: the byte-pair merges that every CLIP and OpenCLIP text encoder was trained with (see clip/README.md)."""
from __future__ import annotations

import json
import lzma
from functools import cache
from importlib.resources import files
from pathlib import Path

from safelight.disk import place
from safelight.index import home
from safelight.values import digest

WINDOW = 77
FIRST = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
"""Bytes that stand for themselves as letters and come first; the others follow, as letters from 256 on."""


@cache
def merges() -> list[tuple[str, str]]:
    """The 48894 pairs, most frequent first."""
    raw = lzma.decompress((files("safelight.families") / "clip" / "merges.txt.xz").read_bytes())
    return [(a, b) for a, b in (line.split() for line in raw.decode().splitlines())]


def vocabulary() -> dict[str, int]:
    """Word -> id: letters, letters that end a word, merged pieces, begin and end."""
    others = [b for b in range(256) if b not in FIRST]
    letters = [chr(b) for b in FIRST] + [chr(256 + i) for i in range(len(others))]
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges()), "<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}


def clip_folder(pad: str) -> Path:
    """A folder with the tokenizer as transformers reads it, made in Safelight's own folder when it is first asked for."""
    from transformers import CLIPTokenizer

    folder = home() / "tokenizers" / digest("clip 1", pad)[:12]
    if not (folder / "tokenizer_config.json").is_file():
        made = CLIPTokenizer(vocab=vocabulary(), merges=merges(), pad_token=pad, model_max_length=WINDOW)
        folder.mkdir(parents=True, exist_ok=True)
        place(folder, folder / "tokenizer.json", lambda to: to.write_text(made.backend_tokenizer.to_str(), "utf-8"))
        marks = {"bos_token": made.bos_token, "eos_token": made.eos_token, "unk_token": made.unk_token, "pad_token": pad}
        told = json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": WINDOW, **marks})
        place(folder, folder / "tokenizer_config.json", lambda to: to.write_text(told, "utf-8"))
    return folder
