"""Saving nodes: parts of a model that are read again, moving pictures, extracted LoRAs; and blocks merged apart."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors.torch import load_file

from safelight import comfy, embed, runtime
from safelight.comfy import Places, PromptError, translate
from safelight.comfy.blocks import block
from safelight.comfy.run import known_ops
from safelight.computing import computing
from safelight.engine import finish, run
from safelight.families import layouts
from safelight.families.joint_layout import joint
from safelight.families.weight_file import WeightFile
from safelight.op import load_ops
from safelight.pictures import read
from safelight.store import Store
from tests import checkpoints, tiny
from tests.comfy.prompts import NAMES, node, places
from tests.comfy.test_merging import of


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    root = tmp_path_factory.mktemp("comfy")
    found = places(root)
    layout = checkpoints.sd1(words=checkpoints.WORDS)
    checkpoints.checkpoint(root / "models" / "checkpoints" / "second.safetensors", layout, checkpoints.networks(layout, seed=5))
    with computing("cpu", "float32"):
        yield found
    runtime.release()


def saved(here: Places, tmp_path: Path, prompt: dict[str, Any]) -> dict[str, list[Path]]:
    return finish(comfy.run(prompt, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))


ONE, TWO = (node("CheckpointLoaderSimple", ckpt_name=name) for name in (NAMES["checkpoint"], "second.safetensors"))


def test_parts_are_saved_with_what_is_on_them_and_read_again(here: Places, tmp_path: Path) -> None:
    files = saved(here, tmp_path, {
        "m": ONE, "l": node("LoraLoader", model=["m", 0], clip=["m", 1], lora_name=NAMES["lora"], strength_model=1.0, strength_clip=1.0),
        "a": node("ModelSave", model=["l", 0], filename_prefix="unet/part"),
        "b": node("CLIPSave", clip=["l", 1], filename_prefix="clip/part"),
        "c": node("VAESave", vae=["m", 2], filename_prefix="vae/part"),
    })
    names = {key: [p.relative_to(tmp_path / "out").as_posix() for p in found] for key, found in files.items()}
    assert names == {"a": ["unet/part_00001_.safetensors"], "b": ["clip/part_00001__clip_l.safetensors"],
                     "c": ["vae/part_00001_.safetensors"]}
    source = load_file(here.models.find("checkpoints", NAMES["checkpoint"]))
    held = load_file(files["c"][0])
    assert held and all(torch.equal(t, source[f"first_stage_model.{n}"]) for n, t in held.items())
    assert all(n.startswith("model.diffusion_model.") for n in load_file(files["a"][0]))
    base, lora = str(here.models.find("checkpoints", NAMES["checkpoint"])), str(here.models.find("loras", NAMES["lora"]))
    ops = load_ops()
    merged, own = of(ops["with_lora"](ops["model"](base), ops["load_lora"](Path(lora)), strength=1.0)), of(ops["model"](base))
    again = of(ops["model"](base, unet=str(files["a"][0]), text_encoder=str(files["b"][0])))
    for part in ("unet.", "text_encoder."):
        assert all(torch.allclose(again[n], merged[n], atol=1e-6) for n in merged if n.startswith(part))
        assert any(not torch.allclose(again[n], own[n], atol=1e-3) for n in own if n.startswith(part))


@pytest.mark.parametrize(("kind", "more"), [
    ("SaveAnimatedWEBP", {"lossless": True, "quality": 80, "method": "fastest"}), ("SaveAnimatedPNG", {"compress_level": 1})])
def test_moving_pictures(here: Places, tmp_path: Path, kind: str, more: dict[str, Any]) -> None:
    picture = {f"i{i}": node("EmptyImage", width=8, height=8, batch_size=1, color=color) for i, color in enumerate((255, 65280))}
    join = {"j": node("ImageBatch", image1=["i0", 0], image2=["i1", 0])}
    prompt = {**picture, **join, "s": node(kind, images=["j", 0], filename_prefix="a/%width%", fps=4.0, **more)}
    path, = saved(here, tmp_path, prompt)["s"]
    assert path.name.startswith("8_00001_") and '"fps": 4.0' in embed.texts_of(path)["prompt"]
    with Pil.open(path) as moving:
        assert moving.n_frames == 2
        moving.seek(1)
        assert np.asarray(moving.convert("RGB"))[0, 0].tolist() == [0, 255, 0] and moving.info["duration"] == 250


def test_the_difference_of_two_models_as_a_lora(here: Places, tmp_path: Path) -> None:
    prompt = {"m": ONE, "n": TWO, "d": node("ModelMergeSubtract", model1=["n", 0], model2=["m", 0], multiplier=0.5),
              "s": node("LoraSave", filename_prefix="loras/less", rank=4, lora_type="standard", bias_diff=True, model_diff=["d", 0])}
    path, = saved(here, tmp_path, prompt)["s"]
    names = list(load_file(path))
    assert path.name == "less_00001_.safetensors" and names and all(n.startswith("lora_unet_") for n in names)
    prompt["s"]["inputs"]["lora_type"] = "full_diff"
    with pytest.raises(PromptError, match="only 'standard'"):
        translate(prompt, here)
    del prompt["s"]["inputs"]["model_diff"]
    prompt["s"]["inputs"]["lora_type"] = "standard"
    with pytest.raises(PromptError, match="expected a difference"):
        translate(prompt, here)


@pytest.mark.parametrize("made", [checkpoints.sd1, checkpoints.sd2, checkpoints.sdxl])
def test_blocks_are_those_of_the_original_names(tmp_path: Path, made: Any) -> None:
    layout = made()
    file = WeightFile(checkpoints.checkpoint(tmp_path / "x.safetensors", layout, checkpoints.networks(layout)))
    found = layouts.unet(file)
    assert found is not None and len(found.tensors) > 100
    for name, cut in found.tensors.items():
        path = cut.name.removeprefix("model.diffusion_model.")
        assert f"{path}.".startswith(f"{block(f'unet.{name}')}.") and block(f"unet.{name}"), name
    assert block("transformer.pos_embed.proj.weight") == "x_embedder" and block("transformer.x.weight") == ""


def test_blocks_of_a_transformer(tmp_path: Path) -> None:
    folder = tiny.sd3(tmp_path / "sd3")
    state = load_file(next((folder / "transformer").glob("*.safetensors")))
    depth = len({n.split(".")[1] for n in state if n.startswith("transformer_blocks.")})
    checkpoints.save(tmp_path / "x.safetensors", {f"model.diffusion_model.{n}": t.contiguous()
                                                  for n, t in checkpoints.joint_names(state, depth).items()})
    found = joint(WeightFile(tmp_path / "x.safetensors"))
    assert found is not None
    for name, cut in found.tensors.items():
        path = cut.name.removeprefix("model.diffusion_model.")
        assert f"{path}.".startswith(f"{block(f'transformer.{name}')}."), name


def test_each_block_has_its_own_share(here: Places, tmp_path: Path) -> None:
    shares = {i.name: 1.0 for i in comfy.NODES["ModelMergeSD1"].inputs if i.type == "FLOAT"}
    shares |= {"time_embed.": 0.75, "input_blocks.1.": 0.25, "middle_block.1.": 0.25, "output_blocks.5.": 0.0}
    prompt = {"m": ONE, "n": TWO, "e": node("ModelMergeSD1", model1=["m", 0], model2=["n", 0], **shares),
              "s": node("ModelSave", model=["e", 0], filename_prefix="x")}
    told = translate(prompt, here).graph
    found = of(finish(run(told, Store(tmp_path / "store"), ["e"], ops=known_ops(here)))["e"])
    a, b = (of(load_ops()["model"](str(here.models.find("checkpoints", n)))) for n in (NAMES["checkpoint"], "second.safetensors"))
    for name in (n for n in a if n.startswith("unet.")):
        share = shares.get(f"{block(name)}.", 1.0)
        assert torch.allclose(found[name], share * a[name] + (1 - share) * b[name], atol=2e-6), name
    assert all(torch.equal(found[n], a[n]) for n in a if not n.startswith("unet."))
    prompt["e"]["inputs"] |= dict.fromkeys(shares, 1.0)
    assert "e" not in translate(prompt, here).graph


def test_a_network_makes_pictures_larger(here: Places, tmp_path: Path) -> None:
    from tests.unit.test_upscaler import made

    checkpoints.save(tmp_path / "models" / "upscale_models" / "x4.safetensors", dict(made().state_dict()))
    from safelight.folders import roots

    there = Places(roots(tmp_path / "models"), here.input, tmp_path / "out")
    files = saved(there, tmp_path, {
        "i": node("LoadImage", image=NAMES["picture"]), "u": node("UpscaleModelLoader", model_name="x4.safetensors"),
        "l": node("ImageUpscaleWithModel", upscale_model=["u", 0], image=["i", 0]),
        "s": node("SaveImage", images=["l", 0], filename_prefix="large"),
    })
    assert read(files["s"][0]).shape == (256, 256, 3)
