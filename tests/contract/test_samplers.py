"""What every sampler promises, measured where the exact answer is known, and against diffusers' schedulers."""
from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LMSDiscreteScheduler,
    SASolverScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from safelight.sampling.core import Noise
from safelight.sampling.noise import Fresh, Tree
from safelight.sampling.process import Process
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.samplers.multistep import _unequal
from safelight.sampling.schedules import SCHEDULES, plan
from tests.gaussian import PROCESSES, Normal

DETERMINISTIC = [n for n, s in SAMPLERS.items() if s.noise == "none"]
STOCHASTIC = [n for n, s in SAMPLERS.items() if s.noise != "none"]
ENDS_ABOVE_ZERO = {"uni_pc", "uni_pc_bh2"}
OWN_LEVELS = {n for n, s in SAMPLERS.items() if s.own_levels}
CONSISTENCY = {"lcm"}
"""Samples the data only from a consistency model's x0, which is not a mean."""
TWO_POINTS = {"dpmpp_2s_ancestral_cfg_pp"}
"""Takes the difference of x0 at two points: ComfyUI's formula, which does not sample the data when both x0 are the same."""

Denoiser = Callable[[Tensor, float], Tensor]


def walk(
    name: str, x: Tensor, sigmas: list[float], process: Process, denoise: Denoiser, noise: Noise | None = None,
    bare: Denoiser | None = None, **options: float,
) -> Tensor:
    """What the sampler makes of x. `bare` answers for x0 without the prompt, where that is another."""
    chosen = Tree(x, 3, sigmas) if SAMPLERS[name].noise == "tree" else Fresh(x, 3)
    run: Any = SAMPLERS[name].run(x, sigmas, process, noise or chosen, **options)
    try:
        asked = next(run)
        while True:
            x0 = denoise(*asked)
            asked = run.send((x0, bare(*asked) if bare else x0) if SAMPLERS[name].plus else x0)
    except StopIteration as end:
        out: Tensor = end.value
        return out


def test_the_registries_are_read_without_torch() -> None:
    code = "import safelight.sampling, sys; assert not {'torch', 'scipy'} & set(sys.modules), sorted(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_says_where_it_is_from(name: str) -> None:
    assert re.search(r"arXiv:\d{4}\.\d{5}|k-diffusion|`dpm_2`", SAMPLERS[name].doc)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_any_schedule_ends_at_a_constant_x0(name: str, schedule: str) -> None:
    # Those with their own levels multiply what rounding leaves of x0 in x.
    x0 = torch.linspace(-1, 1, 16, dtype=torch.float64 if name in OWN_LEVELS else torch.float32).view(1, 1, 4, 4)
    for process in PROCESSES.values():
        for steps in (1, 2, 3, 5):
            sigmas = plan(process, steps, schedule=schedule, sampler=name)
            x = process.start(torch.zeros_like(x0), torch.randn(x0.shape, generator=torch.Generator().manual_seed(1)), sigmas[0])
            out = walk(name, x, sigmas, process, lambda _x, _s: x0)
            assert out.dtype == x.dtype
            # One with its own levels ends at the last sigma above 0, on the straight line to x0.
            left = sigmas[-2] / sigmas[0] if name in OWN_LEVELS else 0
            end = x0 + (x - x0) * left
            assert torch.allclose(out, end, atol=5e-3 if name in ENDS_ABOVE_ZERO else 1e-5), (sigmas, out)


@pytest.mark.parametrize("steps", ["linear", "logarithmic"])
@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n not in OWN_LEVELS])
def test_converges_to_the_flow_with_its_order(name: str, kind: str, steps: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    high, low = (0.95, 0.2) if kind == "flow" else (3.0, 0.3)
    x = torch.tensor([-2.0, 0.3, 1.9], dtype=torch.float64) * high
    errors = []
    for n in (80, 160):
        line = np.linspace(high, low, n + 1) if steps == "linear" else np.geomspace(high, low, n + 1)
        out = walk(name, x, line.tolist(), process, data.denoise)
        errors.append(float((out - data.flow(x, high, low)).abs().max()))
    order = SAMPLERS[name].order
    assert math.log2(errors[0] / errors[1]) > order - 0.3
    assert errors[1] < (0.01 if order == 1 else 5e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_dpm_fast_asks_as_often_as_it_has_steps_and_converges(kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    high, low = (0.95, 0.2) if kind == "flow" else (3.0, 0.3)
    x = torch.tensor([-2.0, 0.3, 1.9], dtype=torch.float64) * high
    errors, asked = [], []

    def denoise(x: Tensor, s: float) -> Tensor:
        asked.append(s)
        return data.denoise(x, s)

    for n in (24, 48, 80, 160):
        asked.clear()
        out = walk("dpm_fast", x, np.geomspace(high, low, n + 1).tolist(), process, denoise)
        assert len(asked) == n and asked == sorted(asked, reverse=True)
        errors.append(float((out - data.flow(x, high, low)).abs().max()))
    assert math.log2(errors[0] / errors[1]) > 1.7  # both end with a step of order 2 and one of order 1
    assert errors[2] < errors[3] < errors[1] < errors[0] < 0.01  # 80 ends with a step of order 2, 160 with one of order 1


@pytest.mark.parametrize("order", [2, 3])
def test_dpm_adaptive_keeps_to_its_tolerance(order: int) -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    x, way = data.draw(14.0, (1, 4, 8, 8), 4), [14.0, 0.05, 0.0]
    want, asks, errors = data.flow(x, 14.0, 0.05), [], []
    for tolerance in (1e-2, 1e-3, 1e-4):
        count: list[float] = []
        out = walk("dpm_adaptive", x, way, process, lambda x, s: (count.append(s), data.denoise(x, s))[1],  # noqa: B023
                   rtol=tolerance, atol=tolerance, order=order)
        errors.append(float((out - want).abs().max()))
        asks.append(len(count))
    assert asks[0] < asks[1] < asks[2]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-3
    long = walk("dpm_adaptive", x, [14.0, *np.geomspace(10, 0.05, 30).tolist(), 0.0], process, data.denoise)
    assert torch.equal(long, walk("dpm_adaptive", x, way, process, data.denoise))  # the steps in between do not count


@pytest.mark.parametrize("kind", ["eps", "flow", "shifted"])
@pytest.mark.parametrize("name", [n for n in STOCHASTIC if n not in CONSISTENCY | TWO_POINTS])
def test_samples_the_data(name: str, kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    sigmas = plan(process, 150, schedule="karras", sampler=name)
    out = walk(name, data.draw(sigmas[0], (1, 1, 100, 100), 5), sigmas, process, data.denoise)
    # 10,000 numbers: three standard errors are 0.015 of the mean and 0.011 of the deviation; the rest is what 150 steps leave.
    assert abs(float(out.mean()) - data.mean) < 0.02
    assert float(out.std()) / data.std == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_lcm_draws_anew_at_every_step(kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    sigmas = plan(process, 4, schedule="karras", sampler="lcm")
    out = walk("lcm", data.draw(sigmas[0], (1, 1, 100, 100), 5), sigmas, process, data.denoise)
    spread = data.spread(sigmas[0])
    for s, t in pairwise(sigmas):
        a = process.alpha(s)
        kept = spread * a * data.std**2 / (a * a * data.std**2 + s * s)
        spread = math.hypot(process.alpha(t) * kept, t)
    assert float(out.std()) == pytest.approx(spread, rel=0.03)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float64_stays_exact(name: str) -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    sigmas = plan(process, 12, schedule="karras", sampler=name)
    x = data.draw(sigmas[0], (1, 1, 4, 4), 2)
    out = walk(name, x, sigmas, process, data.denoise)
    assert out.dtype == torch.float64
    again = walk(name, x.float(), sigmas, process, data.denoise)
    assert again.dtype == torch.float32
    assert torch.allclose(again.double(), out, atol=3e-3 if name == "dpm_adaptive" else 1e-4)  # whose steps follow its rounding


@pytest.mark.parametrize("name", STOCHASTIC)
def test_the_same_seed_is_the_same_walk(name: str) -> None:
    process = PROCESSES["eps"]
    sigmas = plan(process, 6, schedule="karras", sampler=name)
    x = Normal(process).draw(sigmas[0], (2, 4, 4, 4), 2).float()
    a, b = (walk(name, x, sigmas, process, Normal(process).denoise) for _ in range(2))
    assert torch.equal(a, b)


def test_a_finer_walk_sees_the_same_brownian_noise() -> None:
    """Both endpoints of one path: halving the steps of an SDE sampler brings the same pictures, not others."""
    process = PROCESSES["eps"]
    data = Normal(process)
    ends = []
    for n in (100, 200):
        sigmas = [*np.geomspace(14.0, 0.05, n).tolist(), 0.0]
        ends.append(walk("dpmpp_2m_sde", data.draw(14.0, (1, 1, 32, 32), 2), sigmas, process, data.denoise).flatten())
    assert float(torch.corrcoef(torch.stack(ends))[0, 1]) > 0.99


PLUS = [n for n, s in SAMPLERS.items() if s.plus]


@pytest.mark.parametrize("name", [n for n in PLUS if n not in TWO_POINTS])
def test_cfg_pp_without_guidance_is_the_plain_sampler(name: str) -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    sigmas = plan(process, 7, schedule="karras", sampler=name)
    x = data.draw(sigmas[0], (1, 1, 8, 8), 2)
    plain = walk(name.removesuffix("_cfg_pp"), x, sigmas, process, data.denoise)
    assert torch.allclose(walk(name, x, sigmas, process, data.denoise), plain, atol=1e-9)
    other = walk(name, x, sigmas, process, data.denoise, bare=lambda x, s: data.denoise(x, s) - 0.3)
    assert float((other - plain).abs().max()) > 0.01


def test_2s_cfg_pp_step_by_step() -> None:
    process = PROCESSES["eps"]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    unit = torch.linspace(1, -1, 9, dtype=torch.float64)
    got = walk("dpmpp_2s_ancestral_cfg_pp", x, [2.0, 1.0], process, lambda x, _s: x * 0.3, lambda _s, _t: unit, lambda x, _s: x * 0.1)
    down = 0.5  # 1 * 1 / 2
    mid = down**0.5 * 2.0**0.5
    half = x * 0.3 + (x - x * 0.1) * mid / 2
    x = half * 0.3 + (x + x * 0.3 - half * 0.1 - half * 0.3) * down / 2
    assert torch.allclose(got, x + unit * (1 - down**2) ** 0.5)


@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_cfg_pp_goes_to_the_guided_x0_with_the_noise_of_the_other(kind: str) -> None:
    """arXiv:2406.08070, algorithm 2, step by step: x = alpha x0 + sigma eps, eps from the x0 without the prompt."""
    process = PROCESSES[kind]
    sigmas = [0.9, 0.6, 0.35, 0.1]
    x = torch.linspace(-2, 2, 9, dtype=torch.float64)
    got = walk("euler_cfg_pp", x, sigmas, process, lambda x, _s: x * 0 + 0.8, bare=lambda x, _s: x * 0.2 - 0.1)
    for s, t in pairwise(sigmas):
        eps = (x - process.alpha(s) * (x * 0.2 - 0.1)) / s
        x = process.alpha(t) * 0.8 + t * eps
    assert torch.allclose(got, x)


SAME = {("eps", "euler_ancestral"): "euler", ("flow", "euler_ancestral"): "euler", ("eps", "euler_ancestral_cfg_pp"): "euler_cfg_pp",
        ("flow", "euler_ancestral_cfg_pp"): "euler_cfg_pp", ("eps", "dpmpp_2m_sde"): "dpmpp_2m"}
"""What a sampler is without its noise."""


@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if "eta" in s.options and n not in TWO_POINTS])
@pytest.mark.parametrize("kind", ["eps", "flow"])
def test_without_eta_there_is_no_noise_and_between_it_still_samples_the_data(name: str, kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    sigmas = plan(process, 40, schedule="karras", sampler=name)
    x = data.draw(sigmas[0], (1, 1, 50, 50), 5)
    a, b = (walk(name, x, sigmas, process, data.denoise, lambda s, t, v=v: torch.full_like(x, v), eta=0.0) for v in (-1.0, 2.0))
    assert torch.equal(a, b)
    assert torch.allclose(a, data.flow(x, sigmas[0], 1e-4), atol=0.2)
    if plain := SAME.get((kind, name)):
        assert torch.allclose(a, walk(plain, x, sigmas, process, data.denoise), atol=1e-6)
    half = walk(name, x, sigmas, process, data.denoise, eta=0.5)
    assert not torch.allclose(half, a, atol=0.1)
    assert abs(float(half.mean()) - data.mean) < 0.05 and float(half.std()) / data.std == pytest.approx(1, abs=0.15)


def test_er_sde_with_the_reversed_chains_noise_or_none() -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    sigmas = plan(process, 60, schedule="karras", sampler="er_sde")
    x = data.draw(sigmas[0], (1, 1, 60, 60), 5)
    out = walk("er_sde", x, sigmas, process, data.denoise, power=1)
    assert torch.allclose(out, data.flow(x, sigmas[0], 1e-4), atol=0.02)
    one = walk("er_sde", x, sigmas, process, data.denoise, power=2, stages=1)
    chain = walk("euler_ancestral", x, sigmas, process, data.denoise)
    assert torch.allclose(one, chain, atol=1e-6)  # DDPM's steps, with the same draws


def test_lms_of_order_1_is_euler() -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    sigmas = plan(process, 8, schedule="karras")
    x = data.draw(sigmas[0], (1, 1, 4, 4), 2)
    assert torch.allclose(walk("lms", x, sigmas, process, data.denoise, order=1), walk("euler", x, sigmas, process, data.denoise))


# diffusers' own schedulers as judges, on their sigmas. The VP ones hold x / sqrt(1 + sigma^2); `scale` is what makes it ours again.
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "use_karras_sigmas": True}
JUDGES: dict[str, tuple[type[Any], dict[str, Any], bool]] = {
    "euler": (EulerDiscreteScheduler, {}, False),
    "ddim": (EulerDiscreteScheduler, {}, False),
    "heun": (HeunDiscreteScheduler, {}, False),
    "lms": (LMSDiscreteScheduler, {}, False),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}, True),
    "dpmpp_2m_sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}, True),
    "uni_pc_bh2": (UniPCMultistepScheduler, {"solver_order": 3, "solver_type": "bh2"}, True),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize("name", JUDGES)
def test_agrees_with_diffusers(name: str) -> None:
    kind, options, vp = JUDGES[name]
    judge = kind(**BETAS, **options)
    judge.set_timesteps(12)
    sigmas = [float(v) for v in dict.fromkeys(judge.sigmas.tolist())]
    process = PROCESSES["eps"]
    data = Normal(process)
    x = data.draw(sigmas[0], (1, 1, 4, 4), 2)
    unit = [torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(len(sigmas))]

    want = x / (math.sqrt(1 + sigmas[0] ** 2) if vp else 1)
    if name == "lms":  # diffusers extrapolates to sigma 0 where x0 is the answer: compare before that
        judge.timesteps, sigmas = judge.timesteps[:-1], sigmas[:-1]
    for i, t in enumerate(judge.timesteps):
        judge.scale_model_input(want, t)
        sigma = float(judge.sigmas[i])
        at = want * (math.sqrt(1 + sigma * sigma) if vp else 1)
        eps = (at - data.denoise(at, sigma)) / sigma
        noise = {"variance_noise": unit[i]} if name == "dpmpp_2m_sde" else {}
        want = judge.step(eps, t, want, **noise).prev_sample

    draws = iter(unit)
    got = walk(name, x, sigmas, process, data.denoise, lambda _s, _t: next(draws))
    assert torch.allclose(got, want.double(), atol=2e-3 if name in ENDS_ABOVE_ZERO else 1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
def test_sa_solver_agrees_with_diffusers() -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    judge = SASolverScheduler(**BETAS, predictor_order=3, corrector_order=4, lower_order_final=False, tau_func=lambda _t: 1.0)
    judge.set_timesteps(12)
    sigmas = judge.sigmas.tolist()[:-1]  # the last step, to 0, is the denoiser's own
    x = data.draw(sigmas[0], (1, 1, 4, 4), 2)
    want, source = x / math.sqrt(1 + sigmas[0] ** 2), torch.Generator().manual_seed(3)
    for s, t in zip(sigmas[:-1], judge.timesteps, strict=False):
        at = want * math.sqrt(1 + s * s)
        want = judge.step((at - data.denoise(at, s)) / s, t, want, generator=source).prev_sample
    again = torch.Generator().manual_seed(3)
    got = walk("sa_solver", x, sigmas, process, data.denoise,
               lambda _s, _t: torch.randn(x.shape, generator=again, dtype=x.dtype), start=0, end=1)
    assert torch.allclose(got, want * math.sqrt(1 + sigmas[-1] ** 2), atol=1e-4)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("name", [n for n in DETERMINISTIC if n != "heunpp2"])  # whose weights are shares of the first sigma
def test_rising_sigmas_lead_back_to_the_noise(name: str, kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    high, low = (0.95, 0.2) if kind == "flow" else (3.0, 0.3)
    x = torch.tensor([-2.0, 0.3, 1.9], dtype=torch.float64) * low
    out = walk(name, x, np.geomspace(low, high, 81).tolist(), process, data.denoise)
    assert torch.allclose(out, data.flow(x, low, high), atol=0.05)


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if "eta" in s.options])
def test_any_eta_is_finite(name: str, kind: str) -> None:
    process = PROCESSES[kind]
    data = Normal(process)
    way = [*np.geomspace(0.95, 0.2, 5).tolist(), 0.0]
    for eta in (0.0, 0.5, 2.0, 100.0):
        assert walk(name, data.draw(0.95, (1, 1, 4, 4), 2), way, process, data.denoise, eta=eta).isfinite().all()


@pytest.mark.parametrize("options", [{"h_init": 0.0}, {"accept_safety": 5.0}, {"rtol": 0.0, "atol": 0.0}, {"order": 4}])
def test_dpm_adaptive_does_not_go_on_for_ever(options: dict[str, float]) -> None:
    process = PROCESSES["eps"]
    data = Normal(process)
    with pytest.raises(ValueError, match="dpm_adaptive: "):
        walk("dpm_adaptive", data.draw(3.0, (1, 1, 4, 4), 2), [3.0, 0.3], process, data.denoise, **options)


def test_a_second_point_lies_within_the_step() -> None:
    with pytest.raises(ValueError, match="dpmpp_sde: r: got 0"):
        walk("dpmpp_sde", torch.zeros(1, 1, 4, 4), [3.0, 0.3], PROCESSES["eps"], lambda x, _s: x, r=0)


def test_unequal_steps_with_the_figures_known_of_them() -> None:
    """Steps of one length: Adams-Bashforth's weights of order 3; of order 4 the third difference weighs 11/24 in place of 3/8."""
    assert _unequal([-1.0, -1.0, -1.0]) == pytest.approx([23 / 12, -16 / 12, 5 / 12])
    assert _unequal([-1.0] * 4) == pytest.approx(np.array([55, -59, 37, -9]) / 24 + np.array([1, -3, 3, -1]) / 12)
    assert _unequal([-2.0, -1.0]) == pytest.approx([2.0, -1.0])
