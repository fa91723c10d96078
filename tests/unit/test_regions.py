"""Conditions with places, masks, ranges and strengths: what a side's x0 is, against the mean by weight written out."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from safelight.events import Ask, Query
from safelight.ops.text import average_conds, combine_conds, concat_conds, scale_cond, set_area, set_mask, set_range
from safelight.sampling.driver import answer, drive
from safelight.sampling.guidance import CFG, Off
from safelight.sampling.process import process
from safelight.sampling.regions import ask, gather, level, sides
from safelight.sampling.request import Request, blank
from safelight.sampling.schedules import plan
from safelight.store import Made, Store
from safelight.values import Cond, Mask, Region
from tests.gaussian import Plain, finish, flow_table

SHAPE = (1, 4, 16, 24)
"""128 pixels high, 192 wide."""


def cond(value: float, **region: Any) -> Cond:
    return Cond(torch.full((1, 3, 2), value), region=Region(**region))


def together(*conds: Cond) -> Cond:
    return replace(conds[0], others=tuple(p for c in conds[1:] for p in c.parts))


def x0(family: Plain, c: Cond, x: Tensor, sigma: float, *, against: Cond | None = None) -> Tensor:
    """What a side says of x at sigma, asked through the driver's own answering."""
    side, _ = sides(c, against, family, tuple(x.shape), process(family))
    queries = tuple(ask(side, x, sigma))
    return gather(side, x, sigma, answer([Ask(family=family, queries=queries)])[0])  # type: ignore[arg-type]


def alone(family: Plain, value: float, x: Tensor, sigma: float) -> Tensor:
    return family.denoise(x, torch.full((len(x),), sigma), Cond(torch.full((len(x), 3, 2), value)))


@pytest.fixture
def x() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * 3


def ramp(n: int, soft: int, *, first: bool, last: bool) -> Tensor:
    """1/soft, 2/soft, ... from an inner edge; 1 elsewhere."""
    at, one = torch.arange(n), torch.ones(n)
    up, down = ((at + 1) / soft).clamp(max=1), ((n - at) / soft).clamp(max=1)
    return (up if first else one) * (down if last else one)


def test_two_halves_with_different_prompts(x: Tensor) -> None:
    family = Plain()
    halves = together(cond(1.0, area=(96, 128, 0, 0)), cond(-1.0, area=(96, 128, 96, 0)))
    got = x0(family, halves, x, 2.0)
    # Alone on its cells, each prompt's answer stands whatever its weight is.
    assert torch.allclose(got[..., :12], alone(family, 1.0, x, 2.0)[..., :12], atol=1e-6)
    assert torch.allclose(got[..., 12:], alone(family, -1.0, x, 2.0)[..., 12:], atol=1e-6)


def test_overlapping_areas_are_averaged_by_their_soft_edges(x: Tensor) -> None:
    family = Plain()
    both = together(cond(1.0, strength=0.5), cond(-1.0, area=(128, 96, 40, 24), strength=2.0))
    h, w, top, left = 12, 16, 3, 5
    weight = torch.zeros(16, 24)
    soft = [min(8, n // 4) for n in (h, w)]
    down, across = ramp(h, soft[0], first=True, last=True), ramp(w, soft[1], first=True, last=True)
    weight[top : top + h, left : left + w] = 2.0 * down[:, None] * across
    want = (0.5 * alone(family, 1.0, x, 1.3) + weight * alone(family, -1.0, x, 1.3)) / (0.5 + weight)
    assert torch.allclose(x0(family, both, x, 1.3), want, atol=1e-5)


def test_edges_of_the_picture_are_not_soft(x: Tensor) -> None:
    family = Plain()
    both = together(cond(0.0), cond(1.0, area=(1.0, 0.5, 0.0, 0.5), shares=True))
    weight = torch.zeros(16, 24)
    weight[8:] = ramp(8, 2, first=True, last=False)[:, None]
    want = (alone(family, 0.0, x, 2.0) + weight * alone(family, 1.0, x, 2.0)) / (1 + weight)
    assert torch.allclose(x0(family, both, x, 2.0), want, atol=1e-5)


def test_a_mask_weighs_every_place(x: Tensor) -> None:
    family = Plain()
    values = np.linspace(0, 1, 16 * 24, dtype=np.float32).reshape(1, 16, 24)
    both = together(cond(1.0), cond(-1.0, mask=Mask(values), mask_strength=3.0, strength=0.5))
    w = torch.from_numpy(values) * 1.5
    want = (alone(family, 1.0, x, 2.0) + w * alone(family, -1.0, x, 2.0)) / (1 + w)
    assert torch.allclose(x0(family, both, x, 2.0), want, atol=1e-5)


def test_a_mask_of_another_size_is_scaled_without_smoothing(x: Tensor) -> None:
    big = np.zeros((1, 32, 48), np.float32)
    big[:, :, 24:] = 1
    got = x0(Plain(), together(cond(1.0), cond(-1.0, mask=Mask(big))), x, 2.0)
    small = torch.nn.functional.interpolate(torch.from_numpy(big)[:, None], (16, 24), mode="bilinear")[0]
    want = (alone(Plain(), 1.0, x, 2.0) + small * alone(Plain(), -1.0, x, 2.0)) / (1 + small)
    assert torch.allclose(got, want, atol=1e-5)


def test_mask_bounds_ask_only_the_box(x: Tensor) -> None:
    family = Plain()
    values = np.zeros((1, 16, 24), np.float32)
    values[:, 2:12, 10:13] = 0.5
    boxed = together(cond(1.0), cond(-1.0, mask=Mask(values), bounds=True))
    side, _ = sides(boxed, None, family, SHAPE, process(family))
    assert side[1].area == (10, 8, 2, 10), "at least eight cells a side"
    assert [tuple(q.x.shape[2:]) for q in ask(side, x, 2.0)] == [(16, 24), (10, 8)]
    whole = together(cond(1.0), cond(-1.0, mask=Mask(values)))
    assert torch.allclose(x0(family, boxed, x, 2.0), x0(family, whole, x, 2.0), atol=1e-6)
    empty = together(cond(1.0), cond(-1.0, mask=Mask(values * 0), bounds=True))
    assert torch.allclose(x0(family, empty, x, 2.0), alone(family, 1.0, x, 2.0), atol=1e-6)


def test_where_nothing_counts_x0_is_zero(x: Tensor) -> None:
    got = x0(Plain(), cond(1.0, area=(64, 64, 0, 0)), x, 2.0)
    assert torch.equal(got[..., 8:], torch.zeros(1, 4, 16, 16)) and bool(got[..., :8, :8].abs().min() > 0)


def test_shares_of_the_way_are_sigmas_of_the_table() -> None:
    way = process(Plain())
    assert level(way, 0.0) == float("inf") and level(way, 1.0) == 0.0
    logs = np.log(way.table)
    assert level(way, 0.5) == pytest.approx(float(np.exp((logs[499] + logs[500]) / 2)), rel=1e-5)
    flow = process(Plain("flow", flow_table(3.0)))
    assert level(flow, 0.25) == pytest.approx(3 * 0.75 / (1 + 2 * 0.75), rel=1e-6)


@pytest.mark.parametrize(("sigma", "value"), [(14.6, 1.0), (1.0, 0.0), (0.05, -1.0)])
def test_a_range_is_asked_only_then(x: Tensor, sigma: float, value: float) -> None:
    family = Plain()
    way = process(family)
    assert level(way, 0.3) > 1.0 > level(way, 0.7) > 0.05
    three = together(cond(1.0, end=0.3), cond(0.0, start=0.3, end=0.7), cond(-1.0, start=0.7))
    side, _ = sides(three, None, family, SHAPE, way)
    assert len(ask(side, x, sigma)) == 1
    assert torch.allclose(x0(family, three, x, sigma), alone(family, value, x, sigma), atol=1e-6)


def test_prompts_that_change_on_the_way_are_two_walks() -> None:
    """Up to the middle one prompt, then another; and a walk with a gap, where nothing is asked and x0 is zero."""
    family = Plain()
    way = process(family)
    sigmas = plan(way, 8, schedule="karras")
    turn = next(i for i, s in enumerate(sigmas) if s < level(way, 0.5))
    plain = {"latent": blank(family, 192, 128), "seed": 5, "guidance": Off()}
    both = together(cond(1.0, end=0.5), cond(-1.0, start=0.5))
    got = finish(drive(family, [Request(cond=both, sigmas=sigmas, **plain)]))[0][0]
    first = finish(drive(family, [Request(cond=cond(1.0), sigmas=sigmas[: turn + 1], **plain)]))[0][0]
    rest = plain | {"latent": first, "noise": torch.zeros_like(first)}
    second = finish(drive(family, [Request(cond=cond(-1.0), sigmas=sigmas[turn:], **rest)]))[0][0]
    assert torch.allclose(got, second, atol=1e-5)
    family.passes.clear()
    finish(drive(family, [Request(cond=cond(1.0, start=0.5), sigmas=sigmas, **plain)]))
    assert len(family.passes) == 8 - turn


def test_an_area_has_its_opposite() -> None:
    family = Plain()
    way = process(family)
    positive = together(cond(1.0), cond(2.0, area=(96, 64, 48, 32), strength=0.5))
    _, other = sides(positive, cond(-1.0), family, SHAPE, way)
    assert [p.area for p in other] == [None, (8, 12, 4, 6)]
    assert float(other[1].cond.tokens.mean()) == -1.0, "its text is the negative prompt's"
    assert other[1].weight is not None and float(other[1].weight.max()) == 0.5
    # The smallest area around it lends its text; one that is equal needs no copy.
    around = together(cond(-1.0), cond(-2.0, area=(120, 96, 32, 16)), cond(-3.0, area=(192, 128, 0, 0)))
    _, other = sides(positive, around, family, SHAPE, way)
    assert float(other[-1].cond.tokens.mean()) == -2.0
    equal = together(cond(-1.0), cond(-2.0, area=(96, 64, 48, 32)))
    assert [len(s) for s in sides(positive, equal, family, SHAPE, way)] == [2, 2]


def test_guidance_compares_area_with_area(x: Tensor) -> None:
    family = Plain()
    positive, negative = together(cond(1.0), cond(2.0, area=(96, 64, 48, 32))), cond(-1.0)
    sigmas = plan(process(family), 3, schedule="karras")
    request = Request(cond=positive, negative=negative, latent=x, sigmas=sigmas, seed=1, guidance=CFG(3.0))
    assert request.asked_rows == 3
    family.passes.clear()
    got = finish(drive(family, [request]))[0][0]
    assert family.passes == [2, 2] * 3, "the whole picture for both sides, then the area for both"
    batch = replace(request, latent=x.repeat(2, 1, 1, 1), rows=[0, 0])
    two = finish(drive(Plain(), [batch, request], rows=5))[0]
    assert torch.allclose(two[0], got.repeat(2, 1, 1, 1), atol=1e-5) and torch.allclose(two[1], got, atol=1e-5)


def test_what_is_shown_of_the_picture_is_cut_with_it(x: Tensor) -> None:
    shown = torch.arange(16 * 24.0).view(1, 1, 16, 24).repeat(1, 5, 1, 1)
    c = replace(cond(1.0, area=(96, 64, 48, 32)), extras={"inpaint": shown, "pooled": torch.ones(1, 7)})
    side, _ = sides(c, None, Plain(), SHAPE, process(Plain()))
    (query,) = ask(side, x, 1.0)
    assert isinstance(query, Query)
    assert torch.equal(query.cond.extras["inpaint"], shown[..., 4:12, 6:18])
    assert query.cond.extras["time_ids"].tolist() == [[128, 192, 0, 0, 128, 192]], "the whole picture's size"


def test_an_area_outside_is_refused(x: Tensor) -> None:
    with pytest.raises(ValueError, match="area of 8 x 8 at 30, 0 has nothing of the latent of 24 x 16"):
        x0(Plain(), cond(1.0, area=(64, 64, 240, 0)), x, 1.0)


# The ops that make such conditions.


def test_the_ops_set_each_part() -> None:
    both = combine_conds([cond(1.0), together(cond(2.0), cond(3.0))])
    assert [float(p.tokens.mean()) for p in both.parts] == [1.0, 2.0, 3.0]
    placed = set_area(both, width=64, height=32, x=8, y=16, strength=0.5)
    assert {p.region for p in placed.parts} == {Region(strength=0.5, area=(64.0, 32.0, 8.0, 16.0))}
    ranged = set_range(placed, start=0.2)
    assert {(p.region.start, p.region.end, p.region.strength) for p in ranged.parts} == {(0.2, 1.0, 0.5)}
    mask = Mask(np.ones((1, 4, 4), np.float32))
    masked = set_mask(ranged, mask, strength=2.0, bounds=True)
    assert all(p.region.mask_strength == 2.0 and p.region.bounds and p.region.area for p in masked.parts)
    assert len({c.key for c in (both, placed, ranged, masked)}) == 4


def test_what_parts_share_is_kept_once(tmp_path: Path) -> None:
    text, mask = cond(1.0), Mask(np.ones((1, 4, 4), np.float32))
    both = together(replace(text, region=Region(area=(1.0, 0.5, 0.0, 0.0), shares=True)), replace(text, region=Region(mask=mask, end=0.5)))
    store = Store(tmp_path)
    store.put(both, Made("a" * 32, "test", "v1", {}, {}))
    record = Store(tmp_path).get("a" * 32)
    assert record is not None
    back = Store(tmp_path).load(record)
    assert isinstance(back, Cond) and back.key == both.key and back.parts[0].region == both.region
    assert back.parts[1].region.mask is not None and back.parts[1].region.mask.key == mask.key


def test_blending_and_joining_texts() -> None:
    long = Cond(torch.ones(1, 4, 2), {"pooled": torch.ones(1, 3)})
    short = Cond(torch.full((1, 2, 2), 3.0), {"pooled": torch.full((1, 3), 5.0)})
    mixed = average_conds(together(long, short), short, strength=0.25)
    assert mixed.tokens[0, :, 0].tolist() == [2.5, 2.5, 0.25, 0.25] and mixed.extras["pooled"].tolist() == [[4.0] * 3]
    assert torch.equal(mixed.parts[1].tokens, short.tokens)
    assert average_conds(short, long, strength=0.25).tokens[0, :, 0].tolist() == [1.5, 1.5]
    assert concat_conds(together(long, short), short).parts[1].tokens.shape == (1, 4, 2)
    nothing = scale_cond(replace(long, extras={**long.extras, "time_ids": torch.ones(1, 6)}))
    assert not nothing.tokens.any() and not nothing.extras["pooled"].any() and nothing.extras["time_ids"].all()
