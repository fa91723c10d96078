"""What a denoiser's loss is: which noise levels are drawn, how far an answer is off, how much that counts. Functions of `Objective`."""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safelight.families.noise_levels import SPREAD

if TYPE_CHECKING:
    from safelight.train.settings import Objective

WEIGHTS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "min_snr": lambda snr, gamma: snr.clamp(max=gamma),
    "soft_min_snr": lambda snr, gamma: snr * gamma / (snr + gamma),
    "snr": lambda snr, _: snr,
    "debiased": lambda snr, _: snr.sqrt(),
}
"""Weights of the squared error of x0 by its signal-to-noise ratio and gamma: min-SNR (arXiv:2303.09556), its soft form (arXiv:2401.11605),
SNR itself (that of eps, arXiv:2006.11239), and the debiased one (arXiv:2310.08442)."""


def weight(o: Objective, prediction: str, sigma: Tensor) -> Tensor:
    """(B,) weights of the squared error of the network's own output, which weigh the error of x0 as `WEIGHTS` says.

    An error e of the output is an error of x0 of sigma e (eps), sigma / sqrt(1 + (sigma / d)^2) e (v and edm, their
    d in SPREAD), sigma e (flow). Ones for min-SNR's two forms with a gamma of 0.
    """
    if not o.min_snr and o.weigh in ("min_snr", "soft_min_snr"):
        return sigma.new_ones(sigma.shape)
    snr = ((1 - sigma) / sigma) ** 2 if prediction == "flow" else sigma**-2
    return WEIGHTS[o.weigh](snr, o.min_snr) * (sigma**2 / (1 + (sigma / SPREAD.get(prediction, math.inf)) ** 2))


def times(o: Objective, u: Tensor) -> Tensor:
    """Even draws (B,) in [0, 1) -> times in [lowest, highest), towards 1 is noise, of the density that is asked for.

    `logit_normal` and `mode` are those of arXiv:2403.03206, section 3.1; `shift` moves them towards noise as its equation 23 does.
    """
    wide: Tensor = u.double()
    if o.times == "logit_normal":
        wide = torch.sigmoid(o.mean + o.spread * torch.special.ndtri(wide.clamp(1e-7, 1 - 1e-7)))
    elif o.times == "mode":
        wide = 1 - wide - o.spread * (torch.cos(math.pi / 2 * wide) ** 2 - 1 + wide)
    wide = wide ** (1 / (1 + o.towards_noise))
    wide = o.shift * wide / (1 + (o.shift - 1) * wide)
    return (o.lowest + (o.highest - o.lowest) * wide).float().clamp(0, 1 - 1e-7)


def distance(o: Objective, error: Tensor, t: Tensor, sigma: Tensor) -> Tensor:
    """How far off each number of `error` (B, C, h, w) is: its square, its size, or pseudo-Huber 2c (sqrt(e^2 + c^2) - c), which is the
    square for small errors and 2c times the size for large ones; c may fall with time t or with sigma (arXiv:2403.16728)."""
    if o.loss == "l1":
        return error.abs()
    if o.loss == "l2":
        return error.square()
    falling = {"constant": lambda: torch.ones_like(t) * o.huber, "time": lambda: o.huber**t,
               "snr": lambda: (1 - o.huber) / (1 + sigma) ** 2 + o.huber}
    c = falling[o.huber_falls]().view(-1, 1, 1, 1)
    return 2 * c * ((error.square() + c**2).sqrt() - c)


def mean(o: Objective, off: Tensor, mask: Tensor | None) -> Tensor:
    """(B, C, h, w) -> (B,); what lies outside `mask` (B, 1, h, w) counts `unmasked`."""
    if mask is None:
        return off.mean(dim=(1, 2, 3))
    counts = (mask + o.unmasked * (1 - mask)).expand_as(off)
    return (off * counts).sum(dim=(1, 2, 3)) / counts.sum(dim=(1, 2, 3)).clamp(min=1e-6)
