"""Weights on words: `a (red:1.3) coat` and its relatives, in ComfyUI's reading or AUTOMATIC1111's. Text in, text out; no tokens here."""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

NUDGE = 1.1
"""What a bare pair of brackets multiplies by."""

_MARKS = re.compile(r"(?P<number>:\s*[+-]?(?:\d+\.?\d*|\.\d+)\s*\))|\\[()\[\]\\]|(?P<bracket>[()\[\]])|[^\\()\[\]:]+|[\\:]")


class Piece(NamedTuple):
    """A stretch of the prompt and how strongly it counts; 1.0 is as written. Pieces joined in order are the prompt without its marks."""

    text: str
    weight: float


def parse(text: str, emphasis: str = "comfy") -> list[Piece]:
    """The prompt's pieces in order; `[]` for an empty prompt. `emphasis` is `comfy` or `a1111`; ValueError for another."""
    if emphasis not in EMPHASES:
        raise ValueError(f"prompt: emphasis {emphasis!r} is not known; expected one of {', '.join(EMPHASES)}")
    return EMPHASES[emphasis](text)


def in_comfy(text: str, emphasis: str) -> str:
    """The prompt in ComfyUI's writing, with the weights that another reading gives it."""
    if emphasis == "comfy":
        return text
    plain = ((p.text.replace("(", r"\(").replace(")", r"\)"), p.weight) for p in parse(text, emphasis))
    return "".join(t if w == 1 else f"({t}:{w!r})" for t, w in plain)


def comfy(text: str) -> list[Piece]:
    r"""ComfyUI's reading: `(x)` multiplies by 1.1, `(x:1.3)` sets 1.3 whatever surrounds it, `\(` and `\)` are letters, `[` means nothing.

    A bracket without its partner stays in the text.
    """
    hidden = text.replace(r"\)", "\0)").replace(r"\(", "\0(")
    out: list[Piece] = []
    todo = [(piece, 1.0) for piece in reversed(list(_groups(hidden)))]
    while todo:
        piece, outer = todo.pop()
        if not _is_group(piece):
            out.append(Piece(piece.replace("\0", ""), outer))
            continue
        inside, weight = _explicit(piece[1:-1], outer * NUDGE)
        todo += [(p, weight) for p in reversed(list(_groups(inside)))]
    return out


def _groups(text: str) -> Iterator[str]:
    """Cut into bracketed groups and what lies between; a bracket after \\0 is a letter."""
    start = depth = 0
    for i, c in enumerate(text):
        if c not in "()" or text[i - 1 : i] == "\0":
            continue
        if c == "(":
            if depth == 0 and i > start:
                yield text[start:i]
                start = i
            depth += 1
            continue
        depth -= 1
        if depth == 0:
            yield text[start : i + 1]
            start = i + 1
    if start < len(text):
        yield text[start:]


def _is_group(piece: str) -> bool:
    return len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")" and piece[-2] != "\0"


def _explicit(inside: str, otherwise: float) -> tuple[str, float]:
    """`red:1.3` -> (`red`, 1.3); a text without a finite number behind its last colon keeps it and weighs `otherwise`."""
    at = inside.rfind(":")
    try:
        weight = float(inside[at + 1 :]) if at > 0 else math.nan
    except ValueError:
        weight = math.nan
    return (inside[:at], weight) if math.isfinite(weight) else (inside, otherwise)


def a1111(text: str) -> list[Piece]:
    r"""AUTOMATIC1111's reading: `(x)` times 1.1, `[x]` divided by 1.1, `(x:1.3)` times 1.3, each times what surrounds it.

    `\` before a bracket makes it a letter and is never one itself. A group that is never closed reaches to the end; neighbours of equal
    weight are joined.
    """
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(kind: str, by: float) -> None:
        start = opened[kind].pop()
        weights[start:] = [w * by for w in weights[start:]]

    for mark in _MARKS.finditer(text):
        found = mark.group()
        if mark["bracket"] and found in opened:
            opened[found].append(len(texts))
        elif found == "]" and opened["["]:
            close("[", 1 / NUDGE)
        elif found == ")" and opened["("]:
            close("(", NUDGE)
        elif mark["number"] and opened["("]:
            close("(", float(found[1:-1]))
        else:
            texts.append(found.removeprefix("\\"))
            weights.append(1.0)
    while opened["("]:
        close("(", NUDGE)
    while opened["["]:
        close("[", 1 / NUDGE)
    return _joined(texts, weights)


def _joined(texts: list[str], weights: list[float]) -> list[Piece]:
    out: list[Piece] = []
    for piece, weight in zip(texts, weights, strict=True):
        if out and out[-1].weight == weight:
            out[-1] = Piece(out[-1].text + piece, weight)
        elif piece:
            out.append(Piece(piece, weight))
    return out


EMPHASES: dict[str, Callable[[str], list[Piece]]] = {"comfy": comfy, "a1111": a1111}
