"""Samplers that ask once a step and use the slopes of earlier steps: Adams-Bashforth in three clocks."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import Plus, Sampling, sampler, towards, unguided

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)

_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Adams-Bashforth weights for equal steps, newest slope first, by order."""


@sampler(order=2)
def lms(x: Tensor, sigmas: Sequence[float], *, order: int = 4) -> Sampling:
    """Linear multistep of `order` 4 for unequal steps: the polynomial in sigma through the last slopes, integrated exactly (first in
    k-diffusion)."""
    slopes: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0 = yield x, s
        slopes = [(x - x0) / s, *slopes][:order]
        if t == 0:
            return x0
        at, weights = gauss(s, t)
        x = _weighted(x, through(sigmas[: i + 1][: -len(slopes) - 1 : -1], at) @ weights, slopes)
    return x


@sampler(order=2)
def ipndm(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Improved pseudo numerical method: order-4 Adams-Bashforth weights of equal steps on any steps (Zhang and Chen 2022, arXiv:2204.13902,
    section 3.3; Liu et al. 2022, arXiv:2202.09778)."""
    return (yield from _bashforth(x, sigmas, lambda steps: np.array(_ADAMS[len(steps) - 1])))


@sampler(order=2)
def ipndm_v(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """`ipndm` (arXiv:2204.13902, section 3.3) with weights for unequal steps, in the form that its users know (see `_unequal`)."""
    return (yield from _bashforth(x, sigmas, _unequal))


def _bashforth(x: Tensor, sigmas: Sequence[float], weights: Callable[[Sequence[float]], NDArray[np.float64]]) -> Sampling:
    """Along the last four slopes at most, weighed by the lengths of the steps they belong to, newest first."""
    slopes: list[Tensor] = []
    steps: list[float] = []
    for s, t in pairwise(sigmas):
        x0 = yield x, s
        slopes, steps = [(x - x0) / s, *slopes[:3]], [t - s, *steps[:3]]
        if t == 0:
            return x0
        x = _weighted(x, weights(steps) * (t - s), slopes)
    return x


def _unequal(steps: Sequence[float]) -> NDArray[np.float64]:
    """Weights of the slopes for steps of these lengths, newest first: what Newton's divided differences of the slopes, as many as there are
    slopes before, integrate to over the newest step.

    ComfyUI's figures, which its users know, differ from the integrals: those have h (2 h + 3 p) / (6 back) for `second`, 3 h + 8 p in
    place of 5 h + 12 p in `third`, and n / m for the last p / n.
    """
    h, p, n, m = (*steps, *[steps[-1]] * 3)[:4]
    back, ratio = p * (p + n), p / n
    far = back / (n * (n + m))
    second = 0.5 - h * h / (6 * back)
    third = h * (h * (5 * h + 12 * p + 4 * n) + 6 * back) / (12 * back * (p + n + m))
    differences = np.array([
        [1, 0, 0, 0],
        [1, -1, 0, 0],
        [1, -1 - ratio, ratio, 0],
        [1, -1 - ratio - far, ratio + far * (1 + n / m), -far * ratio],
    ])
    factors = np.array([1, h / p / 2, second, third])[: len(steps)]
    weights: NDArray[np.float64] = factors @ differences[: len(steps), : len(steps)]
    return weights


@sampler()
def gradient_estimation(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """Gradient estimation with gamma 2 (Permenter and Yuan 2023, arXiv:2306.04848, algorithm 2): along the slope, and as much again of what
    it changed by."""
    return (yield from unguided(gradient_estimation_cfg_pp(x, sigmas)))


@sampler(plus=True)
def gradient_estimation_cfg_pp(x: Tensor, sigmas: Sequence[float]) -> Plus:
    """`gradient_estimation` (arXiv:2306.04848) to the guided x0 along the slope without the prompt (CFG++, arXiv:2406.08070)."""
    before: Tensor | None = None
    for s, t in pairwise(sigmas):
        x0, bare = yield x, s
        slope = (x - bare) / s
        x = x0 + slope * t
        if before is not None and t > 0:
            x = x + (slope - before) * (t - s)
        before = slope
    return x


@sampler(order=2)
def deis(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DEIS tAB of order 3 (Zhang and Chen 2022, arXiv:2204.13902, eq. 15): the polynomial goes through the last slopes in the time of the
    linear VP process, and is integrated over sigma."""
    slopes: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0 = yield x, s
        slopes = [(x - x0) / s, *slopes[:2]]
        if t == 0:
            return x0
        if i == 0:
            x = towards(x, x0, s, t)
            continue
        at, weights = gauss(_vp_time(s), _vp_time(t))
        known = [_vp_time(v) for v in sigmas[: i + 1][: -len(slopes) - 1 : -1]]
        x = _weighted(x, through(known, at) @ (weights * _vp_sigma_slope(at)), slopes)
    return x


def gauss(a: float, b: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points and weights of a Gauss-Legendre integral from a to b."""
    return (a + b) / 2 + (b - a) / 2 * _NODES, (b - a) / 2 * _WEIGHTS


def through(known: Sequence[float], at: NDArray[np.float64]) -> NDArray[np.float64]:
    """(len(known), len(at)): the Lagrange polynomials of the known points."""
    return np.array([np.prod([(at - o) / (k - o) for o in known if o != k] or [np.ones_like(at)], axis=0) for k in known])


def _weighted(x: Tensor, weights: NDArray[np.float64], slopes: Sequence[Tensor]) -> Tensor:
    for w, d in zip(weights.tolist(), slopes, strict=True):
        x = x + d * w
    return x


_GROWTH_AT_1, _GROWTH_AT_START, _START = math.log1p(80.0**2), math.log1p(0.002**2), 1e-3
_BETA_D = 2 * (_GROWTH_AT_START / _START - _GROWTH_AT_1) / (_START - 1)
_BETA_MIN = _GROWTH_AT_1 - _BETA_D / 2
"""The linear VP process whose sigma is 0.002 at time 0.001 and 80 at time 1 (arXiv:2206.00364, appendix C)."""


def _vp_time(sigma: float) -> float:
    """log(1 + sigma^2) = beta_d t^2 / 2 + beta_min t, solved for t."""
    return (math.sqrt(_BETA_MIN**2 + 2 * _BETA_D * math.log1p(sigma * sigma)) - _BETA_MIN) / _BETA_D


def _vp_sigma_slope(t: NDArray[np.float64]) -> NDArray[np.float64]:
    """d sigma / d t."""
    grown = np.expm1(_BETA_D * t * t / 2 + _BETA_MIN * t)  # sigma^2
    slope: NDArray[np.float64] = (grown + 1) * (_BETA_D * t + _BETA_MIN) / (2 * np.sqrt(grown))
    return slope
