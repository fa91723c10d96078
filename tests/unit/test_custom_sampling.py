"""Noise levels as values, and drawing along them."""
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler

from safelight.codec import decode, encode
from safelight.op import load_ops
from safelight.sampling.curves import AYS, levels, turbo
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG, Off
from safelight.sampling.noise import start_noise
from safelight.sampling.process import process
from safelight.sampling.request import Request, blank
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import SCHEDULES, plan
from safelight.sampling.settings import Curve, Scale, Solver
from safelight.sampling.stage import along, settings
from safelight.values import Cond, Latent, Sigmas
from tests.gaussian import PROCESSES, Plain, finish

OPS = load_ops()
TEN = Sigmas(tuple(float(v) for v in range(10, -1, -1)))


def cond(value: float) -> Cond:
    return Cond(torch.full((1, 3, 2), value))


def drawn(
    family: Plain, sigmas: list[float], latent: Latent | None = None, *, scale: float = 3.0, guide: str = "cfg", **solver: Any,
) -> Latent:
    start = latent or Latent(torch.zeros(1, 4, 8, 8), "plain")
    work = along(family, cond(0.8), start, negative=cond(-0.3), seed=7, sigmas=sigmas, scale=Scale(scale, guide), solver=Solver(**solver))
    made, _ = finish(work)  # type: ignore[arg-type]
    assert isinstance(made, Latent)
    return made


@pytest.mark.parametrize("curve", ["karras", "exponential"])
def test_curves_are_the_schedules_of_that_name(curve: str) -> None:
    table = PROCESSES["eps"].table
    got = levels(Curve(curve, 9, float(table[-1]), float(table[0])))
    assert got == pytest.approx(SCHEDULES[curve](PROCESSES["eps"], 9), rel=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(("curve", "option"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")])
def test_curves_are_those_of_diffusers(curve: str, option: str) -> None:
    judge = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **{option: True})
    judge.set_timesteps(12)
    table = PROCESSES["eps"].table
    got = levels(Curve(curve, 12, float(table[-1]), float(table[0])))
    assert np.allclose(got, judge.sigmas.numpy(), rtol=2e-4)


def test_curves_by_their_closed_forms() -> None:
    straight = levels(Curve("polyexponential", 5, 16.0, 1.0))
    assert straight == pytest.approx([16, 8, 4, 2, 1, 0])
    vp = levels(Curve("vp", 3))
    assert vp[0] == pytest.approx(np.sqrt(np.expm1(19.9 / 2 + 0.1)), rel=1e-5) and vp[-1] == 0
    laplace = levels(Curve("laplace", 5, middle=0.3, spread=0.5))
    assert laplace[2] == pytest.approx(np.exp(0.3), rel=1e-4)  # the median
    assert laplace[1] == pytest.approx(np.exp(0.3 + 0.5 * np.log(2)), rel=1e-4) and laplace[-1] == pytest.approx(0.0291675)


@pytest.mark.parametrize("curve", AYS)
def test_align_your_steps(curve: str) -> None:
    known = AYS[curve]
    assert levels(Curve(curve, 10)) == pytest.approx([*known[:-1], 0], rel=1e-6)
    twenty = levels(Curve(curve, 20))
    assert twenty[:-1:2] == pytest.approx(known[:-1], rel=1e-6) and len(twenty) == 21
    assert twenty[1] == pytest.approx((known[0] * known[1]) ** 0.5, rel=1e-6)
    assert levels(Curve(curve, 10, denoise=0.4)) == pytest.approx([*known[6:-1], 0], rel=1e-6)
    assert levels(Curve(curve, 10, denoise=0)) == []


def test_turbo_takes_the_ends_of_ten_stretches() -> None:
    way = PROCESSES["eps"]
    assert turbo(way, 10, 1.0) == pytest.approx([*way.table[999::-100].tolist(), 0.0], rel=1e-6)
    assert turbo(way, 2, 0.5) == pytest.approx([way.table[499], way.table[399], 0.0], rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0)])
def test_a_curve_needs_two_ends(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="0 < low < high"):
        OPS["sigmas"](curve="exponential", low=low, high=high)


def test_noise_levels_are_cut_turned_and_kept() -> None:
    cut = OPS["cut_sigmas"]
    assert cut(TEN, keep="high", step=3).levels == (10, 9, 8, 7) and cut(TEN, step=3).levels == (7, 6, 5, 4, 3, 2, 1, 0)
    assert cut(TEN, keep="high", share=0.3).levels == tuple(range(10, 2, -1)) and cut(TEN, share=0.3).levels == (3, 2, 1, 0)
    assert cut(TEN, keep="high", share=0.0).levels == TEN.levels and cut(TEN, share=0.0).levels == (0,)
    assert cut(TEN, step=30).levels == ()
    assert OPS["flip_sigmas"](TEN).levels == (pytest.approx(1e-4), *range(1, 11)) and OPS["flip_sigmas"](Sigmas(())).levels == ()
    assert OPS["set_first_sigma"](TEN, sigma=20).levels == (20, *range(9, -1, -1))
    kept = encode(TEN)
    assert decode(kept.tree, kept.arrays, lambda _: None) == TEN and TEN.key != OPS["flip_sigmas"](TEN).key  # type: ignore[arg-type, return-value]


def test_settings_are_read_and_wrong_ones_named() -> None:
    assert settings(["eta=0.5", " order = 2"]) == {"eta": 0.5, "order": 2} and isinstance(settings(["order=2"])["order"], int)
    with pytest.raises(ValueError, match=r"got 'eta'; expected a name and a number"):
        settings(["eta"])
    family = Plain()
    with pytest.raises(ValueError, match=r"sampler dpmpp_2m has no setting 'eta'; it has s_noise"):
        drawn(family, [10.0, 1.0, 0.0], options=("eta=1",))
    with pytest.raises(ValueError, match=r"sampler euler_ancestral has no setting 'r'; it has eta, s_noise"):
        drawn(family, [10.0, 1.0, 0.0], sampler="euler_ancestral", options=("r=1",))


def test_settings_reach_the_sampler() -> None:
    family, sigmas = Plain(), plan(process(Plain()), 6, schedule="karras")
    usual = drawn(family, sigmas, sampler="euler_ancestral")
    none = [drawn(family, sigmas, sampler="euler_ancestral", options=(o,)).samples for o in ("eta=0", "eta=0.0")]
    assert torch.equal(*none) and torch.allclose(none[0], drawn(family, sigmas, sampler="euler").samples, atol=1e-6)
    assert not torch.allclose(usual.samples, none[0], atol=0.1)
    assert torch.equal(usual.samples, drawn(family, sigmas, sampler="euler_ancestral", options=("s_noise=1",)).samples)
    assert not torch.allclose(usual.samples, drawn(family, sigmas, sampler="euler_ancestral", options=("s_noise=0.5",)).samples, atol=0.1)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_sde"])
def test_the_denoised_picture_is_the_last_steps_x0(sampler: str) -> None:
    family = Plain()
    sigmas = plan(process(family), 6, schedule="karras")
    first = drawn(family, sigmas[:4], sampler=sampler)
    seen = drawn(family, sigmas[:4], sampler=sampler, denoised=True)
    assert float(seen.samples.std()) < float(first.samples.std()) / 2
    before = drawn(family, sigmas[:3], sampler=sampler) if sampler != "dpmpp_sde" else None  # whose path has other ends then
    if before is not None:
        whole = drawn(family, [sigmas[2], 0.0], before, sampler="euler", add_noise=False)
        assert torch.allclose(seen.samples, whole.samples, atol=1e-5)
    if sampler == "euler":
        end = drawn(family, sigmas, sampler=sampler)
        assert torch.equal(end.samples, drawn(family, sigmas, sampler=sampler, denoised=True).samples)


def test_rising_levels_lead_a_picture_back_to_its_noise() -> None:
    family = Plain()
    sigmas = [*np.geomspace(14.0, 1e-4, 150).tolist()]
    picture = drawn(family, sigmas, sampler="dpmpp_2m", scale=1.0)
    noise = drawn(family, sigmas[::-1], picture, sampler="dpmpp_2m", scale=1.0, add_noise=False)
    again = drawn(family, sigmas, noise, sampler="dpmpp_2m", scale=1.0, add_noise=False)
    assert float(noise.samples.std()) == pytest.approx(14, rel=0.2)
    assert torch.allclose(again.samples, picture.samples, atol=0.02)
    with pytest.raises(ValueError, match="strictly falling"):
        drawn(family, sigmas[::-1], picture, sampler="euler_ancestral")


def test_a_level_that_comes_twice_counts_once() -> None:
    assert torch.equal(drawn(Plain(), [9.0, 9.0, 2.0, 0.0]).samples, drawn(Plain(), [9.0, 2.0, 0.0]).samples)


def test_cfg_pp_asks_without_the_prompt_at_any_scale_unless_nothing_guides() -> None:
    def passes(guidance: Any, sampler: str) -> list[int]:
        family = Plain()
        given: dict[str, Any] = {"cond": cond(0.8), "negative": cond(-0.3), "latent": blank(family, 64, 64), "sigmas": [9.0, 2.0, 0.0]}
        finish(drive(family, [Request(**given, seed=1, sampler=sampler, guidance=guidance)]))
        return family.passes

    assert passes(CFG(1.0), "euler") == [1, 1] and passes(CFG(1.0), "euler_cfg_pp") == [2, 2] == passes(CFG(4.0), "euler_cfg_pp")
    assert passes(Off(), "euler_cfg_pp") == [1, 1]
    assert torch.allclose(drawn(Plain(), [9.0, 2.0, 0.0], sampler="euler_cfg_pp", guide="off").samples,
                          drawn(Plain(), [9.0, 2.0, 0.0], sampler="euler", guide="off").samples, atol=1e-6)
    with pytest.raises(ValueError, match=r"a CFG\+\+ sampler.* needs a negative prompt"):
        Request(cond=cond(0.8), latent=blank(Plain(), 64, 64), sigmas=[9.0, 0.0], sampler="euler_cfg_pp", guidance=CFG(1.0))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_level_alone_is_no_step(sampler: str) -> None:
    start = Latent(torch.linspace(-1, 1, 256).view(1, 4, 8, 8), "plain")
    assert torch.equal(drawn(Plain(), [0.0], start, sampler=sampler).samples, start.samples)
    noisy = drawn(Plain(), [2.0], start, sampler=sampler).samples - start.samples
    assert torch.allclose(noisy, start_noise(noisy.shape, 7) * 2, atol=1e-6)
    assert torch.equal(drawn(Plain(), [], start, sampler=sampler).samples, start.samples)


@pytest.mark.parametrize(("sampler", "option", "says"), [
    ("lms", "order=0", "order: got 0, expected a whole number from 1 up"), ("lms", "order=1.5", "expected a whole number"),
    ("er_sde", "stages=-1", "stages: got -1"), ("euler_ancestral", "eta=-0.5", "eta: got -0.5, expected a number from 0 up"),
    ("euler_ancestral", "eta=nan", "eta: got nan"), ("euler", "s_noise=inf", "s_noise: got inf"),
])
def test_settings_out_of_range_are_refused(sampler: str, option: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        drawn(Plain(), [9.0, 2.0, 0.0], sampler=sampler, options=(option,))


def test_curves_at_the_ends_of_their_ranges() -> None:
    assert levels(Curve("karras", 3, 16.0, 0.0)) == pytest.approx([16, 16 / 2**7, 0, 0])
    with pytest.raises(ValueError, match="rho: got 0"):
        levels(Curve("karras", rho=0.0))
    with pytest.raises(ValueError, match="alpha=0"):
        OPS["model_sigmas"]("mini", schedule="beta", alpha=0.0)
