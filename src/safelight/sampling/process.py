"""How data turns into noise: the two forward processes samplers and schedules work on. No torch: plain numbers and tensors' own methods.

Both are x = alpha x0 + sigma noise. Sigma is what a network was trained on: `Exploding` has alpha = 1 and sigma up to 14 or 4500 (eps and v
models, k-diffusion's convention, arXiv:2206.00364); `Flow` has alpha = 1 - sigma with sigma up to 1 (arXiv:2209.03003, arXiv:2210.02747).
In both the probability flow is dx/dsigma = (x - x0) / sigma, so an ODE solver need not know which one it is on.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from safelight.families import Family

FINITE = 0.9999
"""Where a solver that works in log SNR enters a flow instead of at time 1, whose log SNR is minus infinity; ComfyUI's figure."""


class Process(Protocol):
    """What a sampler, a schedule or a guidance may ask about the way from data to noise. Sigmas are plain floats."""

    @property
    def table(self) -> NDArray[np.float64]:
        """(T,) sigmas the network was trained at, rising."""
        ...

    def alpha(self, sigma: float) -> float:
        """How much of the data is left at sigma."""
        ...

    def log_snr(self, sigma: float) -> float:
        """lambda = log(alpha / sigma), half the log signal-to-noise ratio; falls as sigma rises."""
        ...

    def sigma(self, log_snr: float) -> float:
        """The inverse of `log_snr`."""
        ...

    def finite(self, sigmas: Sequence[float]) -> list[float]:
        """The same way down with a first sigma whose log SNR is finite."""
        ...

    def at(self, time: Tensor) -> float:
        """Sigma at a time from `span`, a float32 scalar; between the table's entries it is interpolated."""
        ...

    @property
    def span(self) -> tuple[float, float]:
        """(first, last): the times of the largest and the smallest trained sigma."""
        ...

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """x at sigma."""
        ...

    def start(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """Where a trajectory that begins at sigma begins."""
        ...

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """What is handed on when a trajectory stops at sigma."""
        ...

    def output(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """The v (or velocity) a network would have said for this x0: linear in x0, of about unit size at every sigma."""
        ...

    def from_output(self, x: Tensor, v: Tensor, sigma: float) -> Tensor:
        """The inverse of `output`: v -> x0."""
        ...


@dataclass(frozen=True, eq=False)
class Exploding:
    """x = x0 + sigma noise; eps and v models. `logs` are the table's logarithms, (T,) float32 (see `families.noise_levels.rounded`).
    `angular`: time is the share of a right angle whose tangent is sigma."""

    table: NDArray[np.float64]
    logs: NDArray[np.float32]
    angular: bool = False

    def alpha(self, sigma: float) -> float:
        """One: the data is never scaled."""
        return 1.0

    def log_snr(self, sigma: float) -> float:
        """-log(sigma)."""
        return -math.log(sigma)

    def sigma(self, log_snr: float) -> float:
        """exp(-log_snr)."""
        return math.exp(-log_snr)

    def finite(self, sigmas: Sequence[float]) -> list[float]:
        """All of them; no trained sigma is infinite."""
        return list(sigmas)

    def at(self, time: Tensor) -> float:
        """Time is an index into the table, log sigma linear in between."""
        if self.angular:
            return float((time * math.pi / 2).tan())
        below, above = (time.new_tensor(self.logs[int(i)]) for i in (time.floor(), time.ceil()))
        between = time.frac()
        return float(((1 - between) * below + between * above).exp())

    @property
    def span(self) -> tuple[float, float]:
        """(T - 1, 0); angles as float32 has them, whose last digit is seen near a right one."""
        if self.angular:
            last, first = (np.arctan(self.table[[0, -1]].astype(np.float32)) / np.float32(math.pi) * np.float32(2)).tolist()
            return first, last
        return len(self.table) - 1.0, 0.0

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """x0 + sigma noise."""
        return x0 + noise * sigma

    def start(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """From the largest trained sigma on, the noise is as large as data and noise are there together: sqrt(1 + sigma^2)."""
        whole = sigma >= self.table[-1] * (1 - 1e-5)
        return x0 + noise * (math.sqrt(1 + sigma * sigma) if whole else sigma)

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """x as it is."""
        return x

    def output(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """v of progressive distillation (arXiv:2202.00512)."""
        root = math.sqrt(sigma * sigma + 1)
        return (x / (root * root) - x0) * (root / sigma)

    def from_output(self, x: Tensor, v: Tensor, sigma: float) -> Tensor:
        """x / (sigma^2 + 1) - v sigma / sqrt(sigma^2 + 1)."""
        root = math.sqrt(sigma * sigma + 1)
        return x / (root * root) - v * (sigma / root)


@dataclass(frozen=True, eq=False)
class Flow:
    """x = (1 - sigma) x0 + sigma noise; rectified flows, their times shifted as in arXiv:2403.03206."""

    table: NDArray[np.float64]

    @cached_property
    def shift(self) -> float:
        """a in sigma(t) = a t / (1 + (a - 1) t), read off the middle of the table, whose entry i is at t = (i + 1) / T."""
        n = len(self.table)
        t, s = (n // 2) / n, float(self.table[n // 2 - 1])
        return round(s * (1 - t) / (t * (1 - s)), 6)

    def alpha(self, sigma: float) -> float:
        """1 - sigma."""
        return 1.0 - sigma

    def log_snr(self, sigma: float) -> float:
        """log((1 - sigma) / sigma)."""
        return math.log1p(-sigma) - math.log(sigma)

    def sigma(self, log_snr: float) -> float:
        """1 / (1 + exp(log_snr))."""
        return 1 / (1 + math.exp(log_snr))

    def finite(self, sigmas: Sequence[float]) -> list[float]:
        """A first sigma of 1 becomes the one at time 0.9999, as float32 has it: what is left of the data there is a small difference."""
        below = float(np.float32(self.shift * FINITE / (1 + (self.shift - 1) * FINITE)))
        return [below, *sigmas[1:]] if len(sigmas) > 1 and sigmas[0] >= 1 else list(sigmas)

    def at(self, time: Tensor) -> float:
        """The shifted sigma of a time in thousandths."""
        t = time / 1000
        return float(self.shift * t / (1 + (self.shift - 1) * t))

    @property
    def span(self) -> tuple[float, float]:
        """(1000, 1000 times the smallest sigma). The last is a sigma taken for a time, shifted once more by `at`: what ComfyUI does."""
        return float(self.table[-1]) * 1000, float(self.table[0]) * 1000

    def noised(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """(1 - sigma) x0 + sigma noise."""
        return x0 * (1 - sigma) + noise * sigma

    def start(self, x0: Tensor, noise: Tensor, sigma: float) -> Tensor:
        """As `noised`."""
        return self.noised(x0, noise, sigma)

    def finish(self, x: Tensor, sigma: float) -> Tensor:
        """x / (1 - sigma): the data at full size, so that a second trajectory can take over with no noise of its own."""
        return x / (1 - sigma) if 0 < sigma < 1 else x

    def output(self, x: Tensor, x0: Tensor, sigma: float) -> Tensor:
        """The velocity (x - x0) / sigma."""
        return (x - x0) / sigma

    def from_output(self, x: Tensor, v: Tensor, sigma: float) -> Tensor:
        """x - sigma v."""
        return x - v * sigma


def process(family: Family) -> Process:
    """The family's own, by what its network predicts."""
    table = family.sigmas.detach().cpu().double().numpy()
    return Flow(table) if family.prediction == "flow" else Exploding(table, family.log_sigmas.numpy(force=True), family.clock == "angle")
