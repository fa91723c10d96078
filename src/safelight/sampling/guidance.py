"""Guidance: which conditions an x is denoised under, and how the answers become one. Objects; no torch at import."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process
    from safelight.values import Cond


class Guidance(Protocol):
    """How much a prompt counts. Plain data: two with the same fields guide alike."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
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
            bared = ("a CFG++ sampler, the change blur or a third condition", "guide=off")
            what, other = bared if bare else (f"scale {self.scale:g}", "scale 1")
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
    contradict the prompt (arXiv:2304.04968). weak, blur, skip: away from the answer in rows that a patch `weak` acts on (PAG,
    arXiv:2403.17377; SAG, arXiv:2210.00939, of the negative prompt; without layers, from the share `skip_from` of the way to `skip_to`,
    the spread moved back by `skip_rescale`). tangent: of the negative answer's noise what lies along the direction that both share most
    (arXiv:2503.18137). apg: so much of the difference's part along the prompt's x0, the difference at most `apg_norm` long (0: any) and
    with `apg_momentum` of what it was (arXiv:2410.02416). high: its frequencies from `cutoff` on so many times, those below `low` times
    (arXiv:2504.02154). tonemap, sharpen: the latent operations done to it. renorm: an x0 at most so many times as long as the prompt's
    own (arXiv:2503.21758; 0: any), below the noise level `until`; above it the prompt's own. norm: each cell at most as long as the
    prompt's, and so many times. zero: the negative answer as far as its noise lies along the prompt's (CFG-Zero*, arXiv:2503.18886).
    lean: from the prompt's x0 times the scale to the answer by how alike the negative one's and their mean's cells are, as cosines of
    roots (Mahiro). eps: the noise divided by the number (arXiv:2308.15321). `past` is one trajectory's; a copy begins without.
    """

    name: ClassVar[str] = "changed"
    inner: Guidance
    changes: Mapping[str, float]
    third: Cond | None = None
    past: dict[str, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if unknown := self.changes.keys() - {*(KINDS if self.third is not None else ()), *CHANGES}:
            why = f"no change {min(unknown)!r}" if unknown - {*KINDS} else f"{min(unknown)} needs a third condition"
            raise ValueError(f"guidance: {why}; expected NAME=NUMBER of differential, {', '.join(CHANGES)}")
        if self.third is not None and isinstance(self.inner, Off):
            raise ValueError("guidance: a third condition needs a scale; got guide=off, take cfg or rescale")

    def conds(self, cond: Cond, negative: Cond | None, *, bare: bool = False) -> Sequence[Cond]:
        """Those of the guidance, before them what weakened networks are asked, and the third condition."""
        asked = self.inner.conds(cond, negative, bare=bare or self.third is not None or "blur" in self.changes)
        more = [self._weaker(kind, asked[-1] if kind == "blur" else cond) for kind in WEAKER if kind in self.changes]
        return *more, *([] if self.third is None else [self.third]), *asked

    def _weaker(self, kind: str, cond: Cond) -> Cond:
        import torch

        start, end = (self.changes.get(name, usual) if kind == "skip" else usual for name, usual in (("skip_from", 0.0), ("skip_to", 1.0)))
        marks = {"weak": torch.tensor([1 + WEAKER.index(kind)])} | ({"negative": torch.tensor([True])} if kind == "blur" else {})
        spans = [replace(p.region, start=max(p.region.start, start), end=min(p.region.end, end)) for p in cond.parts]
        first, *rest = (replace(p, extras={**p.extras, **marks}, region=r) for p, r in zip(cond.parts, spans, strict=True))
        return replace(first, others=tuple(rest))

    def combine(self, x: Tensor, sigma: float, answers: Sequence[Tensor], process: Process) -> Tensor:
        """The answers guided, and that changed in the order of the changes; what changes the answers and `renorm` come first."""
        more = [kind for kind in WEAKER if kind in self.changes] + ["third"] * (self.third is not None)
        asked, scale = tuple(answers[len(more) :]), getattr(self.inner, "scale", 1.0)
        seen: _Seen = SimpleNamespace(x=x, sigma=sigma, process=process, says=self.changes, scale=scale, past=self.past)
        seen.more = dict(zip(more, answers, strict=False))
        for name, number in self.changes.items():
            if name in BEFORE and (len(asked) > 1 or name in ("tonemap", "sharpen")):
                asked = BEFORE[name](seen, asked[0], asked[1] if len(asked) > 1 else asked[0] * 0, number)[: len(asked)]
        out = self.inner.combine(x, sigma, asked, process)
        if sigma >= self.changes.get("until", math.inf):
            out = asked[0]
        elif most := self.changes.get("renorm"):
            long, own = (t.square().sum((1, 2, 3), keepdim=True).sqrt() for t in (out, asked[0]))
            out = out * (own * most / long).clamp(max=1.0)
        for name, number in self.changes.items():
            if name in AFTER:
                out = AFTER[name](seen, out, asked, number)
            elif name in KINDS:
                out = _between(name, seen.more["third"], asked, scale, number)
        return out


_Seen: TypeAlias = Any
"""What a change may look at besides the answers: x, sigma, process, what the changes say, scale, past, the further answers by name."""
Pair: TypeAlias = "tuple[Tensor, Tensor]"


def _along(s: _Seen, prompt: Tensor, other: Tensor, _: float) -> Pair:
    import torch

    rows = torch.stack([s.x - other, s.x - prompt], dim=1).flatten(2).float()
    way = torch.linalg.svd(rows, full_matrices=False).Vh[:, :1]
    return prompt, s.x.sub((rows[:, :1] @ way.mT @ way).view(s.x.shape).to(s.x.dtype))


def _projected(s: _Seen, prompt: Tensor, other: Tensor, eta: float) -> Pair:
    """Remembers the differences; where the noise level rises, it begins anew."""
    way, cells = prompt - other, (1, 2, 3)
    if momentum := s.says.get("apg_momentum"):
        way = way + s.past["way"] * momentum if s.sigma <= s.past.get("sigma", -1.0) else way
        s.past.update(way=way, sigma=s.sigma)
    if longest := s.says.get("apg_norm"):
        way = way * (longest / way.square().sum(cells, keepdim=True).sqrt()).clamp(max=1.0)
    along = prompt * ((way * prompt).sum(cells, keepdim=True) / prompt.square().sum(cells, keepdim=True).clamp(min=1e-24))
    return other + way + along * (eta - 1) + (prompt - other) / (s.scale or 1.0), other


def _banded(s: _Seen, prompt: Tensor, other: Tensor, high: float) -> Pair:
    from safelight.patches.freeu import quieter

    return other + quieter(prompt - other, s.says.get("low", 1.0), high=high, reach=int(s.says.get("cutoff", 20))), other


def _operated(soft: bool, s: _Seen, prompt: Tensor, other: Tensor, number: float) -> Pair:
    from safelight.families.touch import sharpened, tonemapped

    if soft:
        return other + tonemapped(prompt - other, number), other
    return other + sharpened(prompt - other, number, int(s.says.get("radius", 9)), s.says.get("bell", 1.0)), other


def _skipped(s: _Seen, out: Tensor, asked: Sequence[Tensor], number: float) -> Tensor:
    from safelight.sampling.regions import level

    if not level(s.process, s.says.get("skip_to", 1.0)) <= s.sigma <= level(s.process, s.says.get("skip_from", 0.0)):
        return out
    out, share = out + (asked[0] - s.more["skip"]) * number, s.says.get("skip_rescale", 0.0)
    return out * (asked[0].std() / out.std() * share + (1 - share)) if share else out


def _zeroed(s: _Seen, out: Tensor, asked: Sequence[Tensor], _: float) -> Tensor:
    up, down = s.x - asked[0], s.x - asked[-1]
    share: Tensor = (up * down).sum((1, 2, 3), keepdim=True) / (down.square().sum((1, 2, 3), keepdim=True) + 1e-8)
    return out + asked[-1] * (1 - share) * float(s.scale - 1)


def _held(_: _Seen, out: Tensor, asked: Sequence[Tensor], number: float) -> Tensor:
    own, long = (t.square().sum(1, keepdim=True).sqrt() for t in (asked[0], out))
    return out * (own / (long + 1e-8)).clamp(max=1.0) * number


KINDS, WEAKER = ("dual", "nested", "perp"), ("weak", "blur", "skip")
"""What a third condition may be; what is asked of a weaker network, in the order of the marks in `patches.rows`."""
BEFORE: Mapping[str, Callable[[_Seen, Tensor, Tensor, float], Pair]] = {
    "tangent": _along, "apg": _projected, "high": _banded, "tonemap": partial(_operated, True), "sharpen": partial(_operated, False),
}
AFTER: Mapping[str, Callable[[_Seen, Tensor, Sequence[Tensor], float], Tensor]] = {
    "weak": lambda s, out, asked, n: out + (asked[0] - s.more["weak"]) * n,
    "blur": lambda s, out, asked, n: out + (asked[-1] - s.more["blur"]) * n,
    "skip": _skipped, "zero": _zeroed, "norm": _held, "lean": lambda s, out, asked, n: _leaning(out, asked, s.scale),
    "eps": lambda s, out, asked, n: s.x - (s.x - out) / n,
}
"""Changes of the answers and of what is made of them."""
CHANGES = (*AFTER, *BEFORE, "renorm", "until", "apg_norm", "apg_momentum", "low", "cutoff", "radius", "bell", "skip_from", "skip_to",
           "skip_rescale")
"""All of them, with their further numbers."""


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
