"""Samplers that follow log SNR, keep the linear part of the flow exact and remember earlier x0: DPM-Solver++, RES, ER-SDE."""
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import Noise, Sampling, sampler, stochastic, towards

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from safelight.sampling.process import Process

_POINTS = 200
"""Points of ER-SDE's numerical integrals, the paper's figure."""


@sampler(order=2)
def dpmpp_2m(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095, algorithm 2)."""
    before: tuple[float, Tensor] | None = None
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        guess = x0
        if before is not None:
            r = math.log(before[0] / s) / math.log(s / t)
            guess = x0 + (x0 - before[1]) / (2 * r)
        x = towards(x, guess, s, t)
        before = s, x0
    return x


@stochastic("tree")
def dpmpp_2m_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """SDE-DPM-Solver++(2M), midpoint (arXiv:2211.01095, section 5)."""
    before: tuple[float, Tensor] | None = None
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        h = process.log_snr(t) - process.log_snr(s)
        guess = x0 if before is None else x0 + (x0 - before[1]) * (h / (2 * before[0]))
        x = _sde_step(x, guess, process, (s, t)) + noise(s, t) * _sde_noise(h, t)
        before = h, x0
    return x


@stochastic("tree")
def dpmpp_3m_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """SDE-DPM-Solver++ with two remembered x0: the multistep of arXiv:2211.01095, section 5, one order higher (Katherine Crowson,
    k-diffusion)."""
    before: list[tuple[float, Tensor]] = []
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        h = process.log_snr(t) - process.log_snr(s)
        x = _sde_step(x, x0, process, (s, t))
        for weight, slope in zip(_phis(2 * h), _slopes(x0, before, h), strict=False):
            x = x + slope * (weight * process.alpha(t))
        x = x + noise(s, t) * _sde_noise(h, t)
        before = [(h, x0), *before[:1]]
    return x


def _sde_step(x: Tensor, x0: Tensor, process: Process, step: tuple[float, float]) -> Tensor:
    """The exact solution of the reverse SDE's drift over one step if x0 stayed as it is."""
    s, t = step
    h = process.log_snr(t) - process.log_snr(s)
    return x * (t / s * math.exp(-h)) - x0 * (process.alpha(t) * math.expm1(-2 * h))


def _sde_noise(h: float, t: float) -> float:
    """How much noise the reverse SDE adds over a step of h in log SNR that ends at sigma t."""
    return t * math.sqrt(-math.expm1(-2 * h))


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


@sampler(order=2)
def res_multistep(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Refined exponential solver, second-order multistep (Zhang et al. 2023, arXiv:2308.02157, section 4)."""
    before: tuple[float, Tensor] | None = None
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        if t == 0:
            return x0
        if before is None:
            x = towards(x, x0, s, t)
        else:
            h = math.log(s / t)
            c2 = -math.log(before[0] / s) / h
            phi1 = -math.expm1(-h) / h
            phi2 = (1 - phi1) / h
            x = x * (t / s) + x0 * (h * (phi1 - phi2 / c2)) + before[1] * (h * phi2 / c2)
        before = s, x0
    return x


@stochastic("fresh")
def er_sde(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """ER-SDE-Solver-3 (Cui et al. 2023, arXiv:2309.06169, algorithm 3 and its noise scale eq. 20), in l = sigma / alpha."""
    before: list[tuple[float, Tensor]] = []
    slope_before: Tensor | None = None
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        l_s, l_t = s / process.alpha(s), t / process.alpha(t)
        r = float(_er_scale(l_t) / _er_scale(l_s))
        y = x * (r / process.alpha(s)) + x0 * (1 - r)
        if before:
            slope = (x0 - before[0][1]) / (l_s - before[0][0])
            y = y + slope * _er_weight(l_s, l_t, 1)
            if slope_before is not None:
                y = y + (slope - slope_before) * (2 / (l_s - before[1][0]) * _er_weight(l_s, l_t, 2))
            slope_before = slope
        x = (y + noise(s, t) * math.sqrt(max(l_t**2 - (l_s * r) ** 2, 0.0))) * process.alpha(t)
        before = [(l_s, x0), *before[:1]]
    return x


def _er_scale(l_at: ArrayLike) -> NDArray[np.float64]:
    """How the noise grows with l (eq. 20)."""
    at = np.asarray(l_at, dtype=np.float64)
    grown: NDArray[np.float64] = at * (np.exp(at**0.3) + 10)
    return grown


def _er_weight(l_s: float, l_t: float, order: int) -> float:
    """What the order-th derivative of x0 by l weighs in the step; the integral is a sum of 200 rectangles."""
    width = (l_s - l_t) / _POINTS
    at = l_t + np.arange(_POINTS) * width
    integral = float(np.sum((at - l_s) ** (order - 1) / _er_scale(at)) * width)
    return (l_t - l_s) ** order / order + integral * float(_er_scale(l_t))
