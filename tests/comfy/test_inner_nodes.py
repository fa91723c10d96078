"""ComfyUI's nodes that change how a network works inside, or how its answers become one: what they become here."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import safelight
from safelight import runtime
from safelight.comfy import NODES, Places, PromptError, translate
from safelight.families.noise_levels import sigma_table
from tests import tiny
from tests.comfy.prompts import node, places
from tests.comfy.test_custom import BASE, SIDES, picture

WAY = {"seed": 11, "steps": 3, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0}
K = node("KSampler", **{**SIDES, "model": ["c", 0]}, **WAY)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


@pytest.mark.parametrize(("kind", "inputs", "told"), [
    ("CFGZeroStar", {}, ["zero=1"]), ("CFGNorm", {"strength": 0.9}, ["norm=0.9"]),
    ("APG", {"eta": 0.5, "norm_threshold": 5.0, "momentum": -0.5}, ["apg=0.5", "apg_norm=5.0", "apg_momentum=-0.5"]),
    ("FreSca", {"scale_low": 0.5, "scale_high": 1.5, "freq_cutoff": 1}, ["high=1.5", "low=0.5", "cutoff=1"]),
    ("LatentApplyOperationCFG", {"operation": ["o", 0]}, ["sharpen=0.5", "radius=2", "bell=1.0"]),
    ("SelfAttentionGuidance", {"scale": 0.7, "blur_sigma": 1.5}, ["blur=0.7"])])
def test_changes_reach_the_sampler_and_the_picture(
    here: Places, tmp_path: Path, kind: str, inputs: dict[str, Any], told: list[str],
) -> None:
    o = node("LatentOperationSharpen", sharpen_radius=2, sigma=1.0, alpha=0.5)
    c = node(kind, model=["m", 0], **inputs)
    assert translate({**BASE, "k": K, "c": c, "o": o}, here).graph["k"]["inputs"]["changes"] == told
    plain = picture(here, tmp_path / "0", k=node("KSampler", **SIDES, **WAY))
    assert (picture(here, tmp_path / "1", k=K, c=c, o=o) != plain).any()


def usual(kind: str, **given: Any) -> dict[str, Any]:
    """A node with its defaults."""
    return node(kind, **{"model": ["m", 0], **{i.name: i.default for i in NODES[kind].inputs if i.widget}, **given})


def graph(here: Places, **c: Any) -> Any:
    return translate({**BASE, "k": K, **c}, here).graph


def test_layers_are_named_in_a_text_and_none_is_none(here: Places) -> None:
    span = {"start_percent": 0.1, "end_percent": 0.5}
    double = {"double_layers": "7, 8 and 9", "single_layers": ""}
    some = graph(here, c=node("SkipLayerGuidanceDiT", model=["m", 0], **double, scale=2.0, rescaling_scale=0.3, **span))
    assert some["c"]["class_type"] == "with_weak" and some["c"]["inputs"]["layers"] == [7, 8, 9]
    assert some["k"]["inputs"]["changes"] == ["skip=2.0", "skip_from=0.1", "skip_to=0.5", "skip_rescale=0.3"]
    none = graph(here, c=node("SkipLayerGuidanceSD3", model=["m", 0], layers="", scale=2.0, **span))
    assert "c" not in none and "changes" not in none["k"]["inputs"]
    simple = graph(here, c=node("SkipLayerGuidanceDiTSimple", model=["m", 0], **double, **span))
    given = simple["c"]["inputs"]
    assert (given["side"], given["start"], given["end"]) == ("negative", 0.1, 0.5) and not simple["k"]["inputs"].get("changes")


def test_a_change_twice_is_refused(here: Places) -> None:
    two = {"a": usual("APG"), "c": usual("APG", model=["a", 0])}
    with pytest.raises(PromptError, match="has the change 'apg' already"):
        graph(here, **two)


@pytest.mark.parametrize(("kind", "inputs", "how", "told"), [
    ("UNetSelfAttentionMultiply", {"q": 1.5, "out": 0.5}, "scaled", ["q=1.5", "k=1.0", "v=1.0", "out=0.5", "where=self"]),
    ("UNetTemporalAttentionMultiply", {"cross_structural": 2.0}, "scaled", ["out=2.0", "where=cross"]),
    ("HyperTile", {"tile_size": 64, "scale_depth": True}, "tiled", ["tile=64", "swap=2", "depth=0", "grow=1"]),
    ("TomePatchModel", {"ratio": 0.5}, "merged", ["ratio=0.5"])])
def test_tweaks_by_their_names(here: Places, kind: str, inputs: dict[str, Any], how: str, told: list[str]) -> None:
    made = graph(here, c=usual(kind, **inputs))
    last = made[made["k"]["inputs"]["model"][0]]
    assert (last["class_type"], last["inputs"]["how"], last["inputs"]["options"]) == ("with_tweak", how, told)


def test_a_text_encoders_attention_changes_the_picture(here: Places, tmp_path: Path) -> None:
    plain = picture(here, tmp_path / "0", k=node("KSampler", **SIDES, **WAY))
    clip = node("CLIPAttentionMultiply", clip=["m", 1], q=1.0, k=1.0, v=3.0, out=1.0)
    prompt = node("CLIPTextEncode", **{**BASE["p"]["inputs"], "clip": ["t", 0]})
    other = picture(here, tmp_path / "1", k=node("KSampler", **SIDES, **WAY), t=clip, p=prompt)
    assert (other != plain).any()


def test_a_flow_is_shifted(here: Places, tmp_path: Path) -> None:
    path = str(tiny.sd3(tmp_path / "sd3"))
    model = safelight.model(path, shift=6.0)
    assert model.key != safelight.model(path).key
    with runtime.lease(model, device="cpu", dtype=torch.float32, holder="test") as family:
        assert family.prediction == "flow"
        assert torch.equal(family.sigmas, sigma_table({"_class_name": "FlowMatch", "shift": 6.0}).float())
    made = graph(here, c=node("ModelSamplingFlux", model=["m", 0], max_shift=1.15, base_shift=0.5, width=1024, height=1024))
    assert made[made["k"]["inputs"]["model"][0]]["inputs"]["shift"] == pytest.approx(3.1582, abs=1e-4)
    assert graph(here, c=usual("ModelSamplingAuraFlow"))["c.base"]["inputs"]["shift"] == 1.73
