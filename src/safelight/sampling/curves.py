"""Noise levels that follow a curve of their own, not a model's table. No torch at import."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process
    from safelight.sampling.settings import Curve

AYS = {
    "ays-sd1": (14.6146412293, 6.4745760956, 3.8636745985, 2.694615152, 1.8841921177, 1.3943805092, 0.9642583904, 0.6523686016,
                0.3977456272, 0.1515232662, 0.0291671582),
    "ays-sdxl": (14.6146412293, 6.3184485287, 3.7681790315, 2.1811480769, 1.3405244945, 0.8620721141, 0.5550693289, 0.3798540708,
                 0.2332364134, 0.1114188177, 0.0291671582),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}
"""Align Your Steps (Sabour et al. 2024, arXiv:2404.14507): the authors' levels for ten steps, by model."""


def levels(c: Curve) -> list[float]:
    """The falling levels, as float32 has them, the last 0 (but for laplace, which ends at `low`). ValueError unless 0 < low < high; low
    may be 0 for karras."""
    if not (0 < c.low < c.high or (c.curve == "karras" and 0 == c.low < c.high)):
        raise ValueError(f"sigmas: got high={c.high:g}, low={c.low:g}; expected 0 < low < high")
    if c.curve == "karras" and c.rho == 0:
        raise ValueError("sigmas: rho: got 0, expected more; the usual 7 for karras")
    return [float(v) for v in np.asarray(CURVES[c.curve](c), dtype=np.float32)]


def _karras(c: Curve) -> Sequence[float]:
    rho = 7.0 if c.rho is None else c.rho
    high, low = c.high ** (1 / rho), c.low ** (1 / rho)
    return [*((high + _line(0, 1, c.steps) * (low - high)) ** rho).tolist(), 0.0]


def _exponential(c: Curve) -> Sequence[float]:
    return [*_line(math.log(c.high), math.log(c.low), c.steps).exp().tolist(), 0.0]


def _polyexponential(c: Curve) -> Sequence[float]:
    bent = _line(1, 0, c.steps) ** (1.0 if c.rho is None else c.rho)
    return [*(bent * (math.log(c.high) - math.log(c.low)) + math.log(c.low)).exp().tolist(), 0.0]


def _laplace(c: Curve) -> Sequence[float]:
    """The quantiles of a Laplace distribution of log sigma (Hang et al. 2024, arXiv:2407.03297)."""
    off = 0.5 - _line(0, 1, c.steps)
    log_sigma = c.middle - off.sign() * (1 - 2 * off.abs() + 1e-5).log() * c.spread
    return log_sigma.exp().clamp(c.low, c.high).tolist()


def _vp(c: Curve) -> Sequence[float]:
    """Equal steps of time of the linear VP process (arXiv:2206.00364, table 1)."""
    t = _line(1, c.first_time, c.steps)
    return [*(t**2 * (c.beta_d / 2) + t * c.beta_min).expm1().sqrt().tolist(), 0.0]


def _ays(c: Curve) -> Sequence[float]:
    if c.denoise == 0:
        return []
    known = np.log(AYS[c.curve])
    way = np.exp(np.interp(np.linspace(0, 1, c.steps + 1), np.linspace(0, 1, len(known)), known))
    return [*way[-round(c.steps * c.denoise) - 1 : -1].tolist(), 0.0]


CURVES: dict[str, Callable[[Curve], Sequence[float]]] = {
    "karras": _karras, "exponential": _exponential, "polyexponential": _polyexponential, "laplace": _laplace, "vp": _vp,
    **dict.fromkeys(AYS, _ays),
}


def turbo(process: Process, steps: int, denoise: float) -> list[float]:
    """The levels that distilled models were taught at (ADD, arXiv:2311.17042): the ends of ten equal stretches of training time, of which
    `denoise` leaves out the first; at most ten steps."""
    skipped = 10 - int(10 * denoise)
    times = _line(999, 99, 10)[skipped : skipped + steps]
    return [*(process.at(t) for t in times), 0.0]


def _line(first: float, last: float, n: int) -> Tensor:
    import torch  # only where levels are computed, not where curves are listed

    return torch.linspace(first, last, n)
