"""Samplers that ask once a step and remember nothing."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.core import Noise, Plus, Sampling, ancestral, sampler, shares, stochastic, towards

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process


@sampler()
def euler(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Euler steps without churn (Karras et al. 2022, arXiv:2206.00364, algorithm 2)."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        x = towards(x, x0, s, t)
    return x


@sampler(fresh_inpaint=True)
def ddim(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DDIM with eta = 0 (Song et al. 2020, arXiv:2010.02502, eq. 12): in x = x0 + sigma eps its step is Euler's."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        eps = (x - x0) / s
        x = x0 + eps * t
    return x


@stochastic("fresh")
def euler_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Sampling:
    """Euler steps to below the next sigma, then noise up to it, as much as the reversed chain has (arXiv:2006.11239).

    On a flow the point below is t * t / s as well, in the flow's own sigma; ComfyUI's choice. `eta` scales the noise.
    """
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        down, keep, up = ancestral(process, s, t, eta)
        x = towards(x, x0, s, down)
        if up > 0:
            x = x * keep + noise(s, t) * up
    return x


@stochastic("none", plus=True)
def euler_cfg_pp(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Plus:
    """CFG++ (Chung et al. 2024, arXiv:2406.08070, algorithm 2): DDIM to the guided x0, with the noise that is seen without the prompt."""
    return (yield from euler_ancestral_cfg_pp(x, sigmas, process, noise, eta=0.0))


@stochastic("fresh", plus=True)
def euler_ancestral_cfg_pp(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Plus:
    """`euler_cfg_pp` (arXiv:2406.08070) with a part of the noise drawn anew, with `eta` 1 as much as the reversed chain has."""
    for s, t in pairwise(sigmas):
        x0, bare = yield x, s
        a_s, a_t = process.alpha(s), process.alpha(t)
        eps = (x - bare * a_s) / s
        kept, new = shares(t * a_s / (a_t * s), eta)
        x = x0 * a_t + eps * (t * kept)
        if t * new > 0:
            x = x + noise(s, t) * (t * new)
    return x


@stochastic("fresh")
def ddpm(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """A draw from the chain's own posterior q(x_t | x_s, x0) (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7), for any process."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        a_s, a_t = process.alpha(s), process.alpha(t)
        ratio = (t * a_s / (a_t * s)) ** 2  # SNR(s) / SNR(t)
        mean = x0 * (a_t * (1 - ratio)) + x * (t * t * a_s / (a_t * s * s))
        x = mean + noise(s, t) * (t * (1 - ratio) ** 0.5)
    return x


@stochastic("fresh")
def lcm(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """Multistep consistency sampling: all the way to x0, then back up with new noise (arXiv:2303.01469, algorithm 1; arXiv:2310.04378)."""
    for s, t in pairwise(sigmas):
        x = yield x, s
        if t > 0:
            x = process.noised(x, noise(s, t), t)
    return x
