"""Samplers that ask once a step and remember nothing."""
from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.core import Noise, Sampling, ancestral, sampler, stochastic, towards

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
def euler_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """Euler steps to below the next sigma, then noise up to it, as much as the reversed chain has (arXiv:2006.11239).

    On a flow the point below is t * t / s as well, in the flow's own sigma; ComfyUI's choice.
    """
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        down, keep, up = ancestral(process, s, t)
        x = towards(x, x0, s, down)
        if t > 0:
            x = x * keep + noise(s, t) * up
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
