"""Reads the shards that `render` wrote: pictures by number, their attributes, captions made on the fly."""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np

from safelight.embedded.captions import caption

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


def unit(raw: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in [-1, 1]."""
    import torch

    return torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1


@dataclass(frozen=True)
class Shards:
    """All pictures of a folder: `parts` are memory-mapped (N, S, S, 3) uint8 arrays, `rows` their attributes in the same order."""

    parts: tuple[NDArray[np.uint8], ...]
    rows: tuple[dict[str, str], ...]
    offsets: NDArray[np.int64]

    @staticmethod
    def open(folder: Path) -> Shards:
        """Every finished shard, by name. ValueError when there is none."""
        names = sorted(p for p in folder.glob("*-[0-9]*.json"))
        if not names:
            raise ValueError(f"Shards.open: no shards in {folder}; draw some with python -m safelight.embedded.render")
        parts = tuple(np.load(p.with_suffix(".npy"), mmap_mode="r") for p in names)
        rows = tuple(row for p in names for row in json.loads(p.read_text()))
        return Shards(parts, rows, np.cumsum([0, *[len(p) for p in parts]]))

    def __len__(self) -> int:
        return len(self.rows)

    def pixels(self, index: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(index), S, S, 3) uint8."""
        part = np.searchsorted(self.offsets, index, side="right") - 1
        return np.stack([self.parts[p][i - self.offsets[p]] for p, i in zip(part, index, strict=True)])

    def of_kind(self, kind: str) -> NDArray[np.int64]:
        """Numbers of the pictures of one kind (person, scene, object)."""
        return np.array([i for i, r in enumerate(self.rows) if r["kind"] == kind], dtype=np.int64)

    def captions(self, index: NDArray[np.int64], rng: Random, *, drop: float = 0.0, chinese: float = 0.35) -> list[str]:
        """A fresh caption each; `drop` is the share left empty (for guidance), `chinese` the share in Chinese."""
        return ["" if rng.random() < drop else caption(self.rows[i], rng, language="zh" if rng.random() < chinese else "en") for i in index]


def _part(numbers: NDArray[np.int64], held_out: bool) -> NDArray[np.int64]:
    return numbers[19::20] if held_out else np.delete(numbers, np.s_[19::20])


class Mixture:
    """Which picture comes at which place: stateless, so any step can be made again from (seed, step, place)."""

    def __init__(self, shards: Shards, shares: dict[str, float], *, seed: int = 0, held_out: bool = False) -> None:
        """`shares` is the share of each kind in a batch; kinds without pictures are left out. ValueError when none has any.

        Every twentieth picture of a kind is held out: batches are made of the others, or with `held_out` of these alone.
        """
        pools = {kind: _part(shards.of_kind(kind), held_out) for kind in shares}
        self.pools = [p for p in pools.values() if len(p)]
        if not self.pools:
            kinds = ", ".join(shares)
            raise ValueError(f"Mixture: the shards have no picture of {kinds}; draw some with python -m safelight.embedded.render")
        weights = np.array([w for kind, w in shares.items() if len(pools[kind])])
        self.weights = weights / weights.sum()
        self.seed = seed

    def batch(self, step: int, size: int, rank: int = 0) -> NDArray[np.int64]:
        """(size,) picture numbers of this step and rank."""
        rng = np.random.default_rng((self.seed, step, rank))
        kinds = rng.choice(len(self.pools), size, p=self.weights)
        return np.array([self.pools[k][rng.integers(len(self.pools[k]))] for k in kinds], dtype=np.int64)
