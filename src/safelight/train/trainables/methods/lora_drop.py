"""LoRA-drop (arXiv:2402.07721): layers whose LoRA says the most keep it, the others get one in common.

Importance is the sum of ||scale * B A x||^2 over the first steps. The layers that make up the given share of the whole stay; of the others,
those of one size share a LoRA, which begins at no change. The file holds the common one for each of its layers.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from safelight.train import parallel
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Form, Spot, Weights, pair, scale
from safelight.train.trainables.methods.lora import narrow
from safelight.train.trainables.products import run

MEASURED = 0.1
"""The share of the steps over which importance is measured; two steps at least, as the first has no change yet."""

KEPT = "lora_drop.kept"
"""1 for a layer with a LoRA of its own, in the order of the layers; trained by nobody."""


Book: TypeAlias = Mapping[str, Tensor]
"""The layers' importances so far in `sums`, and 1 in `open` while they are measured."""


@dataclass(frozen=True)
class Dropping(Adapter):
    """All layers look into the `book` and at `kept`, which is on the CPU."""

    book: Book
    kept: nn.Parameter
    share: float

    def buffers(self) -> Mapping[str, Tensor]:
        """The book."""
        return self.book

    def formed(self, step: int, steps: int) -> bool:
        """Once it is decided which layers keep their own."""
        return step >= measured(steps)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """After the measured steps, decide. Until then the processes agree at every step: a checkpoint holds the first one's sums."""
        left = measured(steps) - step - 1
        if left >= 0:
            parallel.mean([self.book["sums"]])
        if left:
            return
        largest, order = self.book["sums"].cpu().sort(descending=True, stable=True)
        before = largest.cumsum(0) - largest
        self.kept.zero_()
        self.kept[order[before < self.share * largest.sum()]] = 1
        self.book["open"].zero_()


def measured(steps: int) -> int:
    """Over how many steps importance is."""
    return min(max(2, round(MEASURED * steps)), steps)


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Every layer starts with a LoRA of its own."""
    kept = nn.Parameter(torch.ones(len(spots)), requires_grad=False)
    book = {"sums": torch.zeros(len(spots), device=spots[0].device), "open": torch.ones(1)}
    common: dict[torch.Size, tuple[int, dict[str, nn.Parameter]]] = {}
    layers = {}
    for at, spot in enumerate(spots):
        if spot.shape not in common:
            common[spot.shape] = len(common), {f"shared_{key}": p for key, p in narrow(spot, shape, seed + 1).items()}
        which, shared = common[spot.shape]
        own = narrow(spot, shape, seed)
        names = {key: f"{spot.name}.{key}" for key in own} | {key: f"lora_drop.{which}.{key}" for key in shared} | {KEPT: KEPT}
        layers[spot.name] = spot.change(_form(at, scale(shape), book), {**own, **shared, KEPT: kept}, names)
    return Dropping.of(layers, shape, book=book, kept=kept, share=shape.share)


def _form(at: int, by: float, book: Book) -> Form:
    """The layer's own pair, or the common one, measured while the book is open. Passes without gradients do not count."""

    def factors(w: Weights) -> tuple[Tensor, Tensor, float]:
        head = "" if w[KEPT][at] else "shared_"
        return w[head + DOWN], w[head + UP], by

    said, file = pair(factors)

    def forward(layer: Any, x: Tensor, w: Weights) -> Tensor:
        again = torch._C._current_graph_task_id() >= 0  # a checkpointed layer is asked a second time, in the backward pass
        if torch.is_grad_enabled() and book["open"] and not again:
            with torch.no_grad():
                inner, up = run(layer, x, w[DOWN].to(x.dtype), None).float(), w[UP].flatten(1)
                flat = inner.transpose(0, 1).flatten(1) if isinstance(layer, nn.Conv2d) else inner.reshape(-1, up.shape[1]).t()
                # ||U h||^2 summed over h is the sum of the entries of U^T U times h h^T
                book["sums"][at] += (up.t() @ up * (flat @ flat.t())).sum() * by**2
        return said(layer, x, w)

    return forward, file
