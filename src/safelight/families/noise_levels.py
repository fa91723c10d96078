"""The table of noise levels a diffusion network was trained with, from its scheduler_config.json, in k-diffusion's sigma."""
from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

LAST_ALPHA_BAR = 4.8973451890853435e-08
"""What the last alpha_bar of a zero-terminal-SNR table is set to, so that its sigma (about 4518) is finite; ComfyUI's figure."""

PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "flow": "flow", "flow_prediction": "flow"}


def prediction(config: Mapping[str, Any]) -> str:
    """`eps`, `v` or `flow`: what the network's output means. ValueError for an unknown prediction_type."""
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        return "flow"
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in PREDICTIONS:
        raise ValueError(f"scheduler_config.json: prediction_type {kind!r} is not known; expected one of {', '.join(PREDICTIONS)}")
    return PREDICTIONS[kind]


def betas(config: Mapping[str, Any]) -> Tensor:
    """(T,) float64 variances of the forward steps (arXiv:2006.11239; the cosine one arXiv:2102.09672)."""
    if config.get("trained_betas") is not None:
        return torch.tensor(config["trained_betas"], dtype=torch.float64)
    n = int(config.get("num_train_timesteps", 1000))
    start, end = float(config.get("beta_start", 0.0001)), float(config.get("beta_end", 0.02))
    kind = str(config.get("beta_schedule", "linear"))
    if kind == "linear":
        return torch.linspace(start, end, n, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, n, dtype=torch.float64) ** 2
    if kind == "squaredcos_cap_v2":
        bar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        return torch.tensor([min(1 - b / a, 0.999) for a, b in pairwise(bar)], dtype=torch.float64)
    raise ValueError(f"scheduler_config.json: beta_schedule {kind!r} is not known; expected linear, scaled_linear or squaredcos_cap_v2")


def zero_terminal_snr(alpha_bar: Tensor) -> Tensor:
    """Shift and scale sqrt(alpha_bar) so that the last step is pure noise (arXiv:2305.08891), then clip the last one to stay finite."""
    root = alpha_bar.sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    out = root**2
    out[-1] = LAST_ALPHA_BAR
    return out


def rounded(table: Tensor) -> tuple[Tensor, Tensor]:
    """(T,) float64 sigmas -> the table and its logarithms, both float32.

    The logarithms are taken before the rounding, as ComfyUI does: which of two levels a sigma half-way between them is nearer to is a
    matter of the last bit. Whoever goes from time to sigma or back takes these.
    """
    return table.float(), table.log().float()


def sigma_table(config: Mapping[str, Any]) -> Tensor:
    """(T,) float64, rising: sigma = sqrt((1 - alpha_bar) / alpha_bar); for flow models t shifted as in arXiv:2403.03206, up to 1."""
    if prediction(config) == "flow":
        n, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
        t = torch.arange(1, n + 1, dtype=torch.float64) / n
        return shift * t / (1 + (shift - 1) * t)
    alpha_bar = torch.cumprod(1 - betas(config), dim=0)
    if config.get("rescale_betas_zero_snr"):
        alpha_bar = zero_terminal_snr(alpha_bar)
    return ((1 - alpha_bar) / alpha_bar).sqrt()
