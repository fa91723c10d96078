"""One trajectory from noise to a latent: what is wanted, and the coroutine that walks it."""
from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from safelight.events import Query
from safelight.families import Family
from safelight.sampling.core import Noise, Sampler
from safelight.sampling.guidance import CFG, Guidance
from safelight.sampling.noise import Fresh, Tree, draw_seed, start_noise
from safelight.sampling.process import Flow, Process, process
from safelight.sampling.regions import Side, ask, gather, sides
from safelight.sampling.samplers import SAMPLERS
from safelight.values import Cond


@dataclass(frozen=True, kw_only=True, eq=False)
class Request:
    """A batch of pictures from one seed.

    `latent` (B, C, h, w) is where an image-to-image trajectory starts; zeros (`blank`) for text alone. `sigmas` fall strictly, usually to 0
    (`schedules.plan`; its `denoise` makes image-to-image of it); none at all gives the latent back. `cond` and `negative` have a batch of
    1 or B; they may be of several parts, each with its region (see `regions`). A seed of -1 is replaced by a drawn one, which the request
    then shows. `mask` (1 or B, 1, H, W) in [0, 1] of any size: 1 is repainted, 0 stays exactly. `noise` replaces the seed's start noise:
    zeros go on with a latent that is noisy already; `rows` takes the noise of those pictures of a larger batch. A preview is made every
    `preview` steps, never for 0. `options` are the sampler's own settings by name, and `s_noise`, which its noise is multiplied by. With
    `denoised` the result is the x0 of the last step instead of x. Sigmas may rise, from above 0, for a sampler without noise: that leads
    a picture back to the noise it would have come from. `graded` (0 to 1): a soft mask says when a place is let go, not how much of
    it is kept (arXiv:2306.00950).
    """

    cond: Cond
    latent: Tensor
    sigmas: Sequence[float]
    seed: int = -1
    sampler: str = "euler"
    negative: Cond | None = None
    guidance: Guidance = field(default_factory=CFG)
    mask: Tensor | None = None
    noise: Tensor | None = None
    rows: Sequence[int] | None = None
    preview: int = 0
    options: Mapping[str, float] = field(default_factory=dict)
    denoised: bool = False
    graded: float = 0.0

    def __post_init__(self) -> None:
        if self.seed < 0:
            object.__setattr__(self, "seed", draw_seed())
        object.__setattr__(self, "sigmas", [float(s) for s in self.sigmas])
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampling: sampler {self.sampler!r} is not known; expected one of {', '.join(SAMPLERS)}")
        sampler = SAMPLERS[self.sampler]
        rising = sampler.noise == "none" and len(self.sigmas) > 1 and 0 < self.sigmas[0] < self.sigmas[-1]
        ordered = all(s < t if rising else s > t for s, t in pairwise(self.sigmas))
        if not ordered or any(not 0 <= s < math.inf for s in self.sigmas):
            raise ValueError(f"sampling: got sigmas {self.sigmas}; expected strictly falling numbers from 0 up, or rising ones from above 0"
                             " for a sampler without noise")
        _check(sampler, self.options)
        if self.latent.ndim != 4:
            raise ValueError(f"sampling: got a latent of shape {tuple(self.latent.shape)}; expected (B, C, h, w)")
        batch = len(self.latent)
        for name, cond in (("cond", self.cond), ("negative", self.negative)):
            sizes = {len(part.tokens) for part in cond.parts} - {1, batch} if cond is not None else set()
            if sizes:
                raise ValueError(f"sampling: {name} is a batch of {min(sizes)} for {batch} latents; expected 1 or {batch}")
        if self.mask is not None and (self.mask.ndim != 4 or len(self.mask) not in (1, batch) or self.mask.shape[1] != 1):
            raise ValueError(f"sampling: got a mask of shape {tuple(self.mask.shape)}; expected (1 or {batch}, 1, H, W)")
        self.guidance.conds(self.cond, self.negative, bare=sampler.plus)

    @property
    def conds(self) -> Sequence[Cond]:
        """What x0 is asked under; for a CFG++ sampler the last is without the prompt."""
        return self.guidance.conds(self.cond, self.negative, bare=SAMPLERS[self.sampler].plus)

    @property
    def steps(self) -> int:
        """Steps of the trajectory; a sampler may ask more than once in each."""
        return max(len(self.sigmas) - 1, 0)

    @property
    def asked_rows(self) -> int:
        """Rows of a forward pass each ask takes: pictures times conditions."""
        return len(self.latent) * sum(len(c.parts) for c in self.conds)


def _check(sampler: Sampler, options: Mapping[str, float]) -> None:
    """ValueError for a setting that the sampler has not, or out of range."""
    known = {**sampler.options, "s_noise": 1.0}
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"sampling: sampler {sampler.name} has no setting {name!r}; it has {', '.join(known)}")
        whole = isinstance(known[name], int)
        if not 0 <= value < math.inf or (whole and (value < 1 or value % 1)):
            expected = "a whole number from 1 up" if whole else "a number from 0 up"
            raise ValueError(f"sampling: sampler {sampler.name}: {name}: got {value:g}, expected {expected}")


def blank(family: Family, width: int, height: int, count: int = 1) -> Tensor:
    """(count, C, height / f, width / f) zeros. ValueError when a side is no positive multiple of the family's factor."""
    f = family.factor
    if min(width, height, count) < 1 or width % f or height % f:
        raise ValueError(f"sampling: got {count} of {width} x {height}; expected sides that are multiples of {f} for {family.name}")
    return torch.zeros(count, family.channels, height // f, width // f)


@dataclass(frozen=True)
class Turn:
    """What a trajectory wants to know next, in which step (from 0), and the last x0 it learned."""

    queries: tuple[Query, ...]
    step: int
    x0: Tensor | None


Trajectory = Generator[Turn, Sequence[Tensor], Tensor]


def trajectory(family: Family, request: Request) -> Trajectory:
    """Walk one request: yields a Turn, takes one x0 a query, returns the latent (B, C, h, w) on the family's device."""
    way, sigmas = process(family), request.sigmas
    latent = request.latent.detach().to(family.device)
    given = request.noise if request.noise is not None else start_noise(latent.shape, request.seed, request.rows)
    noise = given.to(latent)
    x = way.start(latent, noise, sigmas[0]) if sigmas else latent
    if not request.steps:
        return way.finish(x, sigmas[0]) if sigmas else x
    sampler = SAMPLERS[request.sampler]
    region = _region(request, latent, noise, way)
    own = {name: value for name, value in request.options.items() if name in sampler.options}
    walk = sampler.run(x, sigmas, way, _noise_of(sampler, x, request), **own)
    both, guidance = _sides(request, family, way), replace(request.guidance)
    x0 = last = None
    try:
        asked = _advance(walk, None)
        while not isinstance(asked, Tensor):
            at, sigma = region.enter(asked[0], asked[1]), asked[1]
            found = yield from _answers(both, at, sigma, _step(sigmas, sigma), x0)
            x0 = region.leave(guidance.combine(at, sigma, found, way))
            last = x0 if sampler.own_levels or sigma in sigmas[:-1] else last
            asked = _advance(walk, (x0, found[-1]) if sampler.plus else x0)
        done = last if request.denoised and last is not None else way.finish(asked, sigmas[-1])
        return region.settle(done) if sigmas[-1] == 0 else done
    finally:
        walk.close()


def _answers(
    both: Sequence[Side], x: Tensor, sigma: float, step: int, x0: Tensor | None
) -> Generator[Turn, Sequence[Tensor], list[Tensor]]:
    """One x0 a side, of one turn's answers; where nothing is to be asked, there is no turn."""
    queries = [ask(side, x, sigma) for side in both]
    flat = tuple(q for side in queries for q in side)
    answers = iter((yield Turn(flat, step, x0)) if flat else ())
    return [gather(side, x, sigma, list(islice(answers, len(q)))) for side, q in zip(both, queries, strict=True)]


def _sides(request: Request, family: Family, way: Process) -> list[Side]:
    """The places of each condition that the guidance asks, in its order."""
    asked = request.conds
    more = [c for c in asked if c is not request.cond and c is not request.negative]
    made = sides(request.cond, request.negative, family, request.latent.shape, way, *more)
    known = (request.cond, request.negative, *more)
    return [next(side for c, side in zip(known, made, strict=True) if c is wanted) for wanted in asked]


def _advance(walk: Generator[Any, Any, Tensor], answer: Any) -> tuple[Tensor, float] | Tensor:
    """The sampler's next ask, or its result."""
    try:
        asked: tuple[Tensor, float] = next(walk) if answer is None else walk.send(answer)
        return asked
    except StopIteration as end:
        result: Tensor = end.value
        return result


def _noise_of(sampler: Sampler, x: Tensor, request: Request) -> Noise:
    drawn = Tree(x, request.seed, request.sigmas) if sampler.noise == "tree" else Fresh(x, request.seed)
    scale = request.options.get("s_noise", 1.0)
    return drawn if scale == 1 else lambda s, t: drawn(s, t) * scale


def _step(sigmas: Sequence[float], sigma: float) -> int:
    """The step an ask at sigma belongs to: how many of the later sigmas are reached."""
    if sigmas[-1] > sigmas[0]:
        return sum(s <= sigma * (1 + 1e-6) for s in sigmas[1:])
    return sum(s >= sigma * (1 - 1e-6) for s in sigmas[1:])


class _Region:
    """Where the picture may change: the whole of it. (Not a condition's region, which says where a prompt counts.)"""

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        """What the network is asked about instead of x."""
        return x

    def leave(self, x0: Tensor) -> Tensor:
        """What the sampler is told instead of x0."""
        return x0

    def settle(self, x: Tensor) -> Tensor:
        """The result instead of the sampler's, when it has no noise left."""
        return x


class _Masked(_Region):
    """Inpainting: outside the mask the network sees the original at the noise of the moment, and the sampler is told the original."""

    def __init__(self, mask: Tensor, latent: Tensor, noise: Tensor, way: Process, request: Request) -> None:
        self.mask, self.latent, self.noise, self.way, self.soft, self.request = mask, latent, noise, way, mask, request

    def enter(self, x: Tensor, sigma: float) -> Tensor:
        if self.request.graded:
            levels = self.request.sigmas[0], sigma, max(self.request.sigmas[-1], float(self.way.table[0]))
            first, now, last = (_time(self.way, s) for s in levels)
            self.mask = torch.lerp(self.soft, (self.soft >= (now - last) / (first - last)).to(self.soft), self.request.graded)
        return x * self.mask + self.way.noised(self.latent, self.noise, sigma) * (1 - self.mask)

    def leave(self, x0: Tensor) -> Tensor:
        return x0 * self.mask + self.latent * (1 - self.mask)

    def settle(self, x: Tensor) -> Tensor:
        return torch.where(self.soft > 0, x, self.latent)


def _time(way: Process, sigma: float) -> float:
    """A flow's sigma, or the place in the training table that is nearest."""
    return sigma if isinstance(way, Flow) else float(np.abs(np.log(way.table) - math.log(sigma)).argmin())


def _region(request: Request, latent: Tensor, noise: Tensor, way: Process) -> _Region:
    if request.mask is None:
        return _Region()
    mask = request.mask.to(latent)
    if mask.shape[-2:] != latent.shape[-2:]:
        mask = torch.nn.functional.interpolate(mask, latent.shape[-2:], mode="bilinear")
    if SAMPLERS[request.sampler].fresh_inpaint:
        noise = start_noise(latent.shape, request.seed + 1).to(latent)
    return _Masked(mask, latent, noise, way, request)
