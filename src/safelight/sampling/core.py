"""What a sampler is: a coroutine that asks for x0. No torch at import, so that every surface can list the names."""
from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from inspect import getdoc, signature
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process

Sampling = Generator[tuple["Tensor", float], "Tensor", "Tensor"]
"""Asks for x0 by `x0 = yield x, sigma`; returns x at the last sigma."""

Plus = Generator[tuple["Tensor", float], tuple["Tensor", "Tensor"], "Tensor"]
"""The same, told two: `x0, bare = yield x, sigma`. `bare` is x0 without the prompt, what guidance leads away from (CFG++,
arXiv:2406.08070); where nothing guides, both are one."""


class Noise(Protocol):
    """Where a sampler gets its noise from."""

    def __call__(self, s: float, t: float) -> Tensor:
        """Unit normal numbers of x's shape for the step from sigma s down to t."""
        ...


Run = Callable[..., "Sampling | Plus"]
NoiseKind = Literal["none", "fresh", "tree"]


@dataclass(frozen=True)
class Sampler:
    """A sampler by name. `run` takes x at sigmas[0], the falling sigmas, the process, the noise, and its own settings by name.

    `noise` says which noise it wants: `none`, `fresh` (independent draws) or `tree` (a Brownian path, the same for any step sizes).
    `order` is its order of convergence on a smooth flow, start-up included. `extra_step`: it is given one step more and the sigma before
    the last is left out, because it would ask a network below its smallest trained sigma. `fresh_inpaint`: outside an inpainting mask it
    wants noise other than the start's. `own_levels`: it visits levels of its own choice, from the first sigma to the last above 0, where
    it ends. `plus`: it is told two x0 (see `Plus`). `options` are its settings and their defaults. `doc` is what its function says of
    itself, the paper included.
    """

    name: str
    run: Run
    noise: NoiseKind = "none"
    order: int = 1
    extra_step: bool = False
    fresh_inpaint: bool = False
    own_levels: bool = False
    plus: bool = False
    options: Mapping[str, float] = field(default_factory=dict)
    doc: str = ""


SAMPLERS: dict[str, Sampler] = {}
F = TypeVar("F", bound=Callable[..., Any])


def sampler(**traits: Any) -> Callable[[F], F]:
    """Register a solver of the probability flow, `f(x, sigmas, *, settings)`; it works on any process. `traits` are fields of Sampler."""

    def register(f: F) -> F:
        return _register(f, lambda x, sigmas, _p, _n, **options: f(x, sigmas, **options), traits)

    return register


def stochastic(noise: NoiseKind, **traits: Any) -> Callable[[F], F]:
    """Register a sampler that adds noise on its way, `f(x, sigmas, process, noise, *, settings)`; with "none" one that adds none, but wants
    to know the process."""
    return lambda f: _register(f, f, traits | {"noise": noise})


def _register(f: F, run: Run, traits: Mapping[str, Any]) -> F:
    options = {p.name: p.default for p in signature(f).parameters.values() if p.kind is p.KEYWORD_ONLY}
    SAMPLERS[f.__name__] = Sampler(f.__name__, run, options=options, doc=getdoc(f) or "", **traits)
    return f


def unguided(walk: Plus) -> Sampling:
    """The plain sampler that a CFG++ one is when both x0 are the same."""
    try:
        asked = next(walk)
        while True:
            x0 = yield asked
            asked = walk.send((x0, x0))
    except StopIteration as end:
        x: Tensor = end.value
        return x


def towards(x: Tensor, x0: Tensor, s: float, t: float) -> Tensor:
    """From sigma s to t along the straight line to x0: Euler's step, DDIM's and the first-order exponential one, in any process."""
    return x0 + (x - x0) * (t / s)


def shares(ratio: float, eta: float = 1.0) -> tuple[float, float]:
    """How much of the noise after a step is kept and how much is new, as parts of a vector of length 1.

    `ratio` is sigma / alpha after the step over that before. With eta 1 as much is new as the reversed chain has (DDPM, arXiv:2006.11239,
    eq. 7), with 0 nothing (DDIM, arXiv:2010.02502, eq. 16).
    """
    new = min(1.0, eta * math.sqrt(max(1 - ratio * ratio, 0.0)))
    return (ratio if eta == 1 else math.sqrt(1 - new * new)), new


def ancestral(process: Process, s: float, t: float, eta: float = 1.0) -> tuple[float, float, float]:
    """How to go from s to t with fresh noise, as much as `shares` says; on a flow by a point below t that eta moves, ComfyUI's choice.

    (down, keep, up): step without noise to `down` <= t, multiply by `keep`, add `up` times unit noise. (0, 1, 0) when t is 0.
    """
    if t == 0:
        return 0.0, 1.0, 0.0
    down = t * shares(t / s, eta)[0] if process.alpha(s) == 1 else t * (1 - eta * (1 - t / s))
    keep = process.alpha(t) / process.alpha(down)
    return down, keep, math.sqrt(max(t * t - (down * keep) ** 2, 0.0))
