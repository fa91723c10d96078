"""ComfyUI's training nodes: a folder of pictures becomes a LoRA, a file of it and a drawn curve."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from safetensors.torch import load_file

from safelight import comfy, runtime
from safelight.comfy import Places, PromptError, translate
from safelight.computing import computing
from safelight.engine import finish
from safelight.folders import roots
from safelight.pictures import read
from safelight.store import Store
from tests import tiny
from tests.comfy.prompts import node


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    root = tmp_path_factory.mktemp("comfy")
    tiny.sd1(root / "models" / "diffusers" / "tiny")
    (root / "input" / "cats").mkdir(parents=True)
    for i, text in enumerate(("a red cat", "a grey cat")):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        Pil.fromarray(pixels).save(root / "input" / "cats" / f"{i}.png")
        (root / "input" / "cats" / f"{i}.txt").write_text(text)
    with computing("cpu", "float32"):
        yield Places(roots(root / "models"), root / "input", root / "out")
    runtime.release()


def prompt(**changes: Any) -> dict[str, Any]:
    told = {"batch_size": 1, "grad_accumulation_steps": 2, "steps": 3, "learning_rate": 0.01, "rank": 2, "optimizer": "AdamW",
            "loss_function": "L1", "seed": 2**60 + 5, "training_dtype": "fp32", "lora_dtype": "fp32", "algorithm": "LoRA",
            "gradient_checkpointing": False, "existing_lora": "[None]"}
    return {
        "m": node("DiffusersLoader", model_path="tiny"), "set": node("LoadImageTextSetFromFolderNode", folder="cats", clip=["m", 1]),
        "e": node("VAEEncode", pixels=["set", 0], vae=["m", 2]),
        "t": node("TrainLoraNode", **{"model": ["m", 0], "latents": ["e", 0], "positive": ["set", 1]} | told | changes),
        "s": node("SaveLoRANode", lora=["t", 1], prefix="loras/cats", steps=["t", 3]),
        "g": node("LossGraphNode", loss=["t", 2], filename_prefix="loss"),
    }


def test_a_folder_becomes_a_lora(here: Places, tmp_path: Path) -> None:
    told = prompt()
    graph = translate(told, here).graph
    given = graph["t.lora"]["inputs"]
    assert graph["t.data"] == {"class_type": "folder", "inputs": {"path": str((here.input / "cats").absolute())}}
    assert given["batch"] == 2 and given["at_once"] == 1 and given["loss"] == "l1" and given["seed"] == 5 and given["lr"] == 0.01
    files = finish(comfy.run(told, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))
    path, = files["s"]
    tensors = load_file(path)
    assert path.name == "cats_3_steps_00001_.safetensors" and all(n.startswith("lora_unet_") for n in tensors)
    assert any(t.abs().max() > 0 for n, t in tensors.items() if "lora_up" in n)
    drawn = read(files["g"][0])
    assert drawn.shape[2] == 3 and drawn.std() > 5 and files["g"][0].parent.name == "temp"


def test_one_prompt_for_all_pictures(here: Places) -> None:
    told = prompt(positive=["p", 0]) | {
        "set": node("LoadImageSetFromFolderNode", folder="cats"), "p": node("CLIPTextEncode", text="a {cat}", clip=["m", 1]),
        "l": node("LoraModelLoader", model=["m", 0], lora=["t", 1], strength_model=0.5), "k": node("ModelSave", model=["l", 0],
                                                                                                  filename_prefix="x"),
    }
    graph = translate(told, here).graph
    assert graph["t.said"]["inputs"]["template"] == "a {{cat}}" and graph["t.lora"]["inputs"]["data"] == ["t.said", 0]
    wanted = {"model": ["m", 0], "lora": ["t.lora", 0], "strength": 0.5, "text_strength": 0.0}
    assert graph["l"] == {"class_type": "with_lora", "inputs": wanted}


def test_what_cannot_be_trained_says_why(here: Places) -> None:
    empty = {"e": node("EmptyLatentImage", width=64, height=64, batch_size=1)}
    for told, why in ((prompt() | empty, "expected the pictures of a folder"), (prompt(optimizer="SGD"), "expected AdamW or Adam"),
                      (prompt(algorithm="OFT"), "got 'OFT'")):
        with pytest.raises(PromptError, match=rf"node t \(TrainLoraNode\).*{why}"):
            translate(told, here)
    with pytest.raises(PromptError, match="folder"):
        translate(prompt() | {"set": node("LoadImageTextSetFromFolderNode", folder="../out", clip=["m", 1])}, here)
