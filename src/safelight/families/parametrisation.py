"""What a network's output means: the arithmetic between noise, x0 and the eps, v or flow a network was trained to say."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from safelight.families.noise_levels import SPREAD, clock, prediction, rounded, sigma_table


@dataclass(frozen=True, eq=False)
class Parametrisation:
    """`prediction` is "eps", "v", "edm" or "flow"; `sigmas` (T,) float32 is the training table, rising, `log_sigmas` its logarithms,
    `clock` that of `noise_levels`. Everything is per row: sigma is (B,)."""

    prediction: str
    sigmas: Tensor
    log_sigmas: Tensor
    device: torch.device
    clock: str = "index"

    @classmethod
    def read(cls, scheduler: Mapping[str, Any], device: torch.device) -> Parametrisation:
        """From a scheduler_config.json. ValueError for one that is not known."""
        return cls(prediction(scheduler), *rounded(sigma_table(scheduler)), device, clock(scheduler))

    @cached_property
    def _levels(self) -> Tensor:
        return self.log_sigmas.to(self.device)

    def timestep(self, sigma: Tensor) -> Tensor:
        """(B,) sigma -> what the network is told: the nearest level's index by log sigma, as ComfyUI; 1000 sigma for flow;
        where there are no steps log sigma / 4 (arXiv:2206.00364, table 1), or the share of a right angle whose tangent is sigma."""
        if self.prediction == "flow":
            return sigma.to(self.device) * 1000
        if self.clock != "index":
            return sigma.to(self.device).log() / 4 if self.clock == "log" else sigma.to(self.device).atan() / torch.pi * 2
        return (sigma.to(self.device).log()[:, None] - self._levels).abs().argmin(dim=1)

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x / sqrt(sigma^2 + 1), unit variance (edm: its own spread of the data for 1); flow models are fed x itself."""
        return x if self.prediction == "flow" else x / (rows(sigma, x) ** 2 + SPREAD.get(self.prediction, 1.0) ** 2).sqrt()

    def x0(self, x: Tensor, out: Tensor, sigma: Tensor) -> Tensor:
        """What is left of x (B, C, h, w) without its noise, by the network's output."""
        s, d = rows(sigma, x), SPREAD.get(self.prediction)
        if d is None:
            return x - s * out
        return x * d**2 / (s**2 + d**2) + out * s * d / (s**2 + d**2).sqrt()

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at sigma (B,): x0 + sigma * noise; for flow (1 - sigma) x0 + sigma * noise."""
        s = rows(sigma, x0)
        return (1 - s) * x0 + s * noise if self.prediction == "flow" else x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """eps: noise; flow: noise - x0 (arXiv:2210.02747); v, edm: (sigma x0 - d^2 noise) / (d sqrt(sigma^2 + d^2)) (arXiv:2202.00512)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "flow":
            return noise - x0
        s, d = rows(sigma, x0), SPREAD[self.prediction]
        return (s * x0 - d**2 * noise) / (d * (s**2 + d**2).sqrt())


def rows(sigma: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) on x's device."""
    return sigma.to(x.device, torch.float32).view(-1, *[1] * (x.ndim - 1))
