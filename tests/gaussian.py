"""Data whose denoiser is known: independent normal numbers. The judge of every sampler, and a family small enough to follow by hand."""
from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from safelight.events import Event
from safelight.sampling.process import Exploding, Flow, Process
from safelight.values import Cond


def exploding_table(*, zero_snr: bool = False) -> Tensor:
    """SD's thousand sigmas, float64; with the last one of a zero-terminal-SNR model."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    bar = torch.cumprod(1 - beta, dim=0)
    if zero_snr:
        root = bar.sqrt()
        bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        bar[-1] = 4.8973451890853435e-08
    return ((1 - bar) / bar).sqrt()


def flow_table(shift: float = 1.0) -> Tensor:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    return shift * t / (1 + (shift - 1) * t)


TABLES = {"eps": exploding_table(), "zero_snr": exploding_table(zero_snr=True), "flow": flow_table(), "shifted": flow_table(3.0)}


def _process(table: Tensor) -> Process:
    sigmas = table.float().double().numpy()
    return Flow(sigmas) if table[-1] == 1 else Exploding(sigmas, table.log().float().numpy())


PROCESSES: dict[str, Process] = {name: _process(table) for name, table in TABLES.items()}


@dataclass(frozen=True)
class Normal:
    """x0 ~ N(mean, std^2) in every number, and what follows from it at sigma in a process."""

    process: Process
    mean: float = 0.7
    std: float = 0.5

    def denoise(self, x: Tensor, s: float) -> Tensor:
        """E[x0 | x]."""
        a = self.process.alpha(s)
        gain = a * self.std**2 / (a * a * self.std**2 + s * s)
        return self.mean + (x - a * self.mean) * gain

    def spread(self, s: float) -> float:
        """Standard deviation of x."""
        return math.hypot(self.process.alpha(s) * self.std, s)

    def flow(self, x: Tensor, s: float, t: float) -> Tensor:
        """Where the probability flow carries x from s to t: it keeps how many deviations x is from the mean."""
        return self.process.alpha(t) * self.mean + (x - self.process.alpha(s) * self.mean) * (self.spread(t) / self.spread(s))

    def draw(self, s: float, shape: Sequence[int], seed: int) -> Tensor:
        """Float64 x at sigma."""
        unit = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return self.process.alpha(s) * self.mean + unit * self.spread(s)


@dataclass
class Plain:
    """A family without networks, whose data are numbers around the condition's mean, and a ripple; `passes` are the sizes of the forward
    passes."""

    prediction: str = "eps"
    table: Tensor = field(default_factory=exploding_table)
    passes: list[int] = field(default_factory=list)
    clock: str = "index"
    name: str = "plain"
    channels: int = 4
    factor: int = 8
    size: int = 64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    @property
    def sigmas(self) -> Tensor:
        return self.table.float()

    @property
    def log_sigmas(self) -> Tensor:
        return self.table.log().float()

    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.passes.append(len(x))
        assert len(sigma) == len(cond.tokens) == len(x)
        s = sigma.view(-1, 1, 1, 1).to(x)
        middle = cond.tokens.mean(dim=(1, 2)).view(-1, 1, 1, 1).to(x)
        a = 1 - s if self.prediction == "flow" else torch.ones_like(s)
        gain = 0.25 * a / (0.25 * a * a + s * s)
        return middle + (x - a * middle) * gain + torch.sin(x / (1 + s)) * 0.05

    def tokens(self, text: str) -> int:
        return len(text)

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        return Cond(torch.tensor([[[len(p) / 10.0]] for p in prompts]))

    def encode_image(self, pixels: Tensor) -> Tensor:
        raise NotImplementedError

    def decode(self, latent: Tensor) -> Tensor:
        raise NotImplementedError

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        raise NotImplementedError

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def inpainting(self, pixels: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        return {}

    def trainable(self) -> Mapping[str, nn.Module]:
        return {}

    def for_training(self) -> None:
        raise NotImplementedError


def finish(work: Generator[Event, Any, list[Tensor]]) -> tuple[list[Tensor], list[Event]]:
    """Run a generator of events to its end: its value and what it said."""
    said: list[Event] = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            return end.value, said
