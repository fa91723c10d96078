"""The sampler between latents, stage by stage; and what can be done with latents, against the arithmetic written out."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.families.tiles import three_ways, tiled
from safelight.families.touch import bislerp
from safelight.op import Op, load_ops
from safelight.runtime import lease
from safelight.sampling.noise import start_noise
from safelight.sampling.process import process
from safelight.sampling.resize import directions, grown, scaled
from safelight.sampling.samplers import SAMPLERS
from safelight.sampling.schedules import plan
from safelight.sampling.settings import Sampling, Scale, Stage
from safelight.sampling.stage import BLANK, staged
from safelight.values import Cond, Image, Latent, Mask, Model
from tests import tiny
from tests.gaussian import Plain, finish, flow_table

OPS: dict[str, Op[..., Any]] = dict(load_ops())


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cond(value: float) -> Cond:
    return Cond(torch.full((1, 3, 2), value))


def drawn(family: Plain, latent: Latent, *, sampler: str = "euler", seed: int = 7, **stage: Any) -> Latent:
    how = Sampling(sampler, "karras", 6)
    work = staged(family, cond(0.8), latent, negative=cond(-0.3), seed=seed, sampling=how, scale=Scale(3.0), stage=Stage(**stage))
    made, _ = finish(work)  # type: ignore[arg-type]
    assert isinstance(made, Latent)
    return made


def empty(count: int = 1) -> Latent:
    return Latent(torch.zeros(count, 4, 8, 8), "plain")


ONE_STEP = [name for name, s in SAMPLERS.items() if s.noise == "none" and name in ("euler", "heun", "dpm_2", "ddim")]


@pytest.mark.parametrize("kind", ["eps", "flow"])
@pytest.mark.parametrize("sampler", ONE_STEP)
def test_two_stages_are_one(sampler: str, kind: str) -> None:
    """Of a sampler that remembers nothing from step to step, and adds no noise."""
    family = Plain(kind, flow_table(3.0)) if kind == "flow" else Plain()
    whole = drawn(family, empty(2), sampler=sampler)
    first = drawn(family, empty(2), sampler=sampler, end_at_step=3, leftover_noise=True)
    second = drawn(family, first, sampler=sampler, start_at_step=3, add_noise=False, seed=999)
    assert torch.allclose(whole.samples, second.samples, atol=1e-5)
    assert not torch.allclose(whole.samples, first.samples, atol=0.1)


def test_a_stage_that_stops_early_goes_to_the_end_unless_noise_is_left() -> None:
    family = Plain()
    sigmas = plan(process(family), 6, schedule="karras")
    cut = drawn(family, empty(), end_at_step=3)
    assert torch.equal(cut.samples, drawn(family, empty(), sigmas=(*sigmas[:3], 0.0)).samples)
    assert drawn(family, cut, start_at_step=6).samples is not None
    assert torch.equal(drawn(family, cut, start_at_step=6).samples, cut.samples), "nothing is left to walk"
    late = drawn(family, cut, start_at_step=4)
    assert torch.equal(late.samples, drawn(family, cut, sigmas=tuple(sigmas[4:])).samples)


def test_a_mask_outlives_a_stage() -> None:
    """Between two stages the noise of what is masked off stays in the latent: nothing of the picture is put back before the end."""
    family, picture = Plain(), noise(1, 4, 8, 8)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., 32:] = 1
    start = Latent(picture, "plain", mask)
    first = drawn(family, start, end_at_step=3, leftover_noise=True)
    assert first.mask is mask
    assert (first.samples - picture)[..., :3].abs().mean() > 0.1
    assert torch.equal(drawn(family, start).samples[..., :3], picture[..., :3])


def test_noise_is_one_draw_a_batch_and_stays_with_what_is_picked() -> None:
    family = Plain()
    batch = drawn(family, empty(3))
    none = drawn(family, empty(3), sigmas=(14.6, 14.5), leftover_noise=True)
    assert (none.samples / start_noise((3, 4, 8, 8), 7)).mean() == pytest.approx(14.6, rel=0.1)
    # Drawn as one or one by one, torch's first picture of a batch is the same; what is picked is drawn one by one.
    picked = OPS["pick_latents"](empty(3), start=1, count=2)
    assert picked.rows == (1, 2)
    one_by_one = drawn(family, replace(empty(3), rows=(0, 1, 2)))
    assert torch.allclose(drawn(family, picked).samples, one_by_one.samples[1:], atol=1e-6)
    assert torch.allclose(batch.samples[:1], one_by_one.samples[:1], atol=1e-6)
    same = drawn(family, OPS["repeat_latents"](empty(), count=3, noise="same"))
    assert torch.equal(same.samples[0], same.samples[2]) and not torch.equal(batch.samples[0], batch.samples[2])


def test_an_empty_latent_fits_any_model() -> None:
    made = drawn(Plain(), OPS["empty_latent"](width=96, height=64))
    assert made.samples.shape == (1, 4, 8, 12) and made.family == "plain"
    with pytest.raises(ValueError, match="got 16 channels, expected 4 for plain"):
        drawn(Plain(), Latent(torch.ones(1, 16, 8, 8)))


def test_an_inpainting_network_is_shown_the_latent_and_its_mask() -> None:
    seen: list[Tensor] = []

    class Inpainting(Plain):
        def inpainting(self, pixels: Tensor, mask: Tensor) -> dict[str, Tensor]:
            return {"inpaint": torch.zeros(1, 5, 1, 1)}

        def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            seen.append(cond.extras["inpaint"][0])
            return super().denoise(x, sigma, cond)

    picture, mask = noise(1, 4, 8, 8), torch.zeros(1, 1, 64, 64)
    mask[..., 28:] = 1
    drawn(Inpainting(), Latent(picture, "plain", mask))
    small = torch.nn.functional.interpolate(mask, (8, 8), mode="bilinear").round()
    assert torch.equal(seen[0], torch.cat([small, picture], dim=1)[0])
    drawn(Inpainting(), empty())
    assert seen[-1][:, 3, 3].tolist() == pytest.approx([1.0, *BLANK])


def test_patches_are_told_whose_row_is_whose() -> None:
    told: list[tuple[list[int], list[bool]]] = []

    class Watching(Plain):
        def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            told.append((cond.extras["picture"].tolist(), cond.extras["negative"].tolist()))
            return super().denoise(x, sigma, cond)

    drawn(Watching(), empty(2))
    assert told[0] == ([0, 1, 0, 1], [False, False, True, True])


# Through a network, and between pictures and latents.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder: Path = tiny.sd1(tmp_path_factory.mktemp("models") / "sd1")
    named = OPS["model"](str(folder))
    assert isinstance(named, Model)
    return named


FEW = {"steps": 3, "sampler": "euler", "scale": 3.0, "seed": 5}


def test_sample_draws_what_generate_draws(model: Model) -> None:
    drawn = OPS["generate"](model, "a (red:1.3) apple", seeds=[5], negative="blue", steps=3, sampler="euler", scale=3.0)
    texts = [OPS["encode_text"](model, t, negative=n) for t, n in (("a (red:1.3) apple", False), ("blue", True))]
    start = OPS["empty_latent"](model, width=32, height=32)
    assert start.samples.shape == (1, 4, 8, 8)
    made = OPS["sample"](model, texts[0], negative=texts[1], latent=start, **FEW)
    assert np.array_equal(OPS["decode"](model, made).pixels, drawn.pixels)


def test_brackets_by_either_rule(model: Model) -> None:
    """Nested weights multiply for a1111, square brackets make less; for comfy the innermost counts and square ones are letters."""
    text = {"nested": "a ((red:1.2):1.5) \\(apple\\)", "less": "a [red] coat"}
    read = {(name, by): OPS["encode_text"](model, t, emphasis=by).tokens for name, t in text.items() for by in ("comfy", "a1111")}
    weights = ("a (red:1.2) \\(apple\\)", f"a (red:{1.2 * 1.5!r}) \\(apple\\)", f"a (red:{1 / 1.1!r}) coat")
    plain = [OPS["encode_text"](model, t).tokens for t in weights]
    assert torch.equal(read["nested", "comfy"], plain[0]) and torch.equal(read["nested", "a1111"], plain[1])
    assert torch.equal(read["less", "a1111"], plain[2]) and not torch.equal(read["less", "comfy"], plain[2])
    drawn = {by: OPS["generate"](model, text["nested"], seeds=[1], steps=3, emphasis=by) for by in ("comfy", "a1111")}
    assert not np.array_equal(drawn["comfy"].pixels, drawn["a1111"].pixels)
    assert not torch.equal(OPS["encode_text"](model, "red", skip=1).tokens, OPS["encode_text"](model, "red").tokens)


def test_two_prompts_for_two_towers(tmp_path: Path) -> None:
    sdxl = OPS["model"](str(tiny.sdxl(tmp_path / "sdxl")))
    one, two = (OPS["encode_text"](sdxl, t) for t in ("a red apple", "night city"))
    both = OPS["encode_text"](sdxl, "a red apple", first="night city", width=96, height=64, crop_x=8, target_width=32, target_height=24)
    with lease(sdxl) as family:
        width = int(family.trainable()["text_encoder"].config.hidden_size)  # type: ignore[arg-type, union-attr]
    assert torch.equal(both.tokens[..., width:], one.tokens[..., width:]) and torch.equal(both.tokens[..., :width], two.tokens[..., :width])
    assert torch.equal(both.extras["pooled"], one.extras["pooled"])
    assert both.extras["time_ids"].tolist() == [[64, 96, 0, 8, 24, 32]]
    long = OPS["encode_text"](sdxl, "a red apple", first="night city " * 60)
    empty = OPS["encode_text"](sdxl, "").tokens
    assert torch.equal(long.tokens[:, -empty.shape[1] :, width:], empty[..., width:])
    refiner = OPS["model"](str(tiny.refiner(tmp_path / "refiner")))
    assert OPS["encode_text"](refiner, "a", width=64, height=48, score=7.5).extras["time_ids"].tolist() == [[48, 64, 0, 0, 7.5]]
    with pytest.raises(ValueError, match="sdxl has no two text encoders"):
        OPS["encode_text"](refiner, "a", first="b")


def test_edges_that_fill_no_cell_are_cut_evenly(model: Model) -> None:
    pixels = np.random.default_rng(0).random((2, 35, 38, 3), dtype=np.float32)
    got = OPS["encode"](model, Image(pixels))
    assert torch.equal(got.samples, OPS["encode"](model, Image(pixels[:, 1:33, 1:37].copy())).samples)


def test_one_tile_is_the_whole_and_small_ones_keep_the_size(model: Model) -> None:
    pictures = Image(np.random.default_rng(0).random((2, 32, 32, 3), dtype=np.float32))
    whole = OPS["encode"](model, pictures)
    assert torch.allclose(OPS["encode"](model, pictures, tile=64).samples, whole.samples, atol=1e-2)
    assert np.abs(OPS["decode"](model, whole, tile=64).pixels - OPS["decode"](model, whole).pixels).max() < 2e-2
    assert OPS["encode"](model, pictures, tile=16, overlap=4).samples.shape == whole.samples.shape
    assert OPS["decode"](model, whole, tile=16, overlap=4).pixels.shape == pictures.pixels.shape


def test_tiles_fade_into_each_other() -> None:
    """Work that answers with what it got, twice as large, gives the whole back; work that knows its tile shows the weights."""
    x = noise(2, 3, 20, 28)
    same = tiled(x, lambda t: t.repeat_interleave(2, 2).repeat_interleave(2, 3), tile=(8, 12), overlap=4, scale=2)
    assert torch.allclose(same, x.repeat_interleave(2, 2).repeat_interleave(2, 3), atol=1e-5)
    calls: list[tuple[int, ...]] = []

    def numbered(t: Tensor) -> Tensor:
        calls.append(tuple(t.shape[2:]))
        return torch.full_like(t, float(len(calls)))

    row = tiled(x[:1, :, :4, :16], numbered, tile=(8, 10), overlap=4, scale=1)[0, 0, 0]
    assert calls == [(4, 10), (4, 10)]
    fall, rise = torch.tensor([4, 3, 2, 1]) / 4, torch.tensor([1, 2, 3, 4]) / 4
    assert torch.allclose(row[6:10], (fall + 2 * rise) / (fall + rise))
    calls.clear()
    three_ways(x[:1, :, :16, :16], numbered, tile=8, overlap=2, scale=1)
    assert {(16, 4), (4, 16), (8, 8)} <= set(calls)


def test_a_hole_is_grey_and_its_mask_grows(model: Model) -> None:
    pixels = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    mask = np.zeros((1, 32, 32), np.float32)
    mask[:, 8:16, 8:16] = 0.7
    got = OPS["encode_inpaint"](model, Image(pixels), mask=Mask(mask), grow=6)
    grey = np.where(mask[..., None] > 0.5, np.float32(0.5), pixels)
    assert torch.allclose(got.samples, OPS["encode"](model, Image(grey)).samples, atol=2e-2)
    wide = got.mask[0, 0]
    assert wide.nonzero().amin(0).tolist() == [6, 6] and wide.nonzero().amax(0).tolist() == [18, 18]
    exact = OPS["encode_inpaint"](model, Image(pixels), mask=Mask(mask), exact=True)
    assert torch.equal(exact.mask[:, 0], torch.from_numpy(mask))
    shown = OPS["inpaint_cond"](cond(1.0), exact).extras["inpaint"]
    small = torch.nn.functional.interpolate(exact.mask, (8, 8), mode="bilinear").round()
    assert torch.equal(shown, torch.cat([small, exact.samples], dim=1))
    with pytest.raises(ValueError, match="a latent without a mask"):
        OPS["inpaint_cond"](cond(1.0), empty())


# Latents cut, scaled, laid on each other.


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic"])
def test_scaling_is_torchs(method: str) -> None:
    z = Latent(noise(2, 4, 8, 12))
    want = torch.nn.functional.interpolate(z.samples, (12, 18), mode=method)
    assert torch.equal(OPS["scale_latent"](z, by=1.5, method=method).samples, want)
    assert torch.equal(OPS["scale_latent"](z, width=144, height=96, method=method).samples, want)
    assert torch.equal(OPS["scale_latent"](z, width=144, method=method).samples, want), "the height in proportion"
    square = OPS["scale_latent"](z, width=128, height=128, method=method, crop=True).samples
    assert torch.equal(square, torch.nn.functional.interpolate(z.samples[..., 2:10], (16, 16), mode=method))


def slerp(a: Tensor, b: Tensor, r: float) -> Tensor:
    """Between two vectors, in float64."""
    ua, ub = a / a.norm(), b / b.norm()
    angle = torch.arccos((ua * ub).sum())
    way = (torch.sin((1 - r) * angle) * ua + torch.sin(r * angle) * ub) / torch.sin(angle)
    return way * (a.norm() * (1 - r) + b.norm() * r)


def test_bislerp_turns_and_stretches() -> None:
    x = noise(1, 4, 1, 2).double()
    got = bislerp(x.float(), 4, 1)[0, :, 0]  # places at -0.25, 0.25, 0.75 and 1.25
    a, b = x[0, :, 0, 0], x[0, :, 0, 1]
    want = torch.stack([a, slerp(a, b, 0.25), slerp(a, b, 0.75), b], dim=1).float()
    assert torch.allclose(got, want, atol=1e-5)
    line = torch.ones(1, 4, 3, 3) * torch.tensor([1.0, 2.0, 3.0])
    assert bislerp(line, 6, 3).isfinite().all(), "vectors of one direction have no angle"
    assert torch.equal(bislerp(torch.zeros(1, 4, 2, 2), 4, 4), torch.zeros(1, 4, 4, 4))


def test_cut_turned_mirrored() -> None:
    z = Latent(noise(1, 4, 16, 24))
    assert torch.equal(OPS["crop_latent"](z, width=64, height=72, x=40, y=16).samples, z.samples[..., 2:11, 5:13])
    assert torch.equal(OPS["crop_latent"](z, width=640, height=64, x=9999, y=0).samples, z.samples[..., :8, 16:])
    right = OPS["turn_latent"](z, degrees=90).samples
    assert torch.equal(right[0, 0, 0], z.samples[0, 0, :, 0].flip(0)), "clockwise: the left column, from below, is on top"
    assert torch.equal(OPS["turn_latent"](z, mirror="left-right").samples, z.samples.flip(3))
    assert torch.equal(OPS["turn_latent"](z, mirror="upside-down").samples, z.samples.flip(2))


def test_pasting_with_soft_edges() -> None:
    under, over = torch.zeros(1, 4, 16, 16), torch.ones(1, 4, 8, 8)
    got = OPS["paste_latent"](Latent(under), Latent(over), x=64, y=32, feather=16).samples[0, 0]
    want = torch.zeros(16, 16)
    rise = torch.tensor([0.5, 1, 1, 1, 1, 1, 1, 0.5])
    want[4:12, 8:16] = rise[:, None] * torch.tensor([0.5, 1, 1, 1, 1, 1, 1, 1])  # the right edge is the picture's
    assert torch.equal(got, want)
    half = OPS["paste_latent"](Latent(under), Latent(over), x=64, mask=Mask(np.full((1, 4, 4), 0.25, np.float32))).samples
    assert float(half.max()) == 0.25 and float(half[..., :8].max()) == 0
    whole = OPS["paste_latent"](Latent(under), Latent(over), fit=True).samples
    assert torch.equal(whole, torch.ones_like(under))
    beyond = OPS["paste_latent"](Latent(under), Latent(over), x=96, y=96).samples[0, 0]
    assert beyond.sum() == 16 and torch.equal(under, torch.zeros_like(under))


def test_mixing() -> None:
    a, b = Latent(noise(2, 4, 8, 8)), Latent(noise(1, 4, 8, 8, seed=1))
    mixed = {how: OPS["mix_latents"](a, b, how=how, ratio=0.25).samples for how in ("blend", "add", "subtract", "turn")}
    assert torch.allclose(mixed["blend"], a.samples * 0.25 + b.samples * 0.75)
    assert torch.equal(mixed["add"], a.samples + b.samples) and torch.equal(mixed["subtract"], a.samples - b.samples)
    assert torch.equal(mixed["turn"], directions(a.samples, b.samples.expand(2, -1, -1, -1), 0.25))
    lengths = [z.norm(dim=1) for z in (mixed["turn"], a.samples, b.samples)]
    assert torch.allclose(lengths[0], lengths[1] * 0.25 + lengths[2] * 0.75, atol=1e-5)
    assert torch.allclose(OPS["mix_latents"](a, a, ratio=1.0, scale=-2.0).samples, a.samples * -2)


def test_batches() -> None:
    a, b = Latent(noise(2, 4, 8, 8), mask=torch.rand(2, 1, 4, 4)), Latent(noise(1, 4, 8, 8, seed=1), rows=(5,))
    joined = OPS["join_latents"]([a, b])
    assert joined.rows == (0, 1, 5) and torch.equal(joined.samples[2:], b.samples)
    smaller = Latent(noise(1, 4, 4, 8))
    assert torch.equal(OPS["join_latents"]([b, smaller]).samples[1:], scaled(smaller.samples, 8, 8, crop=True))
    assert OPS["join_latents"]([a, b], along="x").samples.shape == (2, 4, 8, 16)
    assert OPS["join_latents"]([a, b], along="y").samples.shape == (2, 4, 16, 8)
    picked = OPS["pick_latents"](joined, start=-1, count=9)
    assert picked.rows == (5,) and torch.equal(picked.samples, b.samples) and torch.equal(picked.mask, a.mask[:1])
    twice = OPS["repeat_latents"](OPS["pick_latents"](joined, start=0, count=2), count=2)
    assert twice.rows == (0, 1, 2, 3) and twice.samples.shape[0] == twice.mask.shape[0] == 4
    assert OPS["repeat_latents"](a, count=2).rows is None
    with pytest.raises(ValueError, match="got none"):
        OPS["join_latents"]([])


def test_masks_on_latents() -> None:
    mask = Mask(np.random.default_rng(0).random((1, 64, 64), dtype=np.float32))
    masked = OPS["set_noise_mask"](empty(), mask)
    assert masked.key != empty().key and torch.equal(masked.mask[:, 0], torch.from_numpy(mask.values))
    assert torch.equal(OPS["set_noise_mask"](empty(2), masked).mask, masked.mask)
    with pytest.raises(ValueError, match="a latent without a mask"):
        OPS["set_noise_mask"](empty(), empty())


def test_growing_reaches_one_place_more_below() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    for size, low, high in ((1, 4, 4), (3, 3, 5), (4, 3, 6), (6, 2, 7)):
        at = grown(dot, size)[0, 0].nonzero()
        assert (int(at.min()), int(at.max())) == (low, high), size
