"""Guidance's nodes: third conditions and changes against their formulas, and what they do to a picture."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight import runtime
from safelight.comfy import Places, PromptError, translate
from safelight.comfy.nodes.guidance import guide_by
from safelight.patches.rows import NEGATIVE, WEAK
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG, Changed, Off, Rescale
from safelight.sampling.process import process
from safelight.sampling.request import Request
from safelight.values import Cond
from tests.comfy.prompts import node, places
from tests.comfy.test_custom import BASE, PARTS, SIDES, picture
from tests.gaussian import PROCESSES, Plain, finish

PROMPT, NEGATIVE_PROMPT, OTHER = (Cond(torch.full((1, 2, 2), float(i))) for i in range(3))
X, A, B, C = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(4))
WAY = PROCESSES["eps"]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


def made(changes: dict[str, float], *answers: torch.Tensor, third: bool = False, scale: float = 5.0) -> torch.Tensor:
    return Changed(CFG(scale), changes, OTHER if third else None).combine(X, 2.0, answers, WAY)


def test_a_third_condition_is_asked_between_and_counts_by_its_formula() -> None:
    asked = Changed(CFG(1.0), {"dual": 3.0}, OTHER).conds(PROMPT, NEGATIVE_PROMPT)
    assert list(asked) == [OTHER, PROMPT, NEGATIVE_PROMPT]
    assert torch.allclose(made({"dual": 3.0}, C, A, B, third=True), B + 3 * (C - B) + 5 * (A - C), atol=1e-5)
    assert torch.allclose(made({"nested": 3.0}, C, A, B, third=True), B + 3 * ((C + 5 * (A - C)) - B), atol=1e-4)


def test_perp_neg_leaves_the_prompts_own_direction_alone() -> None:
    along = made({"perp": 2.0}, C, A, C + 0.7 * (A - C), third=True)
    assert torch.allclose(along, C + 5 * (A - C), atol=1e-4)
    moved = made({"perp": 2.0}, C, A, B, third=True) - along
    assert ((moved * (A - C)).sum((1, 2, 3)) / (moved.norm() * (A - C).norm())).abs().max() < 1e-5 and moved.norm() > 1


def test_away_from_the_weakened_network() -> None:
    plain = CFG(5.0).combine(X, 2.0, [A, B], WAY)
    assert torch.allclose(made({"weak": 3.0}, C, A, B), plain + 3 * (A - C), atol=1e-4)
    rescaled = Changed(Rescale(5.0, 0.7), {"weak": 2.0}).combine(X, 2.0, [C, A, B], WAY)
    assert torch.allclose(rescaled, Rescale(5.0, 0.7).combine(X, 2.0, [A, B], WAY) + 2 * (A - C), atol=1e-5)
    weak, prompt, _ = Changed(CFG(5.0), {"weak": 1.0}).conds(PROMPT, NEGATIVE_PROMPT)
    assert prompt is PROMPT and bool(weak.extras[WEAK]) and torch.equal(weak.tokens, PROMPT.tokens)
    both, _ = Changed(Off(), {"weak": 1.0}).conds(replace(PROMPT, others=(OTHER,)), None)
    assert all(bool(part.extras[WEAK]) for part in both.parts) and len(both.parts) == 2
    with pytest.raises(ValueError, match="no change 'mystery'"):
        Changed(Off(), {"mystery": 1.0})


def test_of_the_negative_answer_only_what_lies_along_the_shared_direction() -> None:
    """The first right singular vector of two rows is the first eigenvector of their products of each with each."""
    plain = CFG(5.0).combine(X, 2.0, [A, B], WAY)
    u, v = ((X - t).flatten(1).double() for t in (B, A))
    kept = []
    for a, b in zip(u, v, strict=True):
        way = torch.linalg.eigh(torch.outer(a, a) + torch.outer(b, b)).eigenvectors[:, -1]
        kept.append((a @ way) * way)
    other = X - torch.stack(kept).view(X.shape).float()
    assert torch.allclose(made({"tangent": 1}, A, B), other + 5 * (A - other), atol=1e-4)
    alone = made({"tangent": 1}, A, X + 0.5 * (A - X))  # already along the way
    assert torch.allclose(alone, X + 0.5 * (A - X) + 2.5 * (A - X), atol=1e-4) and not torch.allclose(made({"tangent": 1}, A, B), plain)
    assert torch.equal(Changed(CFG(1.0), {"tangent": 1}).combine(X, 2.0, [A], WAY), A)


def test_nothing_longer_than_so_many_times_the_prompts_own() -> None:
    plain, dims = CFG(5.0).combine(X, 2.0, [A, B], WAY), (1, 2, 3)
    own = torch.linalg.vector_norm(A, dim=dims, keepdim=True)
    for most in (0.5, 1.0):
        short = made({"renorm": most, "until": 100}, A, B)
        assert torch.allclose(short, plain / torch.linalg.vector_norm(plain, dim=dims, keepdim=True) * own * most, atol=1e-5)
    assert torch.equal(made({"renorm": 100.0, "until": 100}, A, B), plain) and torch.equal(made({"renorm": 0, "until": 100}, A, B), plain)
    assert torch.equal(made({"renorm": 1.0, "until": 2}, A, B), A) and not torch.equal(made({"renorm": 0, "until": 2.01}, A, B), A)


def test_the_noise_is_divided_after_what_came_before() -> None:
    plain = CFG(5.0).combine(X, 2.0, [A, B], WAY)
    assert torch.allclose(made({"eps": 1.25}, A, B), X - (X - plain) / 1.25, atol=1e-4)
    first, last = made({"eps": 1.25, "weak": 2.0}, C, A, B), made({"weak": 2.0, "eps": 1.25}, C, A, B)
    assert torch.allclose(first, X - (X - plain) / 1.25 + 2 * (A - C), atol=1e-4)
    assert torch.allclose(last, X - (X - plain - 2 * (A - C)) / 1.25, atol=1e-4)


def test_leaning_from_the_prompt_to_the_guided_answer() -> None:
    for a, b in ((A, B), (A, A), (A, torch.zeros_like(A))):
        cfg, leap = b + 5 * (a - b), 5 * a
        roots = [t.sign() * t.abs() ** 0.5 for t in (5 * b, (leap + cfg) / 2)]
        lengths = [t.square().sum(1).sqrt().clamp(min=1e-8) for t in roots]
        alike = ((roots[0] * roots[1]).sum(1) / (lengths[0] * lengths[1])).mean((1, 2)).view(-1, 1, 1, 1)
        wanted = (2 * (alike + 1) * cfg + (4 - 2 * (alike + 1)) * leap) / 4
        assert torch.allclose(made({"lean": 1}, a, b), wanted, atol=1e-4)
    one = Changed(CFG(5.0), {"lean": 1}).combine(X[:1], 2.0, [A[:1], B[:1]], WAY)
    assert torch.allclose(one, made({"lean": 1}, A, B)[:1], atol=1e-5)  # a batch is no other guidance
    assert torch.allclose(Changed(CFG(1.0), {"lean": 1}).combine(X, 2.0, [A], WAY), A, atol=1e-6)


def advanced(**guider: Any) -> dict[str, Any]:
    k = node("SamplerCustomAdvanced", **PARTS, noise=["noise", 0], guider=["guide", 0], latent_image=["l", 0])
    return {"k": k, "guide": guider["guide"], "e": node("CLIPTextEncode", text="", clip=["m", 1])}


def near(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(a.astype(int) - b.astype(int)).max() <= 1)


def test_guiders_that_say_the_same_draw_the_same(here: Places, tmp_path: Path) -> None:
    """Through the negative prompt, two conditions are one; against the empty prompt, an empty negative says nothing."""
    dual = {"model": ["m", 0], "cond1": ["p", 0], "negative": ["n", 0], "cfg_conds": 6.0, "cfg_cond2_negative": 2.0, "style": "regular"}
    plain = picture(here, tmp_path / "0", **advanced(guide=BASE["guide"]))
    same = picture(here, tmp_path / "1", **advanced(guide=node("DualCFGGuider", **dual, cond2=["n", 0])))
    other = picture(here, tmp_path / "2", **advanced(guide=node("DualCFGGuider", **dual, cond2=["e", 0])))
    assert near(plain, same) and not near(plain, other)
    perp = {"model": ["m", 0], "positive": ["p", 0], "empty_conditioning": ["e", 0], "cfg": 6.0, "neg_scale": 1.5}
    empty = node("CFGGuider", model=["m", 0], positive=["p", 0], negative=["e", 0], cfg=6.0)
    against = [picture(here, tmp_path / f"p{i}", **advanced(guide=g)) for i, g in enumerate(
        (empty, node("PerpNegGuider", **perp, negative=["e", 0]), node("PerpNegGuider", **perp, negative=["n", 0])))]
    assert near(against[0], against[1]) and not near(against[0], against[2])


def test_changes_on_a_model_add_up_and_reach_the_sampler(here: Places, tmp_path: Path) -> None:
    way = {"seed": 11, "steps": 3, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
    k = node("KSampler", **{**SIDES, "model": ["c", 0]}, **way)
    two = {"a": node("DifferentialDiffusion", model=["m", 0]), "b": node("PerturbedAttentionGuidance", model=["a", 0], scale=2.0),
           "c": node("RescaleCFG", model=["b", 0], multiplier=0.5)}
    told = translate({**BASE, "k": k, **two}, here).graph
    given = told["k"]["inputs"]
    assert given["changes"] == ["differential=1.0", "weak=2.0"] and given["guide"] == "rescale"
    assert told[given["model"][0]]["class_type"] == "with_weak" and told["p"]["inputs"]["model"][0] != given["model"][0]
    drawn = [picture(here, tmp_path / str(i), k=k, c=node(c, model=["m", 0], **n)) for i, (c, n) in enumerate((
        ("FreeU", {"b1": 1.0, "b2": 1.0, "s1": 1.0, "s2": 1.0}), ("PerturbedAttentionGuidance", {"scale": 0.0}),
        ("PerturbedAttentionGuidance", {"scale": 8.0}), ("DifferentialDiffusion", {"strength": 1.0})))]
    assert near(drawn[0], drawn[1]) and near(drawn[0], drawn[3])  # there is no mask
    assert not near(drawn[0], drawn[2])


@pytest.mark.parametrize(("kind", "inputs", "told"), [
    ("TCFG", {}, ["tangent=1"]), ("Mahiro", {}, ["lean=1"]), ("Epsilon Scaling", {"scaling_factor": 1.25}, ["eps=1.25"]),
    ("RenormCFG", {"cfg_trunc": 100, "renorm_cfg": 0.5}, ["renorm=0.5", "until=100.0"])])
def test_changes_of_the_answers_reach_the_sampler_and_the_picture(
    here: Places, tmp_path: Path, kind: str, inputs: dict[str, Any], told: list[str],
) -> None:
    way = {"seed": 11, "steps": 3, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
    k, c = node("KSampler", **{**SIDES, "model": ["c", 0]}, **way), node(kind, model=["m", 0], **inputs)
    assert translate({**BASE, "k": k, "c": c}, here).graph["k"]["inputs"]["changes"] == told
    plain = picture(here, tmp_path / "0", k=node("KSampler", **SIDES, **way))
    assert not np.array_equal(picture(here, tmp_path / "1", k=k, c=c), plain)


def test_a_weakened_row_leaves_the_others_as_they_are(here: Places, tmp_path: Path) -> None:
    from safelight.op import load_ops
    from safelight.patches import find
    from safelight.values import NO_FILE, Patch

    model = load_ops()["model"](str(here.models.find("checkpoints", "tiny.safetensors")))
    with runtime.lease(model, device="cpu", dtype=torch.float32, holder="test") as family, torch.no_grad():
        cond = family.encode_text(["apple", "apple"])
        x, sigma = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), family.sigmas[[500, 500]]
        plain = family.predict(x, sigma, cond)
        with find("weak")(family, Patch("weak", NO_FILE)):
            marked = family.predict(x, sigma, replace(cond, extras={**cond.extras, WEAK: torch.tensor([True, False])}))
            silent = family.predict(x, sigma, replace(cond, extras={**cond.extras, NEGATIVE: torch.tensor([False])}))
    assert torch.equal(silent, plain) and torch.allclose(marked[1], plain[1], atol=1e-6)
    assert (marked[0] - plain[0]).abs().max() > 1e-4


def test_a_soft_mask_says_when_a_place_is_let_go() -> None:
    """In the training table's time, and not at once."""
    family = Plain()
    way = process(family)  # type: ignore[arg-type]
    seen: list[torch.Tensor] = []

    class Watching(Off):
        def combine(self, x: torch.Tensor, sigma: float, answers: Any, process: Any) -> torch.Tensor:
            seen.append(x.clone())
            return super().combine(x, sigma, answers, process)

    sigmas = [float(way.table[i]) for i in (900, 700, 500, 300, 100)]
    mask = torch.tensor([0.0, 0.3, 0.8, 1.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4).contiguous()
    for graded in (1.0, 0.0):
        seen.clear()
        noise = torch.zeros(1, 4, 4, 4)
        request = Request(cond=Cond(torch.ones(1, 3, 2)), latent=torch.full((1, 4, 4, 4), 9.0), sigmas=sigmas, sampler="euler",
                          guidance=Watching(), mask=mask, noise=noise, graded=graded)
        finish(drive(family, [request]))  # type: ignore[arg-type]
        moved = [sum(bool((x[..., column] != 9.0).any()) for column in range(4)) for x in seen]
        # What is left of the way is 1, 0.75, 0.5, 0.25; a place moves from the ask after its mask is reached.
        assert moved == ([0, 1, 2, 2] if graded else [0, 3, 3, 3])


def test_what_has_no_place_is_refused(here: Places) -> None:
    steered = {"c": node("ControlNetLoader", control_net_name="edges.safetensors"), "i": node("EmptyImage", width=64, height=64, color=0,
               batch_size=1), "x": node("ControlNetApply", conditioning=["e", 0], control_net=["c", 0], image=["i", 0], strength=1.0)}
    dual = node("DualCFGGuider", model=["m", 0], cond1=["p", 0], cond2=["x", 0], negative=["n", 0], cfg_conds=6.0, cfg_cond2_negative=2.0,
                style="nested")
    with pytest.raises(PromptError, match="carries a ControlNet"):
        translate({**BASE, **advanced(guide=dual), **steered}, here)


def test_a_prompt_keeps_its_parts_beside_the_third() -> None:
    parts = replace(PROMPT, others=(NEGATIVE_PROMPT,))
    out = guide_by(parts, OTHER, how="nested", scale=3.0)
    assert [p.region.guide for p in out.parts] == ["", "", "nested=3.0"] and out.key != parts.key
