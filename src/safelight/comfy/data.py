"""Numbers and texts that are known only while a prompt runs, and pictures with transparency: values that no op of ours makes."""
from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

from safelight.codec import RECORDS
from safelight.disk import put
from safelight.op import Knob, Op, op
from safelight.values import Image, Model, Value, canonical, digest

SAYS: dict[str, Op[..., Any]] = {}
"""The ops here; they are run beside those of `safelight.ops`."""


@dataclass(frozen=True)
class Data(Value):
    """JSON data. What a node's slots hold is a list, one item a slot."""

    type_name: ClassVar[str] = "DATA"
    data: Any

    @property
    def key(self) -> str:
        """The data."""
        return digest("data", canonical(self.data))

    def save(self, path: str | Path) -> list[Path]:
        """A text as .txt, anything else as .json; the next free name."""
        plain = isinstance(self.data, str)
        stem, suffix = Path(path), ".txt" if plain else ".json"
        stem.parent.mkdir(parents=True, exist_ok=True)
        taken = sum(1 for _ in stem.parent.glob(f"{stem.name}_*{suffix}"))
        file = stem.with_name(f"{stem.name}_{taken + 1:05}_{suffix}")
        put(file, (self.data if plain else json.dumps(self.data, ensure_ascii=False)).encode())
        return [file]


@dataclass(frozen=True, eq=False)
class Clear(Image):
    """Pictures that are clear where `clear`, (B, H, W) float32, is 1. What takes pictures takes their colours."""

    clear: Any = None

    @cached_property
    def key(self) -> str:
        """The pictures and where they are clear."""
        return digest("clear", Image(self.pixels).key, self.clear.tobytes())


def bytes8(image: Image) -> Any:
    """(B, H, W, 3) uint8 for a file, or 4 with transparency."""
    import numpy as np

    solid = [((1 - image.clear[..., None]) * np.float32(255)).clip(0, 255).astype(np.uint8)] if isinstance(image, Clear) else []
    return np.concatenate([image.bytes8(), *solid], axis=-1)


RECORDS |= {"Data": Data, "Clear": Clear}


@dataclass(frozen=True)
class Later:
    """A slot whose value is an item of what a node of ours says when it has run."""

    id: str
    item: int = 0

    def said(self, known: Mapping[str, Any]) -> Any:
        """The item, when the node has run. `Unsaid` when it has not."""
        if self.id not in known:
            raise Unsaid(self.id)
        return known[self.id][self.item]


class Unsaid(Exception):
    """A node has to run before the rest of the prompt is known. `args[0]` is its id."""


@op(group="image", registry=SAYS, store=False)
def image_size(image: Image) -> Data:
    """Width, height and number of pictures."""
    return Data([image.pixels.shape[2], image.pixels.shape[1], len(image)])


@op(group="latent", registry=SAYS, store=False)
def sigma_at(model: Model, *, share: Annotated[float, Knob(0, 1)] = 0.0, exact: bool = False) -> Data:
    """The noise level at a share of the way; unless `exact`, the ends are taken for endless noise and none."""
    from safelight.runtime import lease
    from safelight.sampling.process import process

    with lease(model, holder="sigma_at") as family:
        way = process(family)
    if share in (0.0, 1.0):
        ends = (float(way.table[-1]), float(way.table[0])) if exact else (999999999.9, 0.0)
        return Data([ends[int(share)]])
    import torch

    return Data([way.at(torch.tensor((1.0 - share) * way.span[0]))])


@op(group="text", registry=SAYS, store=False)
def say(text: str) -> Data:
    """A text to look at."""
    return Data(text)


@op(group="text", registry=SAYS, store=False)
def describe(value: Value) -> Data:
    """In one line what a value is."""
    if isinstance(value, Image):
        return Data("IMAGE {2} x {1}, {0}".format(*value.pixels.shape))
    return Data(value.data if isinstance(value, Data) else f"{value.type_name} {value.key}")
