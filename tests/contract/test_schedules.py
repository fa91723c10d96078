"""Which sigmas a schedule visits. The numbers are what ComfyUI 0.3.64 computes for five steps, to six digits."""
from __future__ import annotations

import numpy as np
import pytest

from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES, part, plan
from tests.gaussian import PROCESSES

FIVE = {
    ("eps", "beta"): [14.6146, 7.37184, 2.61524, 1.02733, 0.39551, 0.0],
    ("eps", "ddim_uniform"): [5.13443, 2.29285, 1.16822, 0.57405, 0.0413144, 0.0],
    ("eps", "exponential"): [14.6146, 3.08898, 0.652892, 0.137996, 0.0291672, 0.0],
    ("eps", "karras"): [14.6146, 4.79653, 1.2741, 0.24795, 0.0291672, 0.0],
    ("eps", "kl_optimal"): [14.6146, 2.14274, 0.961588, 0.419836, 0.0291672, 0.0],
    ("eps", "linear_quadratic"): [14.6146, 14.432, 14.2493, 12.5442, 7.79448, 0.0],
    ("eps", "normal"): [14.6146, 4.08608, 1.61558, 0.69515, 0.0291672, 0.0],
    ("eps", "sgm_uniform"): [14.6146, 5.09241, 2.27973, 1.16286, 0.571189, 0.0],
    ("eps", "simple"): [14.6146, 5.08776, 2.27646, 1.16058, 0.569285, 0.0],
    ("shifted", "beta"): [1.0, 0.955338, 0.840949, 0.630939, 0.298077, 0.0],
    ("shifted", "ddim_uniform"): [0.923963, 0.819419, 0.668514, 0.431624, 0.0059761, 0.0],
    ("shifted", "exponential"): [1.0, 0.233918, 0.0547176, 0.0127994, 0.00299401, 0.0],
    ("shifted", "karras"): [1.0, 0.34509, 0.0983614, 0.0212885, 0.00299401, 0.0],
    ("shifted", "kl_optimal"): [1.0, 0.669262, 0.415969, 0.201248, 0.00299401, 0.0],
    ("shifted", "linear_quadratic"): [1.0, 0.9875, 0.975, 0.858333, 0.533333, 0.0],
    ("shifted", "normal"): [1.0, 0.900359, 0.751121, 0.502985, 0.00892857, 0.0],
    ("shifted", "sgm_uniform"): [1.0, 0.923342, 0.818923, 0.668327, 0.432225, 0.0],
    ("shifted", "simple"): [1.0, 0.923077, 0.818182, 0.666667, 0.428571, 0.0],
    ("zero_snr", "beta"): [4518.76, 14.0481, 3.06617, 1.09196, 0.411381, 0.0],
    ("zero_snr", "ddim_uniform"): [7.51436, 2.62661, 1.25001, 0.599813, 0.0420676, 0.0],
    ("zero_snr", "exponential"): [4518.76, 227.766, 11.4804, 0.578663, 0.0291672, 0.0],
    ("zero_snr", "karras"): [4518.76, 909.691, 113.37, 5.77189, 0.0291672, 0.0],
    ("zero_snr", "kl_optimal"): [4518.18, 2.46371, 1.02936, 0.440007, 0.0291672, 0.0],
    ("zero_snr", "linear_quadratic"): [4518.76, 4462.28, 4405.79, 3878.61, 2410.01, 0.0],
    ("zero_snr", "normal"): [4518.76, 5.40662, 1.77132, 0.729144, 0.0291672, 0.0],
    ("zero_snr", "sgm_uniform"): [4518.76, 7.42099, 2.60919, 1.24396, 0.596774, 0.0],
    ("zero_snr", "simple"): [4518.76, 7.4107, 2.60485, 1.24137, 0.594751, 0.0],
}
SHORTER, LONGER = {"beta"}, {"ddim_uniform"}


@pytest.mark.parametrize(("kind", "name"), FIVE)
def test_five_steps(kind: str, name: str) -> None:
    assert SCHEDULES[name](PROCESSES[kind], 5) == pytest.approx(FIVE[kind, name], rel=2e-5)


@pytest.mark.parametrize("kind", PROCESSES)
@pytest.mark.parametrize("name", SCHEDULES)
def test_falls_to_zero_in_as_many_steps_as_asked(name: str, kind: str) -> None:
    process = PROCESSES[kind]
    for n in (1, 2, 3, 7, 20, 64, 333):
        sigmas = SCHEDULES[name](process, n)
        assert sigmas[-1] == 0 and np.all(np.diff(sigmas) <= 0) and np.isfinite(sigmas).all()
        assert 0 < sigmas[0] <= process.table[-1] * (1 + 1e-5)
        more = (len(sigmas) > n + 1) - (len(sigmas) < n + 1)
        assert more == 0 or (more < 0 and name in SHORTER) or (more > 0 and name in LONGER)


@pytest.mark.parametrize("name", [n for n in SCHEDULES if n not in LONGER])
def test_begins_at_the_largest_trained_sigma(name: str) -> None:
    for process in PROCESSES.values():
        assert SCHEDULES[name](process, 12)[0] == pytest.approx(process.table[-1], rel=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_extra_step_leaves_as_many_and_skips_the_smallest(sampler: str) -> None:
    process = PROCESSES["eps"]
    plain, got = plan(process, 8, schedule="karras"), plan(process, 8, schedule="karras", sampler=sampler)
    assert len(got) == 9 and got[-1] == 0
    assert (got[-2] > plain[-2]) == SAMPLERS[sampler].extra_step


def test_denoise_walks_the_end_of_a_longer_schedule() -> None:
    process = PROCESSES["eps"]
    assert plan(process, 6, denoise=0.6) == plan(process, 10)[-7:]
    assert plan(process, 6, denoise=0.99999) == plan(process, 6)
    assert plan(process, 6, denoise=0) == []
    assert plan(process, 6, sampler="dpm_2", denoise=0.5) == plan(process, 12, sampler="dpm_2")[-7:]


def test_a_plan_falls_strictly_whatever_is_asked() -> None:
    for schedule in SCHEDULES:
        assert np.all(np.diff(plan(PROCESSES["flow"], 1500, schedule=schedule)) < 0)


def test_parts_of_a_plan() -> None:
    sigmas = plan(PROCESSES["eps"], 6)
    assert part(sigmas) == sigmas
    assert part(sigmas, 0, 3) == sigmas[:4]
    assert part(sigmas, 3) == sigmas[3:]
    assert part(sigmas, 0, 3, to_zero=True) == [*sigmas[:3], 0.0]
    assert part(sigmas, 0, 10, to_zero=True) == sigmas
    assert part(sigmas, 6) == []


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"schedule": "polar"}, "schedule 'polar' is not known; expected one of"),
        ({"sampler": "eular"}, "sampler 'eular' is not known; expected one of"),
        ({"steps": 0}, "got steps=0, denoise=1.0; expected steps >= 1"),
        ({"denoise": 1.5}, "denoise=1.5; expected steps >= 1 and denoise from 0 to 1"),
    ],
)
def test_what_cannot_be_planned_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(PROCESSES["eps"], **{"steps": 4, **asked})  # type: ignore[arg-type]
