"""What a sampler is: a coroutine that asks for x0. No torch at import, so that every surface can list the names."""
from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from inspect import getdoc
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process

Sampling = Generator[tuple["Tensor", float], "Tensor", "Tensor"]
"""Asks for x0 by `x0 = yield x, sigma`; returns x at the last sigma."""


class Noise(Protocol):
    """Where a sampler gets its noise from."""

    def __call__(self, s: float, t: float) -> Tensor:
        """Unit normal numbers of x's shape for the step from sigma s down to t."""
        ...


Deterministic = Callable[["Tensor", Sequence[float]], Sampling]
Stochastic = Callable[["Tensor", Sequence[float], "Process", Noise], Sampling]
NoiseKind = Literal["none", "fresh", "tree"]


@dataclass(frozen=True)
class Sampler:
    """A sampler by name. `run` takes x at sigmas[0], the falling sigmas, the process and the noise.

    `noise` says which noise it wants: `none`, `fresh` (independent draws) or `tree` (a Brownian path, the same for any step sizes).
    `order` is its order of convergence on a smooth flow, start-up included. `extra_step`: it is given one step more and the sigma before
    the last is left out, because it would ask a network below its smallest trained sigma. `fresh_inpaint`: outside an inpainting mask it
    wants noise other than the start's. `doc` is what its function says of itself, the paper included.
    """

    name: str
    run: Stochastic
    noise: NoiseKind = "none"
    order: int = 1
    extra_step: bool = False
    fresh_inpaint: bool = False
    doc: str = ""


SAMPLERS: dict[str, Sampler] = {}


def sampler(*, order: int = 1, extra_step: bool = False, fresh_inpaint: bool = False) -> Callable[[Deterministic], Deterministic]:
    """Register a solver of the probability flow, `f(x, sigmas)`; it works on any process."""

    def register(f: Deterministic) -> Deterministic:
        name = f.__name__
        SAMPLERS[name] = Sampler(name, lambda x, sigmas, _p, _n: f(x, sigmas), "none", order, extra_step, fresh_inpaint, getdoc(f) or "")
        return f

    return register


def stochastic(noise: Literal["fresh", "tree"], *, extra_step: bool = False) -> Callable[[Stochastic], Stochastic]:
    """Register a sampler that adds noise on its way, `f(x, sigmas, process, noise)`."""

    def register(f: Stochastic) -> Stochastic:
        SAMPLERS[f.__name__] = Sampler(f.__name__, f, noise, extra_step=extra_step, doc=getdoc(f) or "")
        return f

    return register


def towards(x: Tensor, x0: Tensor, s: float, t: float) -> Tensor:
    """From sigma s to t along the straight line to x0: Euler's step, DDIM's and the first-order exponential one, in any process."""
    return x0 + (x - x0) * (t / s)


def ancestral(process: Process, s: float, t: float) -> tuple[float, float, float]:
    """How to go from s to t with as much fresh noise as the reversed chain has (DDPM, arXiv:2006.11239, eq. 7).

    (down, keep, up): step without noise to `down` <= t, multiply by `keep`, add `up` times unit noise. (0, 1, 0) when t is 0.
    """
    if t == 0:
        return 0.0, 1.0, 0.0
    down = t * t / s
    keep = process.alpha(t) / process.alpha(down)
    return down, keep, math.sqrt(max(t * t - (down * keep) ** 2, 0.0))


