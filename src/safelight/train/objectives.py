"""What a denoiser's loss is."""
from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Cond


def min_snr(prediction: str, sigma: Tensor, gamma: float) -> Tensor:
    """(B,) weights of the squared error of the network's own output (arXiv:2303.09556): min(SNR, gamma) on x0, in its units.

    An error e of the output is an error of x0 of sigma e (eps), sigma / sqrt(1 + sigma^2) e (v), sigma e (flow). gamma 0 gives ones.
    """
    if not gamma:
        return sigma.new_ones(sigma.shape)
    if prediction == "flow":
        snr = ((1 - sigma) / sigma) ** 2
        return snr.clamp(max=gamma) * sigma**2
    snr = sigma**-2
    return snr.clamp(max=gamma) / (snr + 1 if prediction == "v" else snr)


def squared_error(family: Family, x: Tensor, sigma: Tensor, cond: Cond, target: Tensor) -> Tensor:
    """(B,) mean squared error of what the network says of x (B, C, h, w) at sigma (B,), float32."""
    return mean_square(family.predict(x, sigma, cond) - target)


def mean_square(error: Tensor) -> Tensor:
    """(B, C, h, w) -> (B,)."""
    return error.square().mean(dim=(1, 2, 3))
