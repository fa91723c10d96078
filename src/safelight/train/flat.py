"""All trainable parameters as one tensor: one optimizer call, one average over ranks, one moving average, one checkpoint."""
from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn


class Flat:
    """Re-points the parameters of `modules` (and their gradients) into `weights` and `grads`, each (N,) float32."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        """The modules keep working as before; their parameters must be float32 on one device."""
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        total = sum(p.numel() for p in self.parameters)
        self.weights = torch.nn.Parameter(torch.empty(total))
        self.grads = torch.zeros(total)
        self.weights.grad = self.grads
        at = 0
        for p in self.parameters:
            place = slice(at, at + p.numel())
            self.weights.data[place] = p.data.reshape(-1)
            p.data = self.weights.data[place].view(p.shape)
            p.grad = self.grads[place].view(p.shape)
            at += p.numel()

    def clip(self, norm: float) -> Tensor:
        """Scale the gradient down to `norm` if it is longer; returns its length before."""
        length: Tensor = self.grads.norm()
        self.grads.mul_((norm / (length + 1e-6)).clamp(max=1.0))
        return length

    def load(self, weights: Tensor) -> None:
        """Put other weights (N,) in place, for example the moving average, or a checkpoint's."""
        self.weights.data.copy_(weights)
