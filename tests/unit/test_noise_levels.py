"""The table of noise levels, its logarithms, and the way from time to sigma and back."""
from __future__ import annotations

import hashlib

import pytest
import torch

from safelight.families.noise_levels import rounded, sigma_table
from safelight.families.parametrisation import Parametrisation
from safelight.sampling.process import Exploding

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
CPU = torch.device("cpu")


def steps(config: dict[str, object]) -> str:
    """For each time half-way between two of the table, whether its sigma is taken for the later one."""
    way = Parametrisation.read(config, CPU)
    process = Exploding(way.sigmas.double().numpy(), way.log_sigmas.numpy())
    sigmas = torch.tensor([process.at(torch.tensor(k + 0.5)) for k in range(999)])
    return "".join(str(int(t) - k) for k, t in enumerate(way.timestep(sigmas)))


@pytest.mark.parametrize(("zero_snr", "count", "digest"), [(False, 327, "95b2872e0e573f66"), (True, 336, "c2f671b78f843fa7")])
def test_a_sigma_half_way_is_taken_for_the_level_that_comfyui_takes(zero_snr: bool, count: int, digest: str) -> None:
    told = steps({**SD, "rescale_betas_zero_snr": zero_snr})
    assert told.count("1") == count  # as ComfyUI 0.3.64 says of its own 999
    assert hashlib.blake2b(told.encode(), digest_size=8).hexdigest() == digest


def test_logarithms_are_taken_before_the_rounding() -> None:
    table = sigma_table(SD)
    sigmas, logs = rounded(table)
    assert sigmas.dtype == logs.dtype == torch.float32 and table.dtype == torch.float64
    assert torch.equal(logs, table.log().float())
    assert not torch.equal(logs, sigmas.log())


def test_every_level_is_its_own_time() -> None:
    way = Parametrisation.read(SD, CPU)
    assert torch.equal(way.timestep(way.sigmas), torch.arange(1000))
    process = Exploding(way.sigmas.double().numpy(), way.log_sigmas.numpy())
    there = torch.tensor([process.at(torch.tensor(float(k))) for k in range(1000)])
    assert torch.allclose(there, way.sigmas, rtol=3e-7)
