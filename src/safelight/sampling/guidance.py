"""Guidance: which conditions an x is denoised under, and how the answers become one. Objects; no torch at import."""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process
    from safelight.values import Cond


class Guidance(Protocol):
    """How much a prompt counts. Plain data: two with the same fields guide alike."""

    name: ClassVar[str]

    def conds(self, cond: Cond, negative: Cond | None, *, bare: bool = False) -> Sequence[Cond]:
        """The conditions to ask x0 under, for every x; each costs a row in the forward pass. `bare`: the last is to be without the prompt,
        even where the scale needs none, if this guidance asks such a thing at all."""
        ...

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """One x0 (B, C, h, w) from those under `conds`, in their order."""
        ...


@dataclass(frozen=True)
class Off:
    """The prompt as the network takes it; a negative prompt is not asked."""

    name: ClassVar[str] = "off"

    def conds(self, cond: Cond, negative: Cond | None, *, bare: bool = False) -> Sequence[Cond]:
        """The prompt alone."""
        return (cond,)

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """The only answer."""
        return answers[0]


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): `scale` away from the negative prompt; 1 asks the prompt alone."""

    name: ClassVar[str] = "cfg"
    scale: float = 7.0

    def conds(self, cond: Cond, negative: Cond | None, *, bare: bool = False) -> Sequence[Cond]:
        """Prompt and negative prompt; ValueError when there is none and the scale is not 1."""
        if math.isclose(self.scale, 1.0) and not bare:
            return (cond,)
        if negative is None:
            what, other = ("a CFG++ sampler", "guide=off") if bare else (f"scale {self.scale:g}", "scale 1")
            raise ValueError(f"guidance: {what} needs a negative prompt and got none; give an empty one, or {other}")
        return cond, negative

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """negative + scale (prompt - negative)."""
        if len(answers) == 1:
            return answers[0]
        return answers[1] + (answers[0] - answers[1]) * self.scale


@dataclass(frozen=True)
class Rescale(CFG):
    """Guidance that keeps the spread of the prompt's own prediction (Lin et al. 2023, arXiv:2305.08891, section 3.4): high scales no longer
    burn out. `amount` in [0, 1] mixes it with plain guidance; it is done on the v (on a flow, the velocity), as the paper does."""

    name: ClassVar[str] = "rescale"
    amount: float = 0.7

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """Guided v, each picture's standard deviation moved towards that of the prompt's v."""
        if len(answers) == 1:
            return answers[0]
        kept, other = (process.output(x, a, sigma) for a in answers)
        guided = other + (kept - other) * self.scale
        dims = tuple(range(1, x.ndim))
        ratio = kept.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        return process.from_output(x, guided * (ratio * self.amount + (1 - self.amount)), sigma)


GUIDANCES: dict[str, type[Off | CFG | Rescale]] = {g.name: g for g in (CFG, Rescale, Off)}
