"""DPM-Solver (Lu et al. 2022, arXiv:2206.00927), which chooses its own noise levels between the first sigma and the last above 0."""
from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import Sampling, sampler

if TYPE_CHECKING:
    from torch import Tensor

Pair = Generator[tuple["Tensor", float], "Tensor", "tuple[Tensor, Tensor]"]

CLOSE = 1e-5
"""How near in log sigma the end is the end."""

TRIES = 100
"""How often a step is tried; each failure makes it shorter, up to a fifth of it."""


@sampler(order=2, own_levels=True)
def dpm_fast(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """DPM-Solver-fast (arXiv:2206.00927, section 3.4): as many asks as steps, three to a stretch; the stretches are of equal length in log
    sigma, the last ones of order 2 or 1. Ends at the last sigma above 0."""
    n = len(sigmas) - 1
    orders = [3] * (n // 3 - 1) + [2, 1] if n % 3 == 0 else [3] * (n // 3) + [n % 3]
    levels = np.exp(np.linspace(math.log(sigmas[0]), math.log(sigmas[-1] or sigmas[-2]), len(orders) + 1)).tolist()
    for order, (s, t) in zip(orders, pairwise(levels), strict=True):
        x0 = yield x, s
        x = (yield from _step(x, (x - x0) / s, s, t, order=order))[1]
    return x


@sampler(order=2, own_levels=True)
def dpm_adaptive(
    x: Tensor, sigmas: Sequence[float], *, order: int = 3, rtol: float = 0.05, atol: float = 0.0078, h_init: float = 0.05,
    icoeff: float = 1.0, accept_safety: float = 0.81,
) -> Sampling:
    """DPM-Solver-12 or -23 by `order` (arXiv:2206.00927, appendix C): two orders of one step tell its error, by which the next step's
    length in log sigma is chosen, or this one is tried again; the number of steps does not count. Ends at the last sigma above 0."""
    if order not in (2, 3):
        raise ValueError(f"sampling: dpm_adaptive: order: got {order}, expected 2 or 3")
    s, end, h = sigmas[0], sigmas[-1] or sigmas[-2], h_init
    before = x
    while abs(left := math.log(s / end)) > CLOSE:
        x0 = yield x, s
        slope = (x - x0) / s
        for _ in range(TRIES):
            t = s * math.exp(-math.copysign(h, left)) if h < abs(left) else end
            low, high = yield from _step(x, slope, s, t, order=order)
            allowed = (low.abs().maximum(before.abs()) * rtol).clamp(min=atol)
            error = float(((low - high) / allowed).square().mean().sqrt())
            # At most 2.6 times as long, the controller of k-diffusion: the deviation from 1 goes through an arc tangent.
            factor = 1 + math.atan((error + 1e-8) ** (-icoeff / order) - 1)
            h *= factor
            if factor >= accept_safety and t != s:
                break
        else:
            expected = "expected h_init, rtol and atol above 0 and accept_safety of at most 2.5"
            raise ValueError(f"sampling: dpm_adaptive: no step from sigma {s:g} kept to the tolerance in {TRIES} tries; {expected}")
        x, before, s = high, low, t
    return x


def _step(x: Tensor, slope: Tensor, s: float, t: float, *, order: int) -> Pair:
    """From s to t by one order less than `order`, and by `order`; `slope` is that at s."""
    h = math.log(s / t)
    euler = x + slope * (t - s)
    if order == 1:
        return euler, euler
    first = s * math.exp(-h / order)
    there = x + slope * (first - s)
    x0 = yield there, first
    bend = (there - x0) / first - slope
    second = euler + bend * ((t - s) * order / 2)
    if order == 2:
        return euler, second
    two = s * math.exp(-h * 2 / 3)
    there = x + slope * (two - s) - bend * (2 * two * _rest(h * 2 / 3))
    x0 = yield there, two
    return second, euler - ((there - x0) / two - slope) * (1.5 * t * _rest(h))


def _rest(h: float) -> float:
    """(e^h - 1) / h - 1."""
    return math.expm1(h) / h - 1 if h else 0.0
