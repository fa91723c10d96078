"""Prompts run to pictures, and these are the pictures that the same calls from Python make."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import safelight
from safelight import comfy, runtime
from safelight.codec import ORIGIN
from safelight.comfy import Places
from safelight.computing import computing
from safelight.embed import texts_of
from safelight.engine import finish
from safelight.events import Done
from safelight.files import why
from safelight.op import load_ops
from safelight.pictures import read
from safelight.store import Store
from safelight.values import Image
from tests.comfy.prompts import NAMES, ROOT, STEPS, node, places, shipped

OPS = load_ops()
SAMPLING = {"seed": 156680208700286, "steps": STEPS, "scale": 7.0, "sampler": "euler", "schedule": "normal"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    with computing("cpu", "float32"):
        yield


def drawn(prompt: dict[str, Any], here: Places, tmp_path: Path) -> dict[str, list[Path]]:
    """A prompt's files by node, made in a store of its own: nothing comes from the Python calls' results."""
    return finish(comfy.run(prompt, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))


def equal(files: list[Path], image: Image) -> bool:
    return len(files) == len(image) and all(np.array_equal(read(f), p) for f, p in zip(files, image.bytes8(), strict=True))


@pytest.mark.parametrize("name", sorted(p.stem for p in ROOT.glob("*.json")))
def test_every_shipped_prompt_runs(here: Places, tmp_path: Path, name: str) -> None:
    prompt = shipped(name)
    for entry in prompt.values():
        if "stop_at_clip_layer" in entry["inputs"]:  # these text encoders have two layers
            entry["inputs"]["stop_at_clip_layer"] = max(entry["inputs"]["stop_at_clip_layer"], -2)
    files = drawn(prompt, here, tmp_path)
    assert set(files) == {k for k, e in prompt.items() if e["class_type"] == "SaveImage"}
    for pictures in files.values():
        assert pictures and all(float(read(f).std()) > 2 for f in pictures)


class Direct:
    """The calls that a prompt stands for."""

    def __init__(self, here: Places) -> None:
        self.model = OPS["model"](str(here.models.find("checkpoints", NAMES["checkpoint"])))
        self.empty = OPS["empty_latent"](width=64, height=64)
        self.file = here.input / NAMES["picture"]
        self.here = here

    def text(self, words: str, model: Any = None, **more: Any) -> Any:
        return OPS["encode_text"](model or self.model, words, **more)

    @property
    def both(self) -> tuple[Any, Any]:
        prompt = shipped("text_to_image")
        return self.text(prompt["2"]["inputs"]["text"]), self.text(prompt["3"]["inputs"]["text"], negative=True)

    def draw(self, positive: Any, negative: Any, latent: Any = None, **changes: Any) -> Any:
        model = changes.pop("model", self.model)
        return OPS["sample"](model, positive, negative=negative, latent=latent or self.empty, **{**SAMPLING, **changes})

    def pixels(self) -> Any:
        return OPS["load_image"](self.file, raw=True)

    def mask(self) -> Any:
        return OPS["load_mask"](self.file, channel="transparency")

    def lora(self, name: str) -> Any:
        return OPS["load_lora"](self.here.models.find("loras", NAMES[name]))

    def decoded(self, latent: Any) -> Image:
        image: Image = OPS["decode"](self.model, latent)
        return image


def text_to_image(d: Direct) -> Image:
    return d.decoded(d.draw(*d.both))


def image_to_image(d: Direct) -> Image:
    start = OPS["encode"](d.model, d.pixels())
    return d.decoded(d.draw(*d.both, start, denoise=0.6, sampler="dpmpp_2m", schedule="karras"))


def noise_mask(d: Direct) -> Image:
    start = OPS["set_noise_mask"](OPS["encode"](d.model, d.pixels()), OPS["grow_mask"](d.mask(), by=4))
    return d.decoded(d.draw(*d.both, start, denoise=0.8))


def two_loras(d: Direct) -> Image:
    model = OPS["with_lora"](d.model, d.lora("lora"), strength=0.8, text_strength=0.6)
    model = OPS["with_lora"](model, d.lora("lora2"), strength=-0.4, text_strength=1.0)
    prompt = shipped("two_loras")
    positive, negative = (d.text(prompt[i]["inputs"]["text"], model, negative=i == "3") for i in "23")
    return d.decoded(d.draw(positive, negative, model=model))


def two_stage(d: Direct) -> Image:
    prompt = shipped("two_stage")
    positive, negative = (d.text(prompt[i]["inputs"]["text"]) for i in "23")
    way = {"seed": 7, "steps": 10, "schedule": "karras"}
    first = d.draw(positive, negative, **way, sampler="dpmpp_2m", end_at_step=6, leftover_noise=True)
    return d.decoded(d.draw(negative, positive, first, **way, scale=5.0, add_noise=False, start_at_step=6))


def hires(d: Direct) -> Image:
    larger = OPS["scale_latent"](d.draw(*d.both), by=1.5, method="bislerp")
    return d.decoded(d.draw(*d.both, larger, seed=4, denoise=0.55))


def areas(d: Direct) -> Image:
    positive, negative = d.both
    lake = OPS["set_area"](d.text("a (blue) lake"), width=64, height=64, x=16, strength=1.4)
    hills = OPS["set_area"](d.text("green hills"), width=0.5, height=0.4, x=0.5, y=0.6, shares=True, strength=0.8)
    return d.decoded(d.draw(OPS["combine_conds"]([positive, lake, hills]), negative))


def blends_and_ranges(d: Direct) -> Image:
    positive, negative = d.both
    old = d.text("an old photograph of a (harbour:0.7)")
    first = OPS["set_range"](OPS["average_conds"](positive, old, strength=0.35), start=0.0, end=0.45)
    then = OPS["set_range"](OPS["concat_conds"](old, positive), start=0.45, end=1.0)
    return d.decoded(d.draw(OPS["combine_conds"]([first, then]), OPS["scale_cond"](negative, by=0.0)))


def long_and_nested(d: Direct) -> Image:
    prompt = shipped("long_and_nested")
    return d.decoded(d.draw(d.text(prompt["2"]["inputs"]["text"]), d.text(prompt["3"]["inputs"]["text"], negative=True)))


def batch(d: Direct) -> Image:
    three = OPS["empty_latent"](width=64, height=64, count=3)
    return d.decoded(d.draw(*d.both, three))


CALLS: list[Callable[[Direct], Image]] = [
    text_to_image, image_to_image, noise_mask, two_loras, two_stage, areas, blends_and_ranges, long_and_nested, batch, hires,
]


@pytest.mark.parametrize("calls", CALLS, ids=[f.__name__ for f in CALLS])
def test_a_prompt_is_the_calls_it_stands_for(here: Places, tmp_path: Path, calls: Callable[[Direct], Image]) -> None:
    prompt = shipped(calls.__name__)
    if calls is hires:  # the second half draws from a picture; its own test is image_to_image
        prompt = {k: e for k, e in prompt.items() if int(k) < 10}
    files = drawn(prompt, here, tmp_path)
    assert equal(files["7"], calls(Direct(here)))


def test_clip_skip_reads_earlier_layers(here: Places, tmp_path: Path) -> None:
    prompt = shipped("clip_skip")
    prompt["9"]["inputs"]["stop_at_clip_layer"] = -1
    files = drawn(prompt, here, tmp_path)
    d = Direct(here)
    positive, negative = (d.text(prompt[i]["inputs"]["text"], skip=s, negative=i == "3") for i, s in (("2", 1), ("3", 0)))
    assert equal(files["7"], d.decoded(d.draw(positive, negative)))
    assert not equal(files["7"], text_to_image(d))


def test_a_batch_has_noise_for_each_and_a_part_of_it_the_same(here: Places, tmp_path: Path) -> None:
    prompt = shipped("batch")
    prompt["9"]["inputs"]["sampler_name"] = "euler"
    files = drawn(prompt, here, tmp_path)
    whole, part = ([read(f).astype(int) for f in files[k]] for k in ("7", "11"))
    assert len(whole) == 3 and len(part) == 2
    assert np.abs(whole[0] - whole[1]).mean() > 5
    assert max(np.abs(a - b).max() for a, b in zip(whole[1:], part, strict=True)) <= 1


def test_controlnets_steer_from_both_sides_of_the_guidance(here: Places, tmp_path: Path) -> None:
    prompt = shipped("controlnet_old")
    d = Direct(here)
    control = OPS["load_control"](here.models.find("controlnet", NAMES["controlnet"]))
    model = OPS["with_control"](d.model, control, image=d.pixels(), strength=1.0)
    files = drawn(prompt, here, tmp_path)
    assert equal(files["7"], d.decoded(d.draw(*d.both, model=model)))
    off = drawn(prompt | {"10": node("ControlNetApply", **{**prompt["10"]["inputs"], "strength": 0.0})}, here, tmp_path / "off")
    assert equal(off["7"], text_to_image(d))


def test_an_embedding_in_a_prompt_is_found_and_an_unknown_one_is_left_out(
    here: Places, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def of(text: str) -> list[Path]:
        prompt = shipped("text_to_image")
        prompt["2"]["inputs"]["text"] = text
        return drawn(prompt, here, tmp_path / str(len(text)))["7"]

    d = Direct(here)
    read_file = OPS["load_embedding"](here.models.find("embeddings", "mood"), name="mood")
    taught = OPS["with_embedding"](d.model, read_file)
    positive = d.text("a (embedding:mood:1.2) cat", taught)
    assert equal(of("a (embedding:mood:1.2) cat"), d.decoded(d.draw(positive, d.both[1])))
    assert not caplog.records
    assert equal(of("a cat embedding:moon"), d.decoded(d.draw(d.text("a cat "), d.both[1])))
    assert "moon" in caplog.text


def test_files_are_named_and_described_as_comfyui_does(here: Places, tmp_path: Path) -> None:
    prompt = shipped("text_to_image")
    prompt["7"]["inputs"]["filename_prefix"] = "set/%width%x%height%"
    first, second = drawn(prompt, here, tmp_path), drawn(prompt, here, tmp_path)
    assert [p["7"][0].relative_to(tmp_path / "out").as_posix() for p in (first, second)] == ["set/64x64_00001_.png", "set/64x64_00002_.png"]
    told = texts_of(first["7"][0])
    assert json.loads(told["prompt"]) == prompt
    assert comfy.is_prompt(json.loads(told["prompt"])) and "workflow" not in told
    assert [n["op"] for n in why(first["7"][0]).data["nodes"].values()][-1] == "decode"
    with pytest.raises(ValueError, match="leads out of"):
        drawn(prompt | {"7": node("SaveImage", images=["6", 0], filename_prefix="../x")}, here, tmp_path)


def test_a_picture_in_a_chosen_precision_is_made_again_in_it(here: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    with computing("cpu", "bfloat16"):
        files = drawn(shipped("text_to_image"), here, tmp_path)
        exact = drawn(shipped("text_to_image"), here, tmp_path)["7"][0]
    assert why(exact).data["versions"]["computing"] == "cpu bfloat16"
    made = safelight.reproduce(files["7"][0])
    assert made.largest == 0 and not made.versions
    with computing("cpu", "float32"):
        other = drawn(shipped("text_to_image"), here, tmp_path)["7"][0]
    assert not np.array_equal(read(other), read(exact)), "kept results of one precision are not taken for another's"


def test_events_name_comfyuis_nodes(here: Places, tmp_path: Path) -> None:
    prompt = shipped("two_loras")
    work = comfy.run(prompt, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store"))
    seen = list(work)
    assert {e.node for e in seen} <= set(prompt)
    assert [e.node for e in seen if isinstance(e, Done) and e.op == "with_lora"] == ["8", "9"]


def test_ops_of_ours_stand_among_comfyuis_nodes(here: Places, tmp_path: Path) -> None:
    prompt = shipped("text_to_image")
    prompt["1"] = node("model", name=str(here.models.find("checkpoints", NAMES["checkpoint"])))
    for i, slot in (("2", "clip"), ("3", "clip"), ("6", "vae")):
        prompt[i]["inputs"][slot] = ["1", 0]
    prompt["8"] = node("blur_image", image=["6", 0], radius=2)
    prompt["9"] = node("SaveImage", images=["8", 0], filename_prefix="soft")
    files = drawn(prompt, here, tmp_path)
    plain = text_to_image(Direct(here))
    assert equal(files["7"], plain) and equal(files["9"], OPS["blur_image"](plain, radius=2))


def test_what_python_makes_knows_its_recipe(here: Places) -> None:
    """The calls compared with are the real ones, made here and not by a prompt."""
    assert text_to_image(Direct(here)).info[0][ORIGIN][0]
