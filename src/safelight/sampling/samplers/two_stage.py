"""Samplers that look at a second point within the step."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from safelight.sampling.core import Noise, Plus, Sampling, ancestral, sampler, shares, stochastic, towards
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
def dpmpp_2s_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Sampling:
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv:2211.01095, algorithm 1, r = 1/2) to below the next sigma, then noise up to it. `eta` scales
    the noise."""
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        down, keep, up = ancestral(process, s, t, eta)
        x0_mid = x0
        if down > 0:  # nothing lies half-way to 0 in log SNR; the step is Euler's
            mid = _half_way(process, s, down)
            x0_mid = yield towards(x, x0, s, mid), mid
        x = towards(x, x0_mid, s, down) * keep + noise(s, t) * up
    return x


@stochastic("fresh", plus=True)
def dpmpp_2s_ancestral_cfg_pp(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Plus:
    """`dpmpp_2s_ancestral` (arXiv:2211.01095) in the manner of CFG++ (arXiv:2406.08070): the noise in x is that seen without the prompt, in
    the second half of the step by the network at the point half-way; ComfyUI's choice."""
    for s, t in pairwise(sigmas):
        x0, bare = yield x, s
        if t == 0:
            return x0
        down, keep, up = ancestral(process, s, t, eta)
        x0_mid = x0
        if down > 0:
            mid = _half_way(process, s, down)
            x0_mid, bare = yield towards(x + (x0 - bare), x0, s, mid), mid
        x = towards(x + (x0 - bare), x0_mid, s, down) * keep + noise(s, t) * up
    return x


def _half_way(process: Process, s: float, t: float) -> float:
    """Half-way in log SNR. A flow begins where that is minus infinity; half-way from there is nowhere: just below the start is meant."""
    return process.sigma((process.log_snr(s) + process.log_snr(t)) / 2) if process.alpha(s) > 0 else FINITE


@sampler()
def heunpp2(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Heun++: Heun's method (arXiv:2206.00364, algorithm 1) with up to two points ahead, each slope weighed by its sigma over the first
    sigma; the last step is Euler's (Carzit, sd-webui-samplers-scheduler)."""
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        slope = (x - x0) / s
        ahead = sigmas[i + 1 : -1][:2]
        weights = [v / ((len(ahead) + 1) * sigmas[0]) for v in ahead]
        mean = slope * (1 - sum(weights))
        there, at = x, s
        for v, weight in zip(ahead, weights, strict=True):
            there, at = there + slope * (v - at), v
            x0 = yield there, at
            slope = (there - x0) / at
            mean = mean + slope * weight
        x = x + mean * (t - s)
    return x


@stochastic("tree")
def dpmpp_sde(
    x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0, r: float = 0.5,
) -> Sampling:
    """DPM-Solver++ of the reverse SDE with a second point half-way in log SNR (arXiv:2211.01095, section 5; `r` = 1/2), each part of the
    step split as the reversed chain's; `eta` scales the noise."""
    if r == 0:
        raise ValueError("sampling: dpmpp_sde: r: got 0, expected more: it is where in the step the second point lies")
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        mid = process.sigma(process.log_snr(s) + (process.log_snr(t) - process.log_snr(s)) * r)
        a, b = _split(process, s, mid, eta), _split(process, s, t, eta)
        x0_mid = yield _renoised(x, x0, a, noise(s, mid)), mid
        x = _renoised(x, x0 + (x0_mid - x0) / (2 * r), b, noise(s, t))
    return x


def _split(process: Process, s: float, t: float, eta: float) -> tuple[float, float, float]:
    """What is left of x, of x0 and how much noise is new after the reversed chain's step from s to t when x0 is known."""
    a_s, a_t = process.alpha(s), process.alpha(t)
    kept, new = shares(t * a_s / (a_t * s), eta)
    left = t * kept / s
    return left, a_t - left * a_s, t * new


def _renoised(x: Tensor, x0: Tensor, step: tuple[float, float, float], noise: Tensor) -> Tensor:
    left, gained, new = step
    return x * left + x0 * gained + noise * new
