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

SPREAD = {"v": -1.0, "edm": 0.5}  # sigma_data of arXiv:2206.00364, table 1; below 0 where the network's sign is the other one
PREDICTIONS = {"epsilon": "eps", "eps": "eps", "v_prediction": "v", "flow": "flow", "flow_prediction": "flow"}


def prediction(config: Mapping[str, Any]) -> str:
    """`eps`, `v`, `edm` or `flow`: what the network's output means. ValueError for what is not known."""
    if str(config.get("_class_name", "")).startswith("FlowMatch"):
        return "flow"
    kind = str(config.get("prediction_type", "epsilon"))
    if kind not in PREDICTIONS:
        raise ValueError(f"scheduler_config.json: prediction_type {kind!r} is not known; expected one of {', '.join(PREDICTIONS)}")
    return "edm" if kind == "epsilon" and str(config.get("_class_name")).startswith("EDM") else PREDICTIONS[kind]


def clock(config: Mapping[str, Any]) -> str:
    """How a network is told of a level: `index` in the table, or, without steps, `log` or `angle` (see `Parametrisation.timestep`)."""
    return {"EDM": "log", "Cos": "angle"}.get(str(config.get("_class_name"))[:3], "index")


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
    """(T,) float64, rising: sigma = sqrt((1 - alpha_bar) / alpha_bar); for flow models t shifted as in arXiv:2403.03206, up to 1; without
    steps a thousand from sigma_min to sigma_max, even in their logarithms. ValueError for ends that are none."""
    if prediction(config) == "flow":
        n, shift = int(config.get("num_train_timesteps", 1000)), float(config.get("shift", 1.0))
        t = torch.arange(1, n + 1, dtype=torch.float64) / n
        return shift * t / (1 + (shift - 1) * t)
    if clock(config) != "index":
        low, high = float(config.get("sigma_min", 0.002)), float(config.get("sigma_max", 80.0))
        if not 0 < low < high:
            raise ValueError(f"model: got sigma_min={low:g}, sigma_max={high:g}; expected 0 < sigma_min < sigma_max")
        return torch.linspace(math.log(low), math.log(high), 1000).exp().double()
    alpha_bar = torch.cumprod(1 - betas(config), dim=0)
    if config.get("rescale_betas_zero_snr"):
        alpha_bar = zero_terminal_snr(alpha_bar)
    return ((1 - alpha_bar) / alpha_bar).sqrt()
