"""Weaker networks and what is made of their answers; attention and features changed without weights."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import safelight
from safelight.families import Family
from safelight.families.touch import bell, folded, sharpened, tonemapped
from safelight.ops.network import TWEAKS
from safelight.patches import find
from safelight.patches.rows import NEGATIVE, WEAK
from safelight.sampling.guidance import CFG, Changed, Off
from safelight.sampling.regions import level
from safelight.values import NO_FILE, Cond, Model, Patch
from tests import tiny
from tests.gaussian import PROCESSES

X, A, B, C = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4))
WAY = PROCESSES["eps"]
PROMPT, OTHER = Cond(torch.ones(1, 2, 2)), Cond(torch.zeros(1, 2, 2))
CELLS = (1, 2, 3)


def made(changes: dict[str, float], *answers: Tensor, scale: float = 5.0) -> Tensor:
    return Changed(CFG(scale), changes).combine(X, 2.0, answers, WAY)


def dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(CELLS, keepdim=True)


def test_projected_guidance_takes_the_part_along_the_prompt_apart() -> None:
    way = A - B
    along = A * (dot(way, A) / dot(A, A))
    assert torch.allclose(made({"apg": 0.25}, A, B), A + 5 * (way - along + 0.25 * along), atol=1e-4)
    assert torch.allclose(made({"apg": 1.0}, A, B), A + 5 * way, atol=1e-4)
    held = (made({"apg": 1.0, "apg_norm": 3.0}, A, B) - A) / 5
    assert torch.allclose(dot(held, held).sqrt(), torch.full((2, 1, 1, 1), 3.0), atol=1e-4)
    assert torch.equal(made({"apg": 0.1}, A, scale=1.0), A)


def test_momentum_is_of_one_trajectory_and_begins_anew_where_noise_rises() -> None:
    guidance, way = Changed(CFG(5.0), {"apg": 1.0, "apg_momentum": 0.5}), A - B
    first = guidance.combine(X, 9.0, (A, B), WAY)
    second = guidance.combine(X, 4.0, (A, B), WAY)
    assert torch.allclose(first, A + 5 * way, atol=1e-4) and torch.allclose(second, A + 7.5 * way, atol=1e-4)
    assert torch.allclose(replace(guidance).combine(X, 2.0, (A, B), WAY), first, atol=1e-4)
    assert torch.allclose(guidance.combine(X, 9.0, (A, B), WAY), first, atol=1e-4)


def test_bands_of_the_difference_count_apart() -> None:
    assert torch.allclose(made({"high": 2.0, "low": 2.0, "cutoff": 2}, A, B), B + 10 * (A - B), atol=1e-4)
    assert torch.allclose(made({"high": 3.0, "cutoff": 8}, A, B), B + 5 * (A - B), atol=1e-4)
    flat = torch.ones_like(A)
    assert torch.allclose(made({"high": 3.0, "low": 0.5, "cutoff": 1}, B + flat, B), B + 2.5 * flat, atol=1e-4)


def test_what_follows_the_scale() -> None:
    plain = made({}, A, B)
    up, down = X - A, X - B
    alpha = dot(up, down) / dot(down, down)
    velocity = down * alpha + 5 * (up - down * alpha)  # of CFG-Zero*, with the negative x0 in place of x in what the share leaves
    assert torch.allclose(made({"zero": 1}, A, B), X - velocity + X * (1 - alpha) * 4, atol=1e-3)
    lengths = [t.norm(dim=1) for t in (made({"norm": 1.0}, A, B), A, plain)]
    assert torch.allclose(lengths[0], torch.minimum(lengths[1], lengths[2]), atol=1e-4)
    assert torch.allclose(made({"tonemap": 0.5}, A, B), B + 5 * tonemapped(A - B, 0.5), atol=1e-4)
    assert torch.allclose(made({"tonemap": 0.5}, A, scale=1.0), tonemapped(A, 0.5), atol=1e-5)


def test_layers_are_left_out_for_a_part_of_the_way() -> None:
    inside, beyond = ({"skip": 2.0, "skip_from": a, "skip_to": b} for a, b in ((0.0, 1.0), (0.0, 0.01)))
    plain = made({}, A, B)
    assert level(WAY, 0.01) > 2.0
    assert torch.allclose(made(inside, C, A, B), plain + 2 * (A - C), atol=1e-4)
    assert torch.equal(made(beyond, C, A, B), plain)
    spread = made({**inside, "skip_rescale": 1.0}, C, A, B).std()
    assert torch.allclose(spread, A.std(), rtol=1e-4)
    asked = Changed(CFG(5.0), beyond).conds(PROMPT, OTHER)
    assert asked[0].region.end == 0.01 and int(asked[0].extras[WEAK]) == 3 and list(asked[1:]) == [PROMPT, OTHER]


def test_a_blurred_row_is_the_negative_prompts() -> None:
    blurred, *rest = Changed(CFG(1.0), {"blur": 0.5}).conds(PROMPT, OTHER)
    assert torch.equal(blurred.tokens, OTHER.tokens) and bool(blurred.extras[NEGATIVE]) and rest == [PROMPT, OTHER]
    alone, _ = Changed(Off(), {"blur": 0.5}).conds(PROMPT, None)  # nothing else guides: the prompt's own picture
    assert torch.equal(alone.tokens, PROMPT.tokens)
    both = made({"sharpen": 0.2, "radius": 3.0, "tonemap": 0.5}, A, B)
    assert torch.allclose(both, B + 5 * tonemapped(sharpened(A - B, 0.2, 3, 1.0), 0.5), atol=1e-4)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Family]]:
    yield tiny.loader(tmp_path_factory.mktemp("m"))


def asked(family: Family, *, side: int = 16, **marks: Tensor) -> tuple[Tensor, Tensor, Cond]:
    cond = family.encode_text(["apple", "apple"])
    x = torch.randn(2, family.channels, side, side, generator=torch.Generator().manual_seed(0))
    return x, family.sigmas[[500, 500]], replace(cond, extras={**cond.extras, **marks})


@torch.no_grad()
def test_a_blurred_row_says_what_the_blurred_picture_gives(families: Callable[[str], Family]) -> None:
    family = families("sd1")
    x, sigma, cond = asked(family, **{WEAK: torch.tensor([2, 0])})
    plain = family.denoise(x, sigma, cond)
    with find("weak")(family, Patch("weak", NO_FILE, options={"how": "blurred", "sigma": 2.0})):
        weak = family.denoise(x, sigma, cond)
    assert torch.allclose(weak[1], plain[1], atol=1e-5)
    soft = folded(plain, bell(4, 0.5))
    again = family.denoise(x + soft - plain, sigma, cond)
    everywhere, nowhere = plain - soft + again, plain
    assert (weak[0] - nowhere[0]).abs().max() > 1e-4  # the middle looks somewhere more than elsewhere, and not everywhere
    assert (weak[0] - everywhere[0]).abs().max() > 1e-4
    assert "denoise" not in vars(family)


@torch.no_grad()
def test_a_transformer_without_layers_is_one_that_never_had_them(families: Callable[[str], Family]) -> None:
    family = families("sd3")
    net: Any = family.trainable()["transformer"]
    x, sigma, cond = asked(family, side=8, **{WEAK: torch.tensor([0, 3]), NEGATIVE: torch.tensor([False, True])})
    said = {"encoder_hidden_states": cond.tokens, "pooled_projections": cond.extras["pooled"], "timestep": sigma * 1000}
    without = net(x, skip_layers=[1], return_dict=False, **said)[0]
    plain = family.predict(x, sigma, cond)
    for more in ({}, {"side": "negative"}, {"side": "negative", "start": 0.0, "end": 0.9}):
        with find("weak")(family, Patch("weak", NO_FILE, options={"how": "skipped", "layers": [1, 70], **more})):
            found = family.predict(x, sigma, cond)
        assert torch.allclose(found[0], plain[0], atol=1e-5) and torch.allclose(found[1], without[1], atol=1e-5)
    with find("weak")(family, Patch("weak", NO_FILE, options={"how": "skipped", "layers": [1], "side": "negative", "end": 0.1})):
        assert torch.equal(family.predict(x, sigma, cond), plain)
    assert (without - plain).abs().max() > 1e-4
    with pytest.raises(ValueError, match="needs a transformer"), find("weak")(
        families("sd1"), Patch("weak", NO_FILE, options={"how": "skipped", "layers": [1]})
    ):
        pass


def tweaked(family: Family, how: str, **options: Any) -> Patch:
    return Patch("attention", NO_FILE, options={"how": how, **TWEAKS[how], **options})


@torch.no_grad()
def test_parts_of_attention_count_so_many_times(families: Callable[[str], Family]) -> None:
    family = families("sd1")
    net, (x, sigma, cond) = family.trainable()["unet"], asked(family)
    layers = [m for name, m in net.named_modules() if name.endswith("attn2")]
    with find("attention")(family, tweaked(family, "scaled", where="cross", k=3.0, out=0.0)):
        found = family.predict(x, sigma, cond)
    kept = [(p, p.clone()) for layer in layers for p in layer.to_out[0].parameters()]
    for p, _ in kept:
        p.zero_()
    wanted = family.predict(x, sigma, cond)
    for p, was in kept:
        p.copy_(was)
    assert torch.allclose(found, wanted, atol=1e-6) and not torch.allclose(found, family.predict(x, sigma, cond), atol=1e-3)
    with find("attention")(family, tweaked(family, "scaled", where="text", v=3.0)):
        assert not torch.allclose(family.encode_text(["apple"]).tokens, cond.tokens[:1], atol=1e-3)
    with pytest.raises(ValueError, match="no such attention"), find("attention")(families("sd3"), tweaked(family, "scaled")):
        pass


class Alone:
    """A U-Net that attends at its first level, and nothing else."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.net = tiny.unet(4, 8, down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                             up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D")).eval()

    def trainable(self) -> dict[str, Any]:
        return {"unet": self.net}


@torch.no_grad()
@pytest.mark.parametrize(("how", "options", "places"), [
    ("merged", {"ratio": 0.5}, {64, 128}), ("tiled", {"tile": 32, "swap": 1}, {16, 64}), ("tiled", {"tile": 32, "depth": 1}, {16}),
    ("tiled", {"tile": 32, "depth": 1, "grow": 1}, {16, 64})])
def test_fewer_places_ask_and_rows_do_not_see_each_other(how: str, options: dict[str, Any], places: set[int]) -> None:
    family: Any = Alone()
    net, seen = family.net, set[int]()
    x, text = (torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)) for shape in ((4, 16, 16), (5, 32)))
    layers = [m for name, m in net.named_modules() if name.endswith("attn1")]
    for layer in layers:
        for part in (layer.to_q, layer.to_k, layer.to_out[0]):
            part.weight.mul_(5)
    plain = net(x, 500, text).sample
    with find("attention")(family, tweaked(family, how, **options)):
        hooks = [m.to_q.register_forward_hook(lambda _, given, out: seen.add(given[0].shape[1])) for m in layers]
        both, one = net(x, 500, text).sample, net(x[:1], 500, text[:1]).sample
        for hook in hooks:
            hook.remove()
    assert torch.allclose(both[:1], one, atol=1e-3) and (both - plain).abs().max() > 0.1
    assert seen == places


def test_the_ops_put_patches_on_a_model() -> None:
    model = Model("sd", "x", "y")
    weak = safelight.with_weak(model, how="skipped", layers=[1, 2], side="negative", end=0.5).patches[0]
    assert weak.options == {"how": "skipped", "layers": [1, 2], "side": "negative", "start": 0.0, "end": 0.5}
    assert safelight.with_weak(model).patches[0].options == {"how": "alone"}
    tiled = safelight.with_tweak(model, how="tiled", options=["tile=128", "grow=1"]).patches[0]
    assert tiled.kind == "attention" and tiled.options == {"how": "tiled", "tile": 128, "swap": 2, "depth": 0, "grow": 1}
    assert safelight.with_tweak(model, how="scaled", options=["out=1.5", "where=cross"]).patches[0].options["out"] == 1.5
    with pytest.raises(ValueError, match="got here; expected one of self, cross, text"):
        safelight.with_tweak(model, how="scaled", options=["where=here"])
    for wrong, says in ((["size=3"], "no setting 'size'"), (["tile=many"], "invalid literal")):
        with pytest.raises(ValueError, match=says):
            safelight.with_tweak(model, how="tiled", options=wrong)
