"""The words of a sentencepiece model file (BPE) as a fast tokenizer: same ids, with each token's place in the text.

The file is a protocol buffer: field 1 repeated are the pieces (1 text, 2 score, 3 kind), field 2 the training (3 model type, 35 byte
fallback), field 3 the normalisation (2 a table, 3 whether a space is put before the text, 4 whether spaces are trimmed).
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers

BPE, NORMAL = 2, 1
SPACE = "▁"


def read(path: Path) -> Tokenizer:
    """Words are merged by score, best first; what is in no piece becomes its bytes. ValueError for another kind of model.

    OSError when there is no such file.
    """
    pieces: list[tuple[str, float, int]] = []
    told: dict[int, dict[int, Any]] = {}
    try:
        for number, value in _fields(path.read_bytes()):
            if number == 1:
                said = dict(_fields(value))
                pieces.append((said[1].decode(), struct.unpack("<f", said.get(2, bytes(4)))[0], said.get(3, NORMAL)))
            elif number in (2, 3):
                told[number] = dict(_fields(value))
    except (IndexError, KeyError, TypeError, AttributeError, UnicodeDecodeError, struct.error) as e:
        raise ValueError(f"tokenizer {path}: not a sentencepiece model ({type(e).__name__}: {e})") from e
    training, normal = told.get(2, {}), told.get(3, {})
    if training.get(3) != BPE or not training.get(35) or normal.get(2) or normal.get(4, 1):
        raise ValueError(f"tokenizer {path}: expected a BPE model with byte fallback that keeps letters and spaces, as ChatGLM's")
    made = Tokenizer(_merged(pieces))
    before = [normalizers.Prepend(SPACE)] if normal.get(3, 1) else []
    made.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    return made


def _merged(pieces: list[tuple[str, float, int]]) -> models.BPE:
    """Every way to make a piece of two is a merge, and of two merges that of the better piece is first."""
    normal = {text for text, _, kind in pieces if kind == NORMAL}
    ways = [
        (-score, text[:i], text[i:])
        for text, score, kind in pieces if kind == NORMAL
        for i in range(1, len(text)) if text[:i] in normal and text[i:] in normal
    ]
    ways.sort(key=lambda way: way[0])
    vocabulary = {text: i for i, (text, _, _) in enumerate(pieces)}
    return models.BPE(vocabulary, [(a, b) for _, a, b in ways], unk_token=pieces[0][0], fuse_unk=True, byte_fallback=True)


def _fields(raw: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) in order: an integer, or the bytes of a text, a message or a float."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise IndexError(f"wire type {kind} at byte {at}")
        length, at = _varint(raw, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
        if at + length > len(raw):
            raise IndexError(f"{length} bytes wanted at byte {at} of {len(raw)}")
        yield key >> 3, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (raw[at] & 127) << shift
        shift += 7
        at += 1
        if raw[at - 1] < 128:
            return number, at
