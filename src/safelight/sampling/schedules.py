"""Which sigmas a trajectory visits. A schedule takes the process and the number of steps; no torch here.

Formulas as ComfyUI's schedulers of the same names, so that equal names and steps mean equal sigmas.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from safelight.sampling.core import SAMPLERS

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.sampling.process import Process

Schedule = Callable[..., Sequence[float]]
"""(process, n) -> falling sigmas, the last 0; n + 1 of them but for `ddim_uniform` (sometimes more) and `beta` (sometimes fewer)."""

SCHEDULES: dict[str, Schedule] = {}

NOTHING = 1e-5
"""A last trained sigma below this is taken for 0."""


def schedule(f: Schedule) -> Schedule:
    """Register under the function's name."""
    SCHEDULES[f.__name__] = f
    return f


@schedule
def simple(process: Process, n: int) -> Sequence[float]:
    """Every (T / n)-th entry of the table from its end."""
    table = process.table
    return [*(float(table[len(table) - 1 - int(i * (len(table) / n))]) for i in range(n)), 0.0]


@schedule
def sgm_uniform(process: Process, n: int) -> Sequence[float]:
    """n + 1 equal steps of time over the whole range, without the last."""
    return [*(process.at(t) for t in _line(*process.span, n + 1)[:-1]), 0.0]


@schedule
def karras(process: Process, n: int) -> Sequence[float]:
    """Equal steps of sigma^(1/7) (arXiv:2206.00364, eq. 5)."""
    high, low = (s ** (1 / 7) for s in _ends(process))
    return [*((high + _line(0, 1, n) * (low - high)) ** 7).tolist(), 0.0]


@schedule
def exponential(process: Process, n: int) -> Sequence[float]:
    """Equal steps of log sigma."""
    high, low = _ends(process)
    return [*_line(math.log(high), math.log(low), n).exp().tolist(), 0.0]


@schedule
def ddim_uniform(process: Process, n: int) -> Sequence[float]:
    """Entries 1, 1 + s, 1 + 2s, ... of the table, s = T // n (arXiv:2010.02502, section 5)."""
    table = process.table
    known_zero = table[1] < NOTHING
    stride = max(len(table) // (n + 1 if known_zero else n), 1)
    return [*table[1::stride][::-1].tolist(), *([] if known_zero else [0.0])]


@schedule
def beta(process: Process, n: int, a: float = 0.6, b: float = 0.6) -> Sequence[float]:
    """Entries of the table at the quantiles of Beta(`a`, `b`), both 0.6: more steps at both ends (arXiv:2407.12173)."""
    from scipy.special import betaincinv  # costs more to import than all the rest; only this one needs it

    at = np.rint(betaincinv(a, b, 1 - np.arange(n) / n) * (len(process.table) - 1)).astype(int)
    kept = at[np.r_[True, np.diff(at) != 0]]
    return [*process.table[kept].tolist(), 0.0]


@schedule
def normal(process: Process, n: int) -> Sequence[float]:
    """n equal steps of time from the first to the last trained one."""
    first, last = process.span
    if process.at(_line(last, last, 1)[0]) < NOTHING:
        return [process.at(t) for t in _line(first, last, n + 1)]
    return [*(process.at(t) for t in _line(first, last, n)), 0.0]


@schedule
def linear_quadratic(process: Process, n: int) -> Sequence[float]:
    """Half the steps down a slow straight line to 1 - 0.025, the rest a parabola to 0 (Polyak et al. 2024, arXiv:2410.13720)."""
    slow, line = 0.025, n // 2
    if line == 0:
        return [_ends(process)[0], 0.0]
    bend = (line - slow * n) / (line * (n - line) ** 2)
    # The parabola leaves the line at its end with the line's slope and reaches 1 after n steps.
    done = [i * slow / line + bend * max(i - line, 0) ** 2 for i in range(n)]
    return [*(np.array([1 - d for d in done], dtype=np.float32) * np.float32(process.table[-1])).tolist(), 0.0]


@schedule
def kl_optimal(process: Process, n: int) -> Sequence[float]:
    """Equal steps of atan(sigma) (Sabour et al. 2024, arXiv:2404.14507, theorem 3.1)."""
    high, low = (math.atan(s) for s in _ends(process))
    done = _line(0, max(n - 1, 0), n) / max(n - 1, 1)
    return [*(done * low + (1 - done) * high).tan().tolist(), 0.0]


def _ends(process: Process) -> tuple[float, float]:
    return float(process.table[-1]), float(process.table[0])


def _line(first: float, last: float, n: int) -> Tensor:
    """(n,) float32 with equal steps. Float32 throughout: noise along a Brownian path shows a difference in the last digit of sigma."""
    import torch  # only where sigmas are computed, not where schedules are listed

    return torch.linspace(first, last, n)


def plan(process: Process, steps: int, *, schedule: str = "normal", sampler: str = "euler", denoise: float = 1.0) -> list[float]:
    """The sigmas of a trajectory: `steps` of them and a last 0, strictly falling, as float32 has them.

    `denoise` in [0, 1] is the share of the way that is walked: below 1 it is the last `steps` of a longer schedule, 0 gives no step at all
    (an empty list). `sampler` may want a step more. ValueError for an unknown schedule or sampler, steps below 1, denoise outside [0, 1].
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"sampling: schedule {schedule!r} is not known; expected one of {', '.join(SCHEDULES)}")
    if sampler not in SAMPLERS:
        raise ValueError(f"sampling: sampler {sampler!r} is not known; expected one of {', '.join(SAMPLERS)}")
    if steps < 1 or not 0 <= denoise <= 1:
        raise ValueError(f"sampling: got steps={steps}, denoise={denoise}; expected steps >= 1 and denoise from 0 to 1")
    if denoise == 0:
        return []
    total = steps if denoise > 0.9999 else int(steps / denoise)
    extra = SAMPLERS[sampler].extra_step
    sigmas = SCHEDULES[schedule](process, total + extra)
    if extra:
        sigmas = [*sigmas[:-2], sigmas[-1]]
    if total != steps:
        sigmas = sigmas[-(steps + 1) :]
    return _falling(np.asarray(sigmas, dtype=np.float32).tolist())


def _falling(sigmas: Sequence[float]) -> list[float]:
    """Without repeats: more steps than the table has entries visit an entry twice."""
    return [s for i, s in enumerate(sigmas) if i == 0 or s < sigmas[i - 1]]


def part(sigmas: Sequence[float], start: int = 0, stop: int | None = None, *, to_zero: bool = False) -> list[float]:
    """Steps `start` to `stop` of a plan, for a trajectory walked in parts; `to_zero` puts 0 for the last sigma of a part that stops early.

    An empty list when nothing is left.
    """
    kept = list(sigmas[: None if stop is None else stop + 1])
    if to_zero and stop is not None and stop < len(sigmas) - 1:
        kept[-1] = 0.0
    return kept[start:] if start < len(kept) - 1 else []
