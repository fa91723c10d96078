"""LoRA-drop (arXiv:2402.07721): layers whose LoRA says the most keep it, the others get one in common.

Importance is the sum of ||scale * B A x||^2 over the first steps. The layers that make up the given share of the whole stay; of the others,
those of one size share a LoRA, which begins at no change. The file holds the common one for each of its layers.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.train import parallel
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Change, Pair, Spot, Weights, scale
from safelight.train.trainables.methods.lora import pair
from safelight.train.trainables.products import run

MEASURED = 0.1
"""The share of the steps over which importance is measured; two steps at least, as the first has no change yet."""

KEPT = "lora_drop.kept"
"""1 for a layer with a LoRA of its own, in the order of the layers; trained by nobody."""


class Dropping(Adapter):
    """`sums` are the layers' importances so far; `open` is 1 while they are measured."""

    def __init__(self, layers: Mapping[str, Change], kept: nn.Parameter, share: float, device: torch.device) -> None:
        """`kept` is what all layers look at, on the CPU; what is measured lies on `device`."""
        super().__init__(layers)
        self.kept, self.share = kept, share
        self.sums, self.open = torch.zeros(len(kept), device=device), torch.ones(1)

    def buffers(self) -> Mapping[str, Tensor]:
        """Both."""
        return {"sums": self.sums, "open": self.open}

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """After the measured steps, decide."""
        if step + 1 != min(max(2, round(MEASURED * steps)), steps):
            return
        parallel.mean([self.sums])
        largest, order = self.sums.cpu().sort(descending=True, stable=True)
        before = largest.cumsum(0) - largest
        self.kept.zero_()
        self.kept[order[before < self.share * largest.sum()]] = 1
        self.open.zero_()


@dataclass(frozen=True)
class Dropped(Pair):
    """The layer's own pair, or the common one; measures while `adapter` has its book open. Passes without gradients do not count."""

    at: int
    adapter: list[Dropping]

    def forward(self, layer: nn.Module, x: Tensor, w: Weights) -> Tensor:
        """As the layer's, in its dtype."""
        book = self.adapter[0]
        if torch.is_grad_enabled() and book.open:
            with torch.no_grad():
                down, up, by = self.factors(w)
                inner = run(layer, x, down.to(x.dtype), None).float()
                flat = inner.transpose(0, 1).flatten(1) if isinstance(layer, nn.Conv2d) else inner.reshape(-1, len(down)).t()
                grown = up.flatten(1)  # ||U h||^2 summed over h is that of U (h h^T) U^T
                book.sums[self.at] += (grown.t() @ grown * (flat @ flat.t())).sum() * by**2
        return super().forward(layer, x, w)


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Every layer starts with a LoRA of its own."""
    kept = nn.Parameter(torch.ones(len(spots)), requires_grad=False)
    sizes: dict[torch.Size, int] = {}
    common: dict[int, dict[str, nn.Parameter]] = {}
    book: list[Dropping] = []
    layers = {}
    for i, spot in enumerate(spots):
        which = sizes.setdefault(spot.shape, len(sizes))
        shared = common.setdefault(which, {f"shared_{key}": p for key, p in pair(spot, shape, seed + 1).items()})
        own = pair(spot, shape, seed)
        names = {key: f"{spot.name}.{key}" for key in own} | {key: f"lora_drop.{which}.{key}" for key in shared} | {KEPT: KEPT}
        layers[spot.name] = Change(spot.layer, Dropped(_chosen(i, scale(shape)), i, book), {**own, **shared, KEPT: kept}, names)
    book.append(Dropping(layers, kept, shape.share, spots[0].device))
    return book[0]


def _chosen(at: int, by: float) -> Callable[[Weights], tuple[Tensor, Tensor, float]]:
    def factors(w: Weights) -> tuple[Tensor, Tensor, float]:
        head = "" if w[KEPT][at] else "shared_"
        return w[head + DOWN], w[head + UP], by

    return factors
