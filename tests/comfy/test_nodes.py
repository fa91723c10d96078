"""Node classes whose values are known late, whose settings move to the sampler, and literals; and the ops that came with them."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from safelight import comfy, runtime
from safelight.comfy import NODES, Places, PromptError, object_info, translate
from safelight.comfy.info import class_info
from safelight.computing import computing
from safelight.engine import finish
from safelight.folders import roots
from safelight.op import load_ops
from safelight.pictures import read
from safelight.store import Store
from safelight.values import Image, Latent, Mask, Sigmas
from tests import tiny
from tests.comfy.prompts import node

OPS = load_ops()


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Places]:
    tiny.sd1(tmp_path / "models" / "diffusers" / "tiny")
    with computing("cpu", "float32"):
        yield Places(roots(tmp_path / "models"), tmp_path / "input", tmp_path / "out")
    runtime.release()


def picture(high: int = 6, wide: int = 9, n: int = 1, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).random((n, high, wide, 3), dtype=np.float32))


def sampler(**changes: Any) -> dict[str, Any]:
    told = {"seed": 1, "steps": 2, "cfg": 6.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "1": node("DiffusersLoader", model_path="tiny"), "2": node("CLIPTextEncode", clip=["1", 1], text="night city"),
        "3": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "4": node("KSampler", **{"model": ["1", 0], "positive": ["2", 0], "negative": ["2", 0], "latent_image": ["3", 0]} | told | changes),
        "5": node("VAEDecode", samples=["4", 0], vae=["1", 2]), "6": node("SaveImage", images=["5", 0], filename_prefix="x"),
    }


def test_what_is_known_only_later_stops_the_translation_and_goes_on(here: Places, tmp_path: Path) -> None:
    prompt = {
        "1": node("EmptyImage", width=40, height=24, batch_size=3, color=0), "2": node("GetImageSize", image=["1", 0]),
        "3": node("StringReplace", string="a b", find="b", replace="c"),
        "4": node("EmptyImage", width=["2", 1], height=["2", 0], batch_size=["2", 2], color=255),
        "5": node("SaveImage", images=["4", 0], filename_prefix="turned"), "6": node("PreviewAny", source=["2", 0]),
        "7": node("PreviewAny", source=["4", 0]), "8": node("PreviewAny", source=["3", 0]),
    }
    waiting = translate(prompt, here)
    assert waiting.first == "2" and waiting.targets == ["2"] and not waiting.saved
    seen: list[Any] = []
    files = finish(comfy.run(prompt, here, store=Store(tmp_path / "store"), look=seen.append))
    assert "4" not in seen[0] and seen[1]["4"]["inputs"]["width"] == 24 and len(seen) == 2
    assert [read(f).shape for f in files["5"]] == [(40, 24, 3)] * 3
    assert [files[k][0].read_text() for k in "678"] == ["40", "IMAGE 24 x 40, 3", "a c"]
    assert files["6"][0].parent.name == "temp"


def test_settings_on_a_model_move_to_the_sampler(here: Places, tmp_path: Path) -> None:
    prompt = sampler(model=["8", 0]) | {
        "7": node("RescaleCFG", model=["1", 0], multiplier=0.4), "8": node("FreeU", model=["7", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2),
    }
    told = translate(prompt, here).graph
    assert told["4"]["inputs"]["guide"] == "rescale" and told["4"]["inputs"]["rescale"] == 0.4
    plain = translate(sampler(), here).graph["4"]["inputs"]
    assert "guide" not in plain
    prompt["9"] = node("generate", model=["7", 0], prompt="x")
    with pytest.raises(PromptError, match=r"node 9 \(generate\).*RescaleCFG"):
        translate(prompt, here)


def test_another_prediction_is_another_model_below_the_same_patches(here: Places, tmp_path: Path) -> None:
    prompt = sampler(model=["8", 0]) | {
        "7": node("FreeU", model=["1", 0], b1=1.1, b2=1.2, s1=0.9, s2=0.2),
        "8": node("ModelSamplingDiscrete", model=["7", 0], sampling="v_prediction", zsnr=True),
    }
    told = translate(prompt, here).graph
    patched = told[told["4"]["inputs"]["model"][0]]
    assert patched["class_type"] == "with_freeu" and told[patched["inputs"]["model"][0]]["inputs"]["prediction"] == "v-zsnr"
    assert told[told["2"]["inputs"]["model"][0]]["inputs"].get("prediction") is None
    pictures = [read(finish(comfy.run(p, here, store=Store(tmp_path / "store")))["6"][0]).astype(int) for p in (prompt, sampler())]
    assert np.abs(pictures[0] - pictures[1]).mean() > 1
    prompt["8"]["inputs"]["sampling"] = "lcm"
    with pytest.raises(PromptError, match="'lcm'"):
        translate(prompt, here)


WORDS = [
    ("StringSubstring", {"string": "abcdef", "start": 1, "end": -1}, "bcde"), ("StringLength", {"string": "abc"}, 3),
    ("CaseConverter", {"string": "a bC", "mode": "Title Case"}, "A Bc"), ("StringTrim", {"string": " a ", "mode": "Left"}, "a "),
    ("StringContains", {"string": "Abc", "substring": "bC", "case_sensitive": False}, True),
    ("StringCompare", {"string_a": "abc", "string_b": "bc", "mode": "Ends With", "case_sensitive": True}, True),
    ("RegexReplace", {"string": "a1b2", "regex_pattern": "[0-9]", "replace": "-", "count": 1}, "a-b2"),
]
FLAGS = {"case_insensitive": True, "multiline": False, "dotall": False}
WORDS += [("RegexMatch", {"string": "x", "regex_pattern": "X", **FLAGS}, True)]
WORDS += [
    ("RegexExtract", {"string": "a12 b3", "regex_pattern": "([a-z])([0-9]+)", "mode": mode, "group_index": 2, **FLAGS}, said)
    for mode, said in (("First Match", "a12"), ("All Matches", "a\nb"), ("First Group", "12"), ("All Groups", "12\n3"))
]


@pytest.mark.parametrize(("name", "given", "said"), WORDS)
def test_texts(here: Places, tmp_path: Path, name: str, given: dict[str, Any], said: Any) -> None:
    prompt = {"1": node(name, **given), "2": node("PreviewAny", source=["1", 0])}
    assert finish(comfy.run(prompt, here, store=Store(tmp_path / "store")))["2"][0].read_text() == str(said)


def test_a_broken_or_endless_pattern_is_told(here: Places) -> None:
    for pattern, why in (("(", "unterminated"), ("x" * 20_000, "at most")):
        prompt = {"1": node("RegexMatch", string="x", regex_pattern=pattern, **FLAGS), "2": node("PreviewAny", source=["1", 0])}
        with pytest.raises(PromptError, match=rf"node 1 \(RegexMatch\).*{why}"):
            translate(prompt, here)


def test_object_info_has_every_class_and_op(here: Places) -> None:
    info = object_info(here)
    assert set(info) == {*NODES, *OPS} and class_info("train_lora", here) == {"train_lora": info["train_lora"]}
    assert class_info("KSampler", here) == {"KSampler": info["KSampler"]} and class_info("Unheard", here) == {}
    train = info["train_lora"]["input"]
    assert train["required"]["lr"][1]["step"] < 1e-3 and train["required"]["lr"][1]["round"] is False
    assert train["optional"]["alpha"][0] == "STRING" and info["with_lora"]["output"] == ["MODEL", "CLIP", "VAE"]
    assert "images_2" in info["join_images"]["input"]["optional"] and info["report"]["output_node"]
    assert info["SplitSigmas"]["output_name"] == ["high_sigmas", "low_sigmas"] and info["ControlNetApply"]["deprecated"]
    assert info["CLIPTextEncode"]["input"]["required"]["text"][1]["dynamicPrompts"] and info["RebatchImages"]["output_is_list"] == [True]


def test_latents_cut_and_changed() -> None:
    x = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    latent = Latent(x)
    assert torch.equal(OPS["cut_latent"](latent, along="x", start=-3, count=9).samples, x[..., -3:])
    assert torch.equal(OPS["cut_latent"](latent, along="y", start=20).samples, x[..., -1:, :])
    toned = OPS["tonemap_latent"](latent, multiplier=0.5).samples
    turned = torch.nn.functional.cosine_similarity(toned, x, dim=1)
    assert torch.allclose(turned, torch.ones_like(turned), atol=1e-5) and (toned.norm(dim=1) < x.norm(dim=1)).all()
    assert torch.allclose(OPS["sharpen_latent"](latent, radius=2, amount=0.0).samples, x, atol=1e-5)
    with pytest.raises(ValueError, match="less than either side"):
        OPS["sharpen_latent"](latent, radius=9)


def test_levels_between_levels() -> None:
    levels = Sigmas((14.0, 6.0, 2.0, 0.0))
    assert OPS["extend_sigmas"](levels, steps=2, start=10.0, end=2.0).levels == (14.0, 6.0, 4.0, 2.0, 1.0, 0.0)
    assert OPS["extend_sigmas"](levels, steps=2, end=20.0).levels == levels.levels


def test_layers_over_each_other() -> None:
    """Over is the usual formula; what is solid covers; the parts of XOR add up."""
    a, b = picture(seed=1), picture(seed=2)
    solid, half = Mask(np.zeros((1, 6, 9), np.float32)), Mask(np.full((1, 6, 9), 0.5, np.float32))
    over = OPS["compose_images"](a, b, mask=solid, over_mask=half, how="SRC_OVER")
    assert np.allclose(over.pixels, (a.pixels + b.pixels) / 2, atol=1e-6)
    assert np.allclose(OPS["compose_images"](a, b, mask=half, over_mask=solid, how="SRC").pixels, b.pixels, atol=1e-6)
    assert np.allclose(OPS["compose_masks"](a, b, mask=half, over_mask=half, how="XOR").values, 0.5)
    assert np.allclose(OPS["compose_masks"](a, b, mask=solid, over_mask=half, how="SRC_OVER").values, 0)


def test_pictures_side_by_side_and_in_frames() -> None:
    a, b = picture(6, 9), picture(12, 6, n=2, seed=3)
    side = OPS["stitch_images"](a, b, side="left", gap=3, colour="red").pixels
    assert side.shape == (2, 6, 3 + 4 + 9, 3) and np.array_equal(side[1, :, 7:], a.pixels[0]) and (side[:, :, 3:7] == [1, 0, 0]).all()
    below = OPS["stitch_images"](a, b, side="down", fit=False).pixels
    assert below.shape == (2, 18, 9, 3) and (below[:, 6:, 0] == 1).all() and np.array_equal(below[:, 6:, 1:7], b.pixels)
    framed = OPS["frame_image"](a, width=18, height=20, colour="black", method="nearest-exact").pixels
    assert framed.shape == (1, 20, 18, 3) and not framed[:, :4].any() and not framed[:, 16:].any()
    assert np.array_equal(framed[:, 4:16:2, ::2], a.pixels)


def test_grain_and_shapes() -> None:
    grey = Image(np.full((1, 32, 32, 3), 0.5, np.float32))
    noisy = OPS["add_grain"](grey, seed=1, strength=0.1).pixels
    assert abs(float(noisy.std()) - 0.1) < 0.005 and np.array_equal(noisy, OPS["add_grain"](grey, seed=1, strength=0.1).pixels)
    dot = Image(np.zeros((1, 9, 9, 3), np.float32))
    dot.pixels[0, 4, 4] = 1
    assert OPS["morph_image"](dot, how="dilate", size=3).pixels.sum() == 27 and not OPS["morph_image"](dot, how="open").pixels.any()
    assert np.array_equal(OPS["morph_image"](dot, how="top_hat").pixels, dot.pixels)
    assert OPS["morph_image"](dot, how="close").pixels.sum() == 3 and OPS["morph_image"](dot, how="gradient").pixels.sum() == 27
