"""UniPC: one formula predicts the next point and, once x0 is known there, corrects it."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from safelight.sampling.core import Sampling, sampler, towards

if TYPE_CHECKING:
    from torch import Tensor

LAST = 1e-3
"""Sigma of the last point: B(h) = -h has no value at 0, and a thousandth is below what a picture shows. ComfyUI's figure."""

ORDER = 3


@sampler(order=2, extra_step=True)
def uni_pc(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """UniPC-3 of x0 with B1(h) = h (Zhao et al. 2023, arXiv:2302.04867, algorithms 5 to 8). Ends at sigma 0.001, not at 0."""
    return (yield from _unipc(x, sigmas, "bh1"))


@sampler(order=2, extra_step=True)
def uni_pc_bh2(x: Tensor, sigmas: Sequence[float]) -> Sampling:
    """UniPC-3 of x0 with B2(h) = e^h - 1 (arXiv:2302.04867). Ends at sigma 0.001, not at 0."""
    return (yield from _unipc(x, sigmas, "bh2"))


def _unipc(x: Tensor, sigmas: Sequence[float], b_kind: Literal["bh1", "bh2"]) -> Sampling:
    way = [*sigmas[:-1], sigmas[-1] or LAST]
    n = len(way) - 1
    if n < 1:
        return x
    most = max(1, min(ORDER, n - 1))
    m0 = yield x, way[0]
    past: list[tuple[float, Tensor]] = []  # (sigma, x0) of the points before the newest, newest first
    for i in range(1, n + 1):
        s, t = way[i - 1], way[i]
        order = min(most, i, n + 1 - i)
        h = math.log(s / t)
        r = [-math.log(sigma / s) / h for sigma, _ in past[: order - 1]]
        bends = [(m - m0) / r_k for r_k, (_, m) in zip(r, past, strict=False)]
        b = -h if b_kind == "bh1" else math.expm1(-h)
        base = towards(x, m0, s, t)
        x = _add(base, -b, _rhos(r, h, b), bends)
        if i == n:
            break
        m = yield x, t
        x = _add(base, -b, _rhos([*r, 1.0], h, b), [*bends, m - m0])
        past = [(s, m0), *past[: ORDER - 2]]
        m0 = m
    return x


def _add(x: Tensor, scale: float, rhos: Sequence[float], bends: Sequence[Tensor]) -> Tensor:
    for rho, bend in zip(rhos, bends, strict=True):
        x = x + bend * (scale * rho)
    return x


def _rhos(r: Sequence[float], h: float, b: float) -> list[float]:
    """The weights that make the formula exact to order len(r) (theorem 3.1); with one point 1/2 is, for any B(h)."""
    if len(r) < 2:
        return [0.5] * len(r)
    phi, right = math.expm1(-h) / -h - 1, []
    for k in range(1, len(r) + 1):
        right.append(phi * math.factorial(k) / b)
        phi = phi / -h - 1 / math.factorial(k + 1)
    powers = np.vander(np.array(r), len(r), increasing=True).T
    return [float(v) for v in np.linalg.solve(powers, np.array(right))]
