"""Samplers that follow log SNR, keep the linear part of the flow exact and remember earlier x0: DPM-Solver++, RES, ER-SDE."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import Noise, Plus, Sampling, ancestral, sampler, stochastic, towards, unguided

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from safelight.sampling.process import Process

_POINTS = 200
"""Points of ER-SDE's numerical integrals, the paper's figure."""


@sampler(order=2)
def dpmpp_2m(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""
    return (yield from unguided(dpmpp_2m_cfg_pp(x, sigmas)))


@sampler(order=2, plus=True)
def dpmpp_2m_cfg_pp(x: Tensor, sigmas: Sequence[float]) -> Plus:
    """`dpmpp_2m` (arXiv:2211.01095) in the manner of CFG++ (arXiv:2406.08070): the noise in x and the x0 before are those without the
    prompt."""
    before: tuple[float, Tensor] | None = None
    for s, t in pairwise(sigmas):
        x0, bare = yield x, s
        if t == 0:
            return x0
        guess = x0
        if before is not None:
            r = math.log(before[0] / s) / math.log(s / t)
            guess = x0 + (x0 - before[1]) / (2 * r)
        x = towards(x + (x0 - bare), guess, s, t)
        before = s, bare
    return x


@stochastic("tree")
def dpmpp_2m_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Sampling:
    """SDE-DPM-Solver++(2M), midpoint (arXiv:2211.01095, section 5); `eta` scales the noise."""
    before: tuple[float, Tensor] | None = None
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        h = process.log_snr(t) - process.log_snr(s)
        guess = x0 if before is None else x0 + (x0 - before[1]) * (h / (2 * before[0]))
        x = _sde_step(x, guess, process, (s, t), eta) + noise(s, t) * _sde_noise(h, t, eta)
        before = h, x0
    return x


@stochastic("tree")
def dpmpp_2m_sde_heun(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Sampling:
    """SDE-DPM-Solver++(2M) (arXiv:2211.01095, section 5) with the exact integral of the line through the last two x0; `eta` scales the
    noise."""
    return (yield from _sde_multistep(x, sigmas, process, noise, eta=eta, memory=1))


@stochastic("tree")
def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0) -> Sampling:
    """SDE-DPM-Solver++ with two remembered x0: the multistep of arXiv:2211.01095, section 5, one order higher (Katherine Crowson,
    k-diffusion); `eta` scales the noise."""
    return (yield from _sde_multistep(x, sigmas, process, noise, eta=eta, memory=2))


def _sde_multistep(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float, memory: int) -> Sampling:
    before: list[tuple[float, Tensor]] = []
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        h = process.log_snr(t) - process.log_snr(s)
        x = _sde_step(x, x0, process, (s, t), eta)
        for weight, slope in zip(_phis(h * (1 + eta)), _slopes(x0, before, h), strict=False):
            x = x + slope * (weight * process.alpha(t))
        x = x + noise(s, t) * _sde_noise(h, t, eta)
        before = [(h, x0), *before][:memory]
    return x


def _sde_step(x: Tensor, x0: Tensor, process: Process, step: tuple[float, float], eta: float = 1.0) -> Tensor:
    """The exact solution of the reverse SDE's drift over one step if x0 stayed as it is."""
    s, t = step
    h = process.log_snr(t) - process.log_snr(s)
    return x * (t / s * math.exp(-h * eta)) - x0 * (process.alpha(t) * math.expm1(-h * (1 + eta)))


def _sde_noise(h: float, t: float, eta: float = 1.0) -> float:
    """How much noise the reverse SDE adds over a step of h in log SNR that ends at sigma t."""
    return t * math.sqrt(-math.expm1(-2 * h * eta))


def _phis(h: float) -> tuple[float, float]:
    """What the first and (half) the second derivative of x0 by log SNR, times the step, weigh in the integral."""
    first = math.expm1(-h) / h + 1
    return first, 0.5 - first / h


def _slopes(x0: Tensor, before: Sequence[tuple[float, Tensor]], h: float) -> list[Tensor]:
    """First and second difference quotients of x0 by log SNR in units of the step h; as many as there is memory for."""
    if not before:
        return []
    r0 = before[0][0] / h
    newest = (x0 - before[0][1]) / r0
    if len(before) == 1:
        return [newest]
    r1 = before[1][0] / h
    bend = (newest - (before[0][1] - before[1][1]) / r1) / (r0 + r1)
    return [newest + bend * r0, bend]


@stochastic("none", order=2)
def res_multistep(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """Refined exponential solver, second-order multistep (Zhang et al. 2023, arXiv:2308.02157, section 4)."""
    return (yield from unguided(_res(x, sigmas, process, noise, eta=0.0)))


@stochastic("none", order=2, plus=True)
def res_multistep_cfg_pp(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Plus:
    """`res_multistep` (arXiv:2308.02157) of the x0 without the prompt, from an x that has been led to the guided one (CFG++,
    arXiv:2406.08070)."""
    return (yield from _res(x, sigmas, process, noise, eta=0.0))


@stochastic("fresh")
def res_multistep_ancestral(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """`res_multistep` (arXiv:2308.02157) to below the next sigma, then noise up to it."""
    return (yield from unguided(_res(x, sigmas, process, noise, eta=1.0)))


@stochastic("fresh", plus=True)
def res_multistep_ancestral_cfg_pp(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Plus:
    """`res_multistep_cfg_pp` (arXiv:2308.02157, arXiv:2406.08070) to below the next sigma, then noise up to it."""
    return (yield from _res(x, sigmas, process, noise, eta=1.0))


def _res(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float) -> Plus:
    before: tuple[float, float, Tensor] | None = None  # sigma, where the step from it ended before its noise, x0
    for s, t in pairwise(sigmas):
        x0, bare = yield x, s
        if t == 0:
            return x0
        down, keep, up = ancestral(process, s, t, eta)
        x = x + (x0 - bare)
        if before is None:
            x = towards(x, x0, s, down)
        else:
            h = math.log(s / down)
            c2 = math.log(before[1] / before[0]) / h
            phi1 = -math.expm1(-h) / h
            phi2 = (1 - phi1) / h
            x = x * (down / s) + bare * (h * (phi1 - phi2 / c2)) + before[2] * (h * phi2 / c2)
        if up > 0:
            x = x * keep + noise(s, t) * up
        before = s, down, bare
    return x


@stochastic("fresh")
def er_sde(
    x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, stages: int = 3, power: float = 0.0,
) -> Sampling:
    """ER-SDE-Solver-3 (Cui et al. 2023, arXiv:2309.06169, algorithm 3 and its noise scale eq. 20), in l = sigma / alpha.

    `stages` is the order; with a `power` the noise scale is that power of l: 1 gives the probability flow, 2 the reversed chain.
    """
    before: list[tuple[float, Tensor]] = []
    slope_before: Tensor | None = None
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        l_s, l_t = s / process.alpha(s), t / process.alpha(t)
        r = float(_er_scale(l_t, power) / _er_scale(l_s, power))
        y = x * (r / process.alpha(s)) + x0 * (1 - r)
        if before and stages > 1:
            slope = (x0 - before[0][1]) / (l_s - before[0][0])
            y = y + slope * _er_weight(l_s, l_t, 1, power)
            if slope_before is not None and stages > 2:
                y = y + (slope - slope_before) * (2 / (l_s - before[1][0]) * _er_weight(l_s, l_t, 2, power))
            slope_before = slope
        x = (y + noise(s, t) * math.sqrt(max(l_t**2 - (l_s * r) ** 2, 0.0))) * process.alpha(t)
        before = [(l_s, x0), *before[:1]]
    return x


def _er_scale(l_at: ArrayLike, power: float) -> NDArray[np.float64]:
    """How the noise grows with l (eq. 20)."""
    at = np.asarray(l_at, dtype=np.float64)
    grown: NDArray[np.float64] = at**power if power else at * (np.exp(at**0.3) + 10)
    return grown


def _er_weight(l_s: float, l_t: float, order: int, power: float) -> float:
    """What the order-th derivative of x0 by l weighs in the step; the integral is a sum of 200 rectangles."""
    width = (l_s - l_t) / _POINTS
    at = l_t + np.arange(_POINTS) * width
    integral = float(np.sum((at - l_s) ** (order - 1) / _er_scale(at, power)) * width)
    return (l_t - l_s) ** order / order + integral * float(_er_scale(l_t, power))
