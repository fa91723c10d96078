"""JSON from outside: read strictly, and no more of it than a server can bear. Every refusal is a ValueError in plain words."""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

BODY = 10 * 2**20
"""Bytes of a JSON body."""
DEPTH = 64
NODES = 10_000
DIGITS = 20
LOW, HIGH = -(2**63), 2**64 - 1


def read(raw: bytes, most: int = BODY) -> Any:
    """The data: at most `most` bytes of UTF-8, at most DEPTH deep, finite numbers that fit in 64 bits, no key twice."""
    if len(raw) > most:
        raise ValueError(f"the body has {len(raw)} bytes; expected at most {most}")
    try:
        text = raw.decode("utf-8")
        if _deep(text):
            raise ValueError(f"it is more than {DEPTH} levels deep")
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_float, parse_int=_int)
        if "\\ud" in text.lower():  # half of a character, which nothing can be written with
            json.dumps(found, ensure_ascii=False).encode("utf-8")
        return found
    except UnicodeError as e:
        raise ValueError(f"it is not UTF-8: {e}") from e
    except RecursionError as e:
        raise ValueError(f"it is more than {DEPTH} levels deep") from e


def _deep(text: str) -> bool:
    """Whether brackets outside of texts are nested too deep; told without recursion and without building anything."""
    if text.count("[") + text.count("{") <= DEPTH:
        return False
    depth = 0
    for i, piece in enumerate(text.replace("\\\\", "").replace('\\"', "").split('"')):
        if i % 2:
            continue
        for c in piece:
            depth += (c in "[{") - (c in "]}")
            if depth > DEPTH:
                return True
    return False


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} comes twice")
    return found


def _finite(word: str) -> float:
    raise ValueError(f"{word} is no number that JSON has")


def _float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        raise ValueError(f"{word[:40]} is too large for a number")
    return value


def _int(word: str) -> int:
    if len(word) > DIGITS + 1 or not LOW <= (value := int(word)) <= HIGH:
        raise ValueError(f"{word[:40]} does not fit in 64 bits")
    return value


@dataclass(frozen=True)
class Most:
    """What one prompt may ask for: steps of one sampler, pixels of one picture, pictures of one batch, seconds in all, and nodes."""

    steps: int = 1000
    pixels: int = 4096 * 4096
    batch: int = 64
    seconds: float = 24 * 3600.0
    memory: int = 0

    def refused(self, nodes: Iterable[Mapping[str, Any]]) -> str:
        """What the nodes (API form) ask for too much of; empty when nothing."""
        return next((word for node in nodes for word in self._node(node)), "")

    def _node(self, node: Mapping[str, Any]) -> Iterable[str]:
        given = node.get("inputs", {})
        name = f"{node.get('class_type', '')}: "
        training = any(isinstance(given.get(k), int | float) for k in ("rank", "learning_rate"))
        if not training and (steps := _number(given.get("steps"))) > self.steps:
            yield f"{name}steps is {steps:g}; this server allows {self.steps}"
        if (pixels := _side(given, "width", "left", "right") * _side(given, "height", "top", "bottom")) > self.pixels:
            yield f"{name}{pixels:g} pixels; this server allows {self.pixels}"
        for batch in (_number(given.get(k)) for k in ("batch_size", "count", "amount", "num_images_per_prompt")):
            if not training and batch > self.batch:
                yield f"{name}a batch of {batch:g}; this server allows {self.batch}"
        seeds = given.get("seeds")
        if isinstance(seeds, list) and len(seeds) > self.batch:
            yield f"{name}{len(seeds)} seeds; this server allows {self.batch}"


def _side(given: Mapping[str, Any], name: str, *around: str) -> float:
    """A side of the picture that a node makes, with what it puts around."""
    return max(_number(given.get(name), 1), _number(given.get(f"target_{name}"))) + sum(_number(given.get(k)) for k in around)


def _number(given: Any, default: float = 0) -> float:
    return given if isinstance(given, int | float) and not isinstance(given, bool) else default
