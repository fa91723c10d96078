"""Solvers of the reverse SDE in log SNR: SEEDS with points inside the step, SA-Solver with memory of those before it."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import Noise, Sampling, stochastic
from safelight.sampling.samplers.multistep import gauss, through

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process


@stochastic("fresh")
def seeds_2(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """SEEDS-2 (Gonzalez et al. 2023, arXiv:2305.14267, algorithm 2) of x0, with its point half-way in log SNR."""
    return (yield from _seeds(x, sigmas, process, noise, points=(1 / 2,)))


@stochastic("fresh")
def seeds_3(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise) -> Sampling:
    """SEEDS-3 (Gonzalez et al. 2023, arXiv:2305.14267, algorithm 3) of x0, with its points at a third and two thirds in log SNR."""
    return (yield from _seeds(x, sigmas, process, noise, points=(1 / 3, 2 / 3)))


def _seeds(x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, points: Sequence[float]) -> Sampling:
    """Each point, and the end, is reached from the start of the step along the newest difference of x0, with the noise of one path."""
    for s, t in pairwise(process.finite(sigmas)):
        x0 = yield x, s
        if t == 0:
            return x0
        low, h = process.log_snr(s), process.log_snr(t) - process.log_snr(s)
        at, before, newest, path = s, 0.0, x0, x * 0
        for part in (*points, 1.0):
            v, gone = (t if part == 1 else process.sigma(low + h * part)), 2 * (part - before) * h
            path = path * math.exp(-gone / 2) + noise(at, v) * math.sqrt(-math.expm1(-gone))
            bend = (newest - x0) * _weight(part, before, h, half=len(points) == 1)
            y = x * (v / s * math.exp(-part * h)) + (x0 * -math.expm1(-2 * part * h) + bend) * process.alpha(v) + path * v
            if part < 1:
                newest = yield y, v
            at, before = v, part
        x = y
    return x


def _weight(part: float, before: float, h: float, *, half: bool) -> float:
    """What a difference of x0, known at `before` of a step h, weighs at `part` of it. `half`: as if x0 had been there all along."""
    if before == 0:
        return 0.0
    whole = 2 * part * h
    return -math.expm1(-whole) / (2 * before) if half else (math.expm1(-whole) / whole + 1) * part / before


@stochastic("fresh")
def sa_solver(
    x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0, start: float = 0.2, end: float = 0.8,
    order: int = 3,
) -> Sampling:
    """SA-Solver (Xue et al. 2023, arXiv:2309.05019, algorithm 1) of x0: a predictor of `order`, a corrector of one more. The noise is `eta`
    times the reversed chain's between the shares `start` and `end` of the way, as in the paper's experiments; elsewhere there is none."""
    tau = _strength(x, process, eta, (start, end))
    return (yield from _adams(x, sigmas, process, noise, tau=tau, order=order, again=False))


@stochastic("fresh")
def sa_solver_pece(
    x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, eta: float = 1.0, start: float = 0.2, end: float = 0.8,
    order: int = 3,
) -> Sampling:
    """`sa_solver` (arXiv:2309.05019) that asks again at what the corrector found: predict, evaluate, correct, evaluate."""
    tau = _strength(x, process, eta, (start, end))
    return (yield from _adams(x, sigmas, process, noise, tau=tau, order=order, again=True))


def _strength(x: Tensor, process: Process, eta: float, span: tuple[float, float]) -> Callable[[float], float]:
    """The paper's tau by sigma."""
    high, low = (process.at(x.new_tensor((1 - min(share, 1.0)) * process.span[0]).float().cpu()) for share in span)
    return lambda sigma: eta if high >= sigma >= low else 0.0


def _adams(
    x: Tensor, sigmas: Sequence[float], process: Process, noise: Noise, *, tau: Callable[[float], float], order: int, again: bool,
) -> Sampling:
    way = process.finite(sigmas)
    known: list[tuple[float, Tensor]] = []  # log SNR and x0, newest last
    guess, strength, drawn, before = x, 0.0, x * 0, way[0]
    for i, (s, t) in enumerate(pairwise(way)):
        x0 = yield guess, s
        known = [*known, (process.log_snr(s), x0)][-order - 1 :]
        left = len(way) - 1 - i if way[-1] == 0 else order + 1  # the orders sink towards the end
        if i == 0 or (t == 0 and not again):
            x = guess
        else:
            x = _drift(x, known[-left:], process, (before, s), strength) + drawn
            if again:
                x0 = yield x, s
                known[-1] = known[-1][0], x0
        if t == 0:
            return x0
        strength, before = tau(t), s
        guess = _drift(x, known[-min(order, max(left - 1, 1)) :], process, (s, t), strength)
        if strength > 0:
            drawn = noise(s, t) * (t * math.sqrt(-math.expm1(2 * strength**2 * (process.log_snr(s) - process.log_snr(t)))))
            guess = guess + drawn
        else:
            drawn = x * 0
    return guess


def _drift(x: Tensor, known: Sequence[tuple[float, Tensor]], process: Process, step: tuple[float, float], tau: float) -> Tensor:
    """The step without its noise, along the polynomial in log SNR through the known x0 (eq. 15 and 18), integrated exactly."""
    s, t = step
    low, high, rate = process.log_snr(s), process.log_snr(t), 1 + tau * tau
    at, weights = gauss(low, high)
    shares = through([level for level, _ in known], at) @ (weights * rate * np.exp(rate * (at - high)))
    x = x * (t / s * math.exp(-tau * tau * (high - low)))
    for share, (_, x0) in zip(shares.tolist(), known, strict=True):
        x = x + x0 * (share * process.alpha(t))
    return x
