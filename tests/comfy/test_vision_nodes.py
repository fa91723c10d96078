"""Pictures as conditions in prompts: what the nodes become, and that what they are shown is in the picture."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import CLIPTextModel

from safelight import comfy, runtime
from safelight.comfy import NODES, Places
from safelight.computing import computing
from safelight.engine import finish
from safelight.folders import roots
from safelight.pictures import read
from safelight.store import Store
from tests import checkpoints
from tests.comfy.prompts import _by_eight, _picture, node
from tests.patching import a_vision
from tests.unit.test_vision import an_adapter, open_names

LABEL = {"class_embedding.linear_1": "label_emb.0.0", "class_embedding.linear_2": "label_emb.0.2"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """An unCLIP checkpoint with its tower, one that changes pictures, a tower and a style model."""
    root = tmp_path_factory.mktemp("comfy")
    models = root / "models"
    tower = a_vision(models / "clip_vision", wide=768) / "model.safetensors"
    (models / "clip_vision" / "config.json").unlink()
    layout = _by_eight(checkpoints.sd2())
    told = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * 768}
    text = {"text_encoder": (CLIPTextModel, checkpoints._text(64, 2, "gelu", words=checkpoints.WORDS, pad=0))}
    layout = replace(layout, unet={**layout.unet, **told}, text=text)
    named = checkpoints.single(layout, checkpoints.networks(layout))
    for old, new in LABEL.items():
        named = {n.replace(old, new): t for n, t in named.items()}
    seeing = {f"embedder.model.visual.{n}": t for n, t in open_names(load_file(tower)).items()}
    checkpoints.save(models / "checkpoints" / "unclip.safetensors", named | seeing)
    changes = _by_eight(checkpoints.sd1("", words=checkpoints.WORDS, in_channels=8))
    checkpoints.checkpoint(models / "checkpoints" / "changes.safetensors", changes, checkpoints.networks(changes))
    an_adapter(models / "style_models" / "style.safetensors")
    _picture(root / "input" / "hole.png")
    yield Places(roots(models), root / "input", root / "out")
    runtime.release()


def prompt(loader: str, name: str, **nodes: Any) -> dict[str, Any]:
    return {
        "m": node(loader, ckpt_name=f"{name}.safetensors"), "i": node("LoadImage", image="hole.png"),
        "p": node("CLIPTextEncode", text="make it winter", clip=["m", 1]), "n": node("CLIPTextEncode", text="", clip=["m", 1]),
        "l": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "v": node("VAEDecode", samples=["k", 0], vae=["m", 2]), "s": node("SaveImage", images=["v", 0], filename_prefix="x"), **nodes,
    }


def sampler(positive: Any, negative: Any = ("n", 0), latent: Any = ("l", 0)) -> dict[str, Any]:
    sides = {"model": ["m", 0], "positive": [*positive], "negative": [*negative], "latent_image": [*latent]}
    return node("KSampler", **sides, seed=3, steps=2, cfg=5.0, sampler_name="euler", scheduler="normal", denoise=1.0)


def picture(asked: dict[str, Any], here: Places, tmp_path: Path) -> np.ndarray[Any, Any]:
    with computing("cpu", "float32"):
        files = finish(comfy.run(asked, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))
    return np.asarray(read(files["s"][0])).astype(int)


def unclip(share: float, strength: float = 1.0) -> dict[str, Any]:
    beside = node("unCLIPConditioning", conditioning=["p", 0], clip_vision_output=["e", 0], strength=strength, noise_augmentation=share)
    seen = node("CLIPVisionEncode", clip_vision=["m", 3], image=["i", 0], crop="center")
    return prompt("unCLIPCheckpointLoader", "unclip", e=seen, u=beside, k=sampler(("u", 0)))


def test_a_picture_beside_a_prompt(here: Places, tmp_path: Path) -> None:
    graph = comfy.translate(unclip(0.25, 0.5), here).graph
    file = str(here.models.find("checkpoints", "unclip"))
    assert graph["e"] == {"class_type": "see", "inputs": {"image": ["i", 0], "encoder": file, "crop": "center"}}
    assert graph["u"]["inputs"] == {"cond": ["p", 0], "seen": ["e", 0], "strength": 0.5, "noise": 0.25}
    plain, shown, noisy = (picture(unclip(*how), here, tmp_path / str(i)) for i, how in enumerate([(0.0, 0.0), (0.0,), (0.9,)]))
    assert np.abs(plain - shown).mean() > 0.1 and np.abs(shown - noisy).mean() > 0.1


def test_a_picture_to_change(here: Places, tmp_path: Path) -> None:
    """With the prompt, with the picture alone, with neither; on another picture it is another result."""
    both = node("InstructPixToPixConditioning", positive=["p", 0], negative=["n", 0], vae=["m", 2], pixels=["i", 0])
    guide = node("DualCFGGuider", model=["m", 0], cond1=["c", 0], cond2=["c", 1], negative=["n", 0], cfg_conds=7.5, cfg_cond2_negative=1.5,
                 style="regular")
    levels = node("BasicScheduler", model=["m", 0], scheduler="normal", steps=2, denoise=1.0)
    parts = {"levels": levels, "noise": node("RandomNoise", noise_seed=1), "how": node("KSamplerSelect", sampler_name="euler")}
    links = {"noise": ["noise", 0], "guider": ["guide", 0], "sampler": ["how", 0], "sigmas": ["levels", 0], "latent_image": ["c", 2]}
    asked = prompt("CheckpointLoaderSimple", "changes", c=both, k=node("SamplerCustomAdvanced", **links), guide=guide, **parts)
    graph = comfy.translate(asked, here).graph
    assert graph["c.positive"] == {"class_type": "change_cond", "inputs": {"cond": ["p", 0], "shown": ["c.shown", 0]}}
    one = picture(asked, here, tmp_path / "0")
    asked["w"], asked["c"]["inputs"]["pixels"] = node("ImageInvert", image=["i", 0]), ["w", 0]
    other = picture(asked, here, tmp_path / "1")
    assert one.shape == (64, 64, 3) and np.abs(one - other).mean() > 0.1


def test_a_style_and_its_strength(here: Places, caplog: pytest.LogCaptureFixture) -> None:
    seen = node("CLIPVisionEncode", clip_vision=["t", 0], image=["i", 0], crop="none")
    style = node("StyleModelApply", conditioning=["p", 0], style_model=["y", 0], clip_vision_output=["e", 0], strength=0.4,
                 strength_type="multiply")
    asked = prompt("CheckpointLoaderSimple", "changes", e=seen, a=style, k=sampler(("a", 0)),
                   t=node("CLIPVisionLoader", clip_name="model.safetensors"),
                   y=node("StyleModelLoader", style_model_name="style.safetensors"))
    file = str(here.models.find("style_models", "style"))
    assert comfy.translate(asked, here).graph["a"]["inputs"] == {"cond": ["p", 0], "seen": ["e", 0], "path": file, "strength": 0.4}
    style["inputs"]["strength_type"] = "attn_bias"
    assert not caplog.records and comfy.translate(asked, here).graph["a"]["inputs"]["strength"] == 1.0
    assert "attn_bias does nothing here" in caplog.text


def test_what_the_editor_is_told(here: Places) -> None:
    info = {name: NODES[name].object_info(here) for name in ("CLIPVisionLoader", "unCLIPConditioning", "StyleModelApply")}
    assert info["CLIPVisionLoader"]["input"]["required"] == {"clip_name": [["model.safetensors"]]}
    told = info["unCLIPConditioning"]["input"]["required"]
    assert told["strength"] == ["FLOAT", {"min": -10.0, "max": 10.0, "step": 0.01, "default": 1.0}]
    assert info["StyleModelApply"]["input"]["required"]["strength_type"] == [["multiply", "attn_bias"]]
    assert info["StyleModelApply"]["input"]["required"]["strength"][1]["step"] == 0.001
