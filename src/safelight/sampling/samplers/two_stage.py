"""Samplers that look at a second point within the step."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.core import Noise, Sampling, ancestral, sampler, stochastic, towards
from safelight.sampling.process import FINITE

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process


@sampler(order=2)
def heun(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Heun's method (Karras et al. 2022, arXiv:2206.00364, algorithm 1): the mean of the slopes at both ends; the step to 0 is Euler's."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        guess = towards(x, x0, s, t)
        if t == 0:
            return guess
        x0_t = yield guess, t
        x = x + ((x - x0) / s + (guess - x0_t) / t) * ((t - s) / 2)
    return x


@sampler(order=2, extra_step=True)
def dpm_2(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DPM-Solver-2's point, half-way in log sigma (Lu et al. 2022, arXiv:2206.00927), with the midpoint rule's slope; last step Euler's."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        x = yield from _midpoint(x, x0, s, t)
    return x


@stochastic("fresh", extra_step=True)
def dpm_2_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """`dpm_2` to below the next sigma, then noise up to it."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        down, keep, up = ancestral(process, s, t)
        x = yield from _midpoint(x, x0, s, down)
        x = x * keep + noise(s, t) * up
    return x


def _midpoint(x: Tensor, x0: Tensor, s: float, t: float) -> Sampling:
    mid = math.sqrt(s * t)
    there = towards(x, x0, s, mid)
    x0_mid = yield there, mid
    return x + (there - x0_mid) * ((t - s) / mid)


@stochastic("fresh")
def dpmpp_2s_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1, r = 1/2) to below the next sigma, then noise up to it."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        down, keep, up = ancestral(process, s, t)
        # A flow begins where log SNR is minus infinity; half-way from there is nowhere, so the point is taken just below the start.
        mid = process.sigma((process.log_snr(s) + process.log_snr(down)) / 2) if process.alpha(s) > 0 else FINITE
        x0_mid = yield towards(x, x0, s, mid), mid
        x = towards(x, x0_mid, s, down) * keep + noise(s, t) * up
    return x


@stochastic("tree")
def dpmpp_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """DPM-Solver++ of the reverse SDE with a second point half-way in log SNR (arXiv:2211.01095, section 5; r = 1/2), each part of the step
    split as the reversed chain's."""
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        mid = process.sigma((process.log_snr(s) + process.log_snr(t)) / 2)
        there = _renoised(x, x0, process, (s, mid), noise)
        x0_mid = yield there, mid
        x = _renoised(x, x0_mid, process, (s, t), noise)
    return x


def _renoised(x: Tensor, x0: Tensor, process: Process, step: tuple[float, float], noise: Noise) -> Tensor:
    """The reversed chain's step from s to t when x0 is known: in x / alpha, whose noise is sigma / alpha on any process."""
    s, t = step
    from_, to = s / process.alpha(s), t / process.alpha(t)
    down = to * to / from_
    up = math.sqrt(to * to - down * down)
    return (towards(x / process.alpha(s), x0, from_, down) + noise(s, t) * up) * process.alpha(t)
