"""All trainable parameters as one tensor: one optimizer call, one average over ranks, one moving average, one checkpoint."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn


class Flat:
    """Re-points parameters (and their gradients) into `weights` and its gradient, each (N,) float32."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """They keep working as before, in the same modules, in float32; all must be on one device."""
        self.parameters = list(parameters)
        self.weights = torch.nn.Parameter(torch.cat([p.detach().reshape(-1).float() for p in self.parameters]))
        self.grads = torch.zeros_like(self.weights)
        self.weights.grad = self.grads
        for p, place, slope in zip(self.parameters, self.views(self.weights.data), self.views(self.grads), strict=True):
            p.data, p.grad = place, slope

    def views(self, values: torch.Tensor) -> list[torch.Tensor]:
        """The parameters' parts of a tensor (N,)."""
        parts = values.split([p.numel() for p in self.parameters])
        return [part.view(p.shape) for part, p in zip(parts, self.parameters, strict=True)]

    def load(self, weights: torch.Tensor) -> None:
        """Put other weights (N,) in place, for example the moving average, or a checkpoint's."""
        self.weights.data.copy_(weights)

    def collect(self) -> None:
        """Take in gradients that somebody put in the place of those here."""
        for p, slope in zip(self.parameters, self.views(self.grads), strict=True):
            if p.grad is None:
                slope.zero_()
            elif p.grad.data_ptr() != slope.data_ptr():
                slope.copy_(p.grad)
            p.grad = slope
