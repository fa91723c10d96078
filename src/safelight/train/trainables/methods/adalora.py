"""AdaLoRA (arXiv:2303.10512): P diag(L) Q with P and Q held orthogonal; ranks that matter little are taken from layers on the way.

An entry's importance is |weight * gradient|, smoothed, times how much it varies; a rank's is that of its number in L plus the means over
its column of P and its row of Q. The ranks left fall along a cubic from half as many again to `rank` a layer. One that was taken may return
until the last phase, when those left are only trained. The file is a plain LoRA of the ranks that are not zero, exactly.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from safelight.train.batches import generator
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Change, Spot, Weights, pair, scale

P, L, Q = "lora_p", "lora_l", "lora_q"
WIDER, FIRST, LAST, TIMES, MEMORY, GAMMA = 1.5, 0.1, 0.3, 100, 0.85, 0.5
"""Ranks at first, as a multiple; shares of the steps before they fall and after; how often they are chosen in a run; the means' decay; what
P's and Q's distance from orthogonal ones counts in the loss."""


@dataclass(frozen=True)
class Allocating(Adapter):
    """`importance` and `variation` are running means for every parameter; `mask` is 1 for ranks in use, all layers' in a row, of which
    `target` are left in the end."""

    importance: Mapping[str, Tensor]
    variation: Mapping[str, Tensor]
    mask: Tensor
    target: int

    @property
    def sizes(self) -> list[int]:
        """How many ranks each layer starts with."""
        return [len(one.weights[L]) for one in self.layers.values()]

    def penalty(self) -> Tensor:
        """gamma times the mean of ||P^T P - 1||^2 and ||Q Q^T - 1||^2."""
        parts = [m for one in self.layers.values() for m in (one.weights[P].flatten(1).t(), one.weights[Q].flatten(1))]
        apart = [(m @ m.t() - torch.eye(len(m), device=m.device)).square().sum() for m in parts]
        return GAMMA * torch.stack(apart).mean()

    def buffers(self) -> Mapping[str, Tensor]:
        """All that ranks are chosen by."""
        means = {"importance": self.importance, "variation": self.variation}
        return {f"{kind}.{name}": t for kind, held in means.items() for name, t in held.items()} | {"mask": self.mask}

    def formed(self, step: int, steps: int) -> bool:
        """Once no more ranks than `target` are left."""
        return step >= between(steps)[1]

    @torch.no_grad()
    def before_step(self, step: int, steps: int) -> None:
        """Note the importance of every entry."""
        for name, p in self.parameters.items():
            if p.grad is not None:
                now = (p * p.grad).abs()
                self.importance[name].lerp_(now, 1 - MEMORY)
                self.variation[name].lerp_((now - self.importance[name]).abs(), 1 - MEMORY)

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Choose the ranks left when it is time, and put the others to zero; in the last phase those stay the same."""
        done, (first, last) = step + 1, between(steps)
        if done <= last and (done <= first or (done % max(1, steps // TIMES) and done != last)):
            return
        if done <= last:
            order = torch.cat([self._scores(one) for one in self.layers.values()]).sort(descending=True, stable=True).indices
            self.mask.zero_()[order[: self.budget(done, steps)]] = 1
        for one, mask in zip(self.layers.values(), self.mask.split(self.sizes), strict=True):
            one.weights[L].mul_(mask)

    def budget(self, done: int, steps: int) -> int:
        """How many ranks are left after so many steps."""
        first, last = between(steps)
        return self.target + round((sum(self.sizes) - self.target) * ((last - done) / max(last - first, 1)) ** 3)

    def _scores(self, one: Change) -> Tensor:
        p, l, q = (self.importance[one.names[key]] * self.variation[one.names[key]] for key in (P, L, Q))  # noqa: E741
        return l + p.flatten(1).mean(0) + q.flatten(1).mean(1)


def between(steps: int) -> tuple[int, int]:
    """Ranks fall after the first and until the last of these steps."""
    return math.floor(steps * FIRST), math.floor(steps * (1 - LAST))


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """P, L and Q are trained. L starts at zero. Ranks at zero are left out of the file, but for one where there is no other."""
    by = scale(shape)

    def factors(w: Weights) -> tuple[Tensor, Tensor, float]:
        return w[Q] * w[L].view(-1, *[1] * (w[Q].ndim - 1)), w[P], by

    def file(w: Weights) -> dict[str, Tensor]:
        down, up, _ = factors(w)
        left = w[L].nonzero().flatten() if w[L].any() else torch.zeros(1, dtype=torch.long)
        return {DOWN: down[left], UP: up[:, left], "alpha": torch.tensor(by * len(left))}

    layers = {spot.name: spot.change((pair(factors)[0], file), _start(spot, shape.rank, seed)) for spot in spots}
    named = {one.names[key]: p for one in layers.values() for key, p in one.weights.items()}
    sizes = [len(one.weights[L]) for one in layers.values()]
    importance, variation = ({n: torch.zeros_like(p) for n, p in named.items()} for _ in range(2))
    mask, target = torch.ones(sum(sizes), device=spots[0].device), sum(min(shape.rank, size) for size in sizes)
    return Allocating.of(layers, shape, importance=importance, variation=variation, mask=mask, target=target)


def _start(spot: Spot, rank: int, seed: int) -> dict[str, nn.Parameter]:
    rows, *inner = spot.shape
    columns = spot.shape[1:].numel()
    width = min(round(rank * WIDER), rows, columns)
    p, q = torch.empty(rows, width), torch.empty(width, columns)
    for name, m in (("p", p), ("q", q)):
        nn.init.orthogonal_(m, generator=generator("adapter", seed, spot.name, name))
    start = {P: p.view(rows, width, *[1] * (len(inner) - 1)), L: torch.zeros(width), Q: q.view(width, *inner)}
    return {key: spot.parameter(value) for key, value in start.items()}
