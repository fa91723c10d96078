"""Guidance: which conditions an x is denoised under, and how the answers become one. Objects; no torch at import."""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True, eq=False)
class Changed:
    """A guidance with changes by name, each with its number. ValueError for a name that is not known.

    With a `third` condition: dual, from the negative prompt to it so many times, from it to the prompt by the scale (arXiv:2211.09800,
    equation 3); nested, the first on what the second has made; perp, it is empty, and of the negative prompt counts what does not
    contradict the prompt (arXiv:2304.04968). weak: away from the answer in rows that the patch `weak` acts on (PAG, arXiv:2403.17377).
    tangent: of the negative answer's noise what lies along the direction that both share most (arXiv:2503.18137). renorm: an x0 at most
    so many times as long as the prompt's own (arXiv:2503.21758; 0: any), below the noise level `until`; above it the prompt's
    own. lean: from the prompt's x0 times the scale to the answer by how alike the negative one's and their mean's cells are, as cosines of
    roots (Mahiro). eps: the noise divided by the number (arXiv:2308.15321).
    """

    name: ClassVar[str] = "changed"
    inner: Guidance
    changes: Mapping[str, float]
    third: Cond | None = None

    def __post_init__(self) -> None:
        if unknown := self.changes.keys() - {*KINDS, *CHANGES}:
            raise ValueError(f"guidance: no change {min(unknown)!r}; expected NAME=NUMBER of differential, {', '.join(CHANGES)}")

    def conds(self, cond: Cond, negative: Cond | None, *, bare: bool = False) -> Sequence[Cond]:
        """Those of the guidance, before them the prompt for the weakened network and the third condition."""
        import torch

        mark = {"weak": torch.tensor([True])}  # `patches.rows.WEAK`
        first, *rest = (replace(part, extras={**part.extras, **mark}) for part in cond.parts)
        more = [replace(first, others=tuple(rest))] * ("weak" in self.changes) + ([] if self.third is None else [self.third])
        return *more, *self.inner.conds(cond, negative, bare=bare or self.third is not None)

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """The answers guided, and that changed in the order of the changes; `tangent` and `renorm` come first."""
        count, scale = ("weak" in self.changes) + (self.third is not None), getattr(self.inner, "scale", 1.0)
        asked = answers[count:]
        if "tangent" in self.changes and len(asked) > 1:
            asked = asked[0], _along(x, *asked)
        out = self.inner.combine(x, sigma, asked, process)
        if sigma >= self.changes.get("until", math.inf):
            out = asked[0]
        elif most := self.changes.get("renorm"):
            long, own = (t.square().sum((1, 2, 3), keepdim=True).sqrt() for t in (out, asked[0]))
            out = out * (own * most / long).clamp(max=1.0)
        for name, number in self.changes.items():
            if name == "weak":
                out = out + (asked[0] - answers[0]) * number
            elif name == "eps":
                out = x - (x - out) / number
            elif name == "lean":
                out = _leaning(out, asked, scale)
            elif name in KINDS:
                out = _between(name, answers[count - 1], asked, scale, number)
        return out


KINDS, CHANGES = ("dual", "nested", "perp"), ("weak", "tangent", "renorm", "until", "lean", "eps")
"""What a third condition may be, and the other changes."""


def _along(x: Tensor, prompt: Tensor, other: Tensor) -> Tensor:
    import torch

    rows = torch.stack([x - other, x - prompt], dim=1).flatten(2).float()
    way = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]
    return x.sub((rows[:, :1] @ way.mT @ way).view(x.shape).to(x.dtype))


def _leaning(out: Tensor, asked: Sequence[Tensor], scale: float) -> Tensor:
    import torch

    leap = asked[0] * scale
    one, two = (t.abs().sqrt() * t.sign() for t in (asked[1] * scale if len(asked) > 1 else leap * 0, (leap + out) / 2))
    alike = torch.cosine_similarity(one, two).mean((1, 2))
    return torch.lerp(leap, out, (alike.view(-1, 1, 1, 1) + 1) / 2)


def _between(how: str, third: Tensor, asked: Sequence[Tensor], scale: float, second: float) -> Tensor:
    up, down = asked[0] - third, asked[1] - third
    if how != "perp":
        return asked[1] + (up * scale - down) * second if how == "nested" else asked[1] - down * second + up * scale
    shared = (down * up).sum((1, 2, 3), keepdim=True) / (up * up).sum((1, 2, 3), keepdim=True)
    return third + (up - (down - up * shared) * second) * scale


GUIDANCES: dict[str, type[Off | CFG | Rescale]] = {g.name: g for g in (CFG, Rescale, Off)}
