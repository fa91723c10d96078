"""Custom sampling's nodes: the same pictures as KSampler makes, and what their settings become."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight import comfy, runtime
from safelight.comfy import Places, PromptError
from safelight.computing import computing
from safelight.engine import finish
from safelight.pictures import read
from safelight.store import Store
from tests.comfy.prompts import NAMES, node, places


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


BASE = {
    "m": node("CheckpointLoaderSimple", ckpt_name=NAMES["checkpoint"]),
    "p": node("CLIPTextEncode", text="a (red:1.3) apple", clip=["m", 1]),
    "n": node("CLIPTextEncode", text="blurry", clip=["m", 1]),
    "l": node("EmptyLatentImage", width=64, height=64, batch_size=1),
    "v": node("VAEDecode", samples=["k", 0], vae=["m", 2]),
    "s": node("SaveImage", images=["v", 0], filename_prefix="x"),
    "levels": node("BasicScheduler", model=["m", 0], scheduler="karras", steps=3, denoise=1.0),
    "how": node("KSamplerSelect", sampler_name="dpmpp_2m_sde_gpu"),
    "noise": node("RandomNoise", noise_seed=11),
    "guide": node("CFGGuider", model=["m", 0], positive=["p", 0], negative=["n", 0], cfg=6.0),
}
SIDES: dict[str, Any] = {"model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["l", 0], "cfg": 6.0}
PARTS: dict[str, Any] = {"sampler": ["how", 0], "sigmas": ["levels", 0]}


def picture(here: Places, tmp_path: Path, **nodes: Any) -> np.ndarray[Any, Any]:
    at = Places(here.models, here.input, tmp_path / "out")
    with computing("cpu", "float32"):
        files = finish(comfy.run({**BASE, **nodes}, at, store=Store(tmp_path / "store")))
    return np.asarray(read(files["s"][0]))


def test_in_parts_it_is_the_picture_of_ksampler(here: Places, tmp_path: Path) -> None:
    way = {"seed": 11, "steps": 3, "sampler_name": "dpmpp_2m_sde", "scheduler": "karras", "denoise": 1.0}
    whole = picture(here, tmp_path / "0", k=node("KSampler", **SIDES, **way))
    custom = picture(here, tmp_path / "1", k=node("SamplerCustom", **SIDES, **PARTS, add_noise=True, noise_seed=11))
    parts = node("SamplerCustomAdvanced", **PARTS, noise=["noise", 0], guider=["guide", 0], latent_image=["l", 0])
    assert np.array_equal(whole, custom) and np.array_equal(whole, picture(here, tmp_path / "2", k=parts))
    own = node("SamplerDPMPP_2M_SDE", solver_type="midpoint", eta=1.0, s_noise=1.0, noise_device="cpu")
    assert np.array_equal(whole, picture(here, tmp_path / "3", k=parts, how=own))
    own["inputs"]["eta"] = 0.3
    assert not np.array_equal(whole, picture(here, tmp_path / "4", k=parts, how=own))


def solved(here: Places, **how: Any) -> dict[str, Any]:
    k = node("SamplerCustom", **SIDES, **PARTS, add_noise=True, noise_seed=11)
    found: dict[str, Any] = comfy.translate({**BASE, "k": k, "how": node(**how)}, here).graph["k"]["inputs"]
    return found


def test_settings_become_options_where_they_are_not_the_usual_ones(here: Places) -> None:
    sde = {"eta": 1.0, "s_noise": 1.0, "noise_device": "gpu"}
    assert solved(here, class_type="SamplerDPMPP_3M_SDE", **sde)["options"] == []
    heun = solved(here, class_type="SamplerDPMPP_2M_SDE", solver_type="heun", **sde | {"eta": 0.5})
    assert heun["sampler"] == "dpmpp_2m_sde_heun" and heun["options"] == ["eta=0.5"]
    er = solved(here, class_type="SamplerER_SDE", solver_type="Reverse-time SDE", max_stage=2, eta=0.5, s_noise=1.0)
    assert er["options"] == ["stages=2", "power=1.5", "s_noise=1.0"]


def test_no_negative_means_no_guidance(here: Places) -> None:
    basic = node("BasicGuider", model=["m", 0], conditioning=["p", 0])
    k = node("SamplerCustomAdvanced", **PARTS, noise=["quiet", 0], guider=["guide", 0], latent_image=["l", 0])
    given = comfy.translate({**BASE, "k": k, "guide": basic, "quiet": node("DisableNoise")}, here).graph["k"]["inputs"]
    assert given["guide"] == "off" and "negative" not in given and given["add_noise"] is False and given["seed"] == 0


def test_a_sampler_goes_to_no_op_of_ours(here: Places) -> None:
    ours = {"class_type": "sample", "inputs": {"model": ["m", 0], "positive": ["how", 0], "latent": ["l", 0]}}
    with pytest.raises(PromptError, match="a solver goes to ComfyUI's own nodes only"):
        comfy.translate({**BASE, "k": ours}, here)
    quiet = node("AddNoise", model=["m", 0], noise=["quiet", 0], sigmas=["levels", 0], latent_image=["l", 0])
    with pytest.raises(PromptError, match="DisableNoise has none to add"):
        comfy.translate({**BASE, "k": quiet, "quiet": node("DisableNoise")}, here)
