"""Captions with and without the words that call what is trained."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import torch

from safelight.values import Row

PARTS = re.compile(r"[,，、]\s*")


def found_trigger(captions: Sequence[str]) -> str:
    """The part between commas that stands last, or else first, in every caption; empty when there is none, or all captions are the same."""
    parts = [[p.strip() for p in PARTS.split(c)] for c in captions]
    if len(set(captions)) < 2:
        return ""
    for place in (-1, 0):
        ends = {p[place] for p in parts}
        if len(ends) == 1 and all(len(p) > 1 for p in parts):
            return ends.pop()
    return ""


def frequencies(captions: Sequence[str]) -> dict[str, int]:
    """How often each part between commas occurs, by name."""
    counts = Counter(p.strip() for c in captions for p in PARTS.split(c) if p.strip())
    return dict(sorted(counts.items()))


def captioned(row: Row, trigger: str, *, several: bool = False) -> tuple[str, ...]:
    """What a picture may be called: its caption in use, or with `several` that of every layer, newest first, each once; a folder's name
    only where there is nothing else."""
    layers = [layer.text for layer in reversed(row.captions) if layer.text and layer.by != "folder"]
    return tuple(dict.fromkeys(layers)) if several and layers else (row.caption or trigger,)


def without(caption: str, trigger: str) -> str:
    """The caption with the trigger and the comma beside it left out: `a fox, in ink style` -> `a fox`."""
    if not trigger or trigger not in caption:
        return caption
    words = re.escape(trigger)
    return re.sub(rf"\s*[,，、]?\s*{words}|{words}\s*[,，、]?\s*", "", caption, count=1).strip(" ,，、")


def varied(caption: str, trigger: str, source: torch.Generator, *, keep: int, shuffle: bool, drop: float) -> str:
    """The parts between commas, each but the first `keep` and the trigger left out with the chance `drop`, then in a drawn order."""
    parts = [p.strip() for p in PARTS.split(caption) if p.strip()]
    chance = torch.rand(len(parts), generator=source).tolist()
    first = parts[:keep]
    rest = [p for p, u in zip(parts[keep:], chance[keep:], strict=True) if u >= drop or p == trigger]
    order = torch.randperm(len(rest), generator=source).tolist() if shuffle else range(len(rest))
    return ", ".join([*first, *(rest[i] for i in order)])
