"""The Kolors nodes on a tiny Kolors: its example workflows, as the editor saves them and in their older form."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image as Pil

from safelight import comfy, runtime
from safelight.comfy import NODES, Places, PromptError, convert, translate
from safelight.comfy.nodes.kolors import leading
from safelight.computing import computing
from safelight.engine import finish
from safelight.folders import roots
from safelight.op import load_ops
from safelight.pictures import read
from safelight.sampling.noise import start_noise
from safelight.store import Store
from tests import checkpoints, tiny
from tests.comfy.prompts import node

OPS = load_ops()
BETAS = {"beta_start": 0.00085, "beta_end": 0.014, "beta_schedule": "scaled_linear", "num_train_timesteps": 1100}
SPACED: dict[str, Any] = {**BETAS, "steps_offset": 1, "timestep_spacing": "leading"}
FILES = {"vae": "sdxl.vae.safetensors", "lora": "epoch=0-step=500.ckpt", "picture": "a.png"}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    root = tmp_path_factory.mktemp("kolors")
    models = root / "models"
    folder = tiny.kolors(models / "diffusers" / "Kolors")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        other = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3, block_out_channels=(32,) * 3,
            latent_channels=4, layers_per_block=1, scaling_factor=0.13025, sample_size=64,
        )
    checkpoints.save(models / "vae" / FILES["vae"], checkpoints.vae_names(other))
    weights = {}
    source = torch.Generator().manual_seed(0)
    for path, layer in UNet2DConditionModel.from_pretrained(folder, subfolder="unet").named_modules():
        if path.endswith(("to_q", "to_v")):
            weights[f"{path}.lora_A.weight"] = torch.randn(2, layer.in_features, generator=source) / 2
            weights[f"{path}.lora_B.weight"] = torch.randn(layer.out_features, 2, generator=source) / 2
    (models / "loras").mkdir()
    torch.save(weights, models / "loras" / FILES["lora"])
    (root / "input").mkdir()
    Pil.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(root / "input" / FILES["picture"])
    yield Places(roots(models), root / "input", root / "out")
    runtime.release()


@pytest.fixture(autouse=True)
def exactly() -> Iterator[None]:
    with computing("cpu", "float32"):
        yield


def prompt(scheduler: str = "EulerDiscreteScheduler", said: str = "a red apple on white", **more: Any) -> dict[str, Any]:
    told = {"seed": 3, "steps": 4, "cfg": 3.0, "scheduler": scheduler, "width": 64, "height": 64}
    return {
        "1": node("DownloadAndLoadKolorsModel", model="Kwai-Kolors/Kolors", precision="fp16"),
        "2": node("DownloadAndLoadChatGLM3", precision="quant8"),
        "3": node("KolorsTextEncode", chatglm3_model=["2", 0], prompt=said, negative_prompt="fog", num_images_per_prompt=1),
        "4": node("KolorsSampler", kolors_model=["1", 0], kolors_embeds=["3", 0], **told, **more),
        "5": node("VAELoader", vae_name=FILES["vae"]),
        "6": node("VAEDecode", samples=["4", 0], vae=["5", 0]),
        "7": node("PreviewImage", images=["6", 0]),
    }


def drawn(graph: dict[str, Any], here: Places, tmp_path: Path) -> list[np.ndarray[Any, Any]]:
    files = finish(comfy.run(graph, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))
    return [read(f).astype(int) for f in files["7"]]


def test_the_classes_say_what_the_facts_say(here: Places) -> None:
    told = NODES["KolorsSampler"].object_info(here)
    assert list(told["input"]["required"]) == ["kolors_model", "kolors_embeds", "width", "height", "seed", "steps", "cfg", "scheduler"]
    assert list(told["input"]["optional"]) == ["latent", "denoise_strength"] and told["output_name"] == ["latent"]
    assert told["input"]["required"]["width"][1] == {"default": 1024, "min": 64, "max": 2048, "step": 64}
    assert len(told["input"]["required"]["scheduler"][0]) == 6 and told["category"] == "KwaiKolorsWrapper"
    assert NODES["LoadKolorsLoRA"].object_info(here)["input"]["required"]["lora_alpha"] == [
        "FLOAT", {"min": 0, "max": 4, "step": 0.01, "default": 2.0}]


LOUD = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers under numpy 2


@LOUD
@pytest.mark.parametrize("steps", [4, 25, 30, 137])
def test_levels_are_diffusers(steps: int) -> None:
    euler = EulerDiscreteScheduler(**SPACED, interpolation_type="linear")
    euler.set_timesteps(steps)
    assert leading(steps) == pytest.approx(euler.sigmas.tolist(), rel=2e-5)
    solver = DPMSolverMultistepScheduler(**SPACED)
    solver.set_timesteps(steps)
    assert leading(steps, multistep=True) == pytest.approx(solver.sigmas.tolist(), rel=2e-5)


@LOUD
def test_text_to_image_is_diffusers_own_loop(here: Places, tmp_path: Path) -> None:
    """The whole prompt against EulerDiscreteScheduler around the same U-Net."""
    found = drawn(prompt(), here, tmp_path)
    model = OPS["model"](str(here.models.find("diffusers", "Kolors")), vae=str(here.models.find("vae", FILES["vae"])))
    scheduler = EulerDiscreteScheduler(**SPACED)
    scheduler.set_timesteps(4)
    conds = [OPS["encode_text"](model, text) for text in ("a red apple on white", "fog")]
    with runtime.lease(model, holder="test") as family, torch.no_grad():
        x = start_noise((1, 4, 16, 16), 3, None) * scheduler.init_noise_sigma
        net = dict(family.trainable())["unet"]
        ids = torch.tensor([[64.0, 64, 0, 0, 64, 64]])
        for t in scheduler.timesteps:
            into = scheduler.scale_model_input(x, t)
            eps = [net(into, t, c.tokens, added_cond_kwargs={"text_embeds": c.extras["pooled"], "time_ids": ids}).sample for c in conds]
            x = scheduler.step(eps[1] + 3.0 * (eps[0] - eps[1]), t, x).prev_sample
        pixels = family.decode(x)
    expected = (np.clip(np.asarray(pixels[0] if pixels.ndim == 4 else pixels), 0, 1) * 255).astype(int)
    assert np.abs(found[0] - expected).max() <= 1 and found[0].std() > 5


@pytest.mark.parametrize("scheduler", ["EulerAncestralDiscreteScheduler", "DPMSolverMultistepScheduler_SDE_karras",
                                       "UniPCMultistepScheduler", "DEISMultistepScheduler"])
def test_every_scheduler_draws(here: Places, tmp_path: Path, scheduler: str) -> None:
    found = drawn(prompt(scheduler), here, tmp_path)
    assert found[0].shape == (64, 64, 3) and found[0].std() > 2


def test_prompts_of_a_batch_have_their_own_noise(here: Places, tmp_path: Path) -> None:
    both = prompt(said="a red apple on white|night city")
    both["3"]["inputs"]["num_images_per_prompt"] = 2
    found = drawn(both, here, tmp_path)
    alone = prompt()
    alone["3"]["inputs"]["num_images_per_prompt"] = 2
    first = drawn(alone, here, tmp_path)
    assert len(found) == 4 and max(np.abs(a - b).max() for a, b in zip(found, first, strict=False)) <= 1
    assert np.abs(found[0] - found[2]).mean() > 2
    braces = translate(prompt(said="{night|night} city"), here).graph
    assert braces["3.0"]["inputs"]["text"] == "night city"


def test_image_to_image_and_a_lora(here: Places, tmp_path: Path) -> None:
    graph = prompt(latent=["9", 0], denoise_strength=0.75) | {
        "8": node("LoadImage", image=FILES["picture"]), "9": node("VAEEncode", pixels=["8", 0], vae=["5", 0]),
        "10": node("LoadKolorsLoRA", kolors_model=["1", 0], lora_path=f"D:\\old\\{FILES['lora']}", lora_alpha=2.0),
    }
    plain = drawn(graph, here, tmp_path)
    assert len(translate(graph, here).graph["4"]["inputs"]["sigmas"]) == 4, "three of four steps"
    graph["4"]["inputs"]["kolors_model"] = ["10", 0]
    told = translate(graph, here).graph
    assert told["10.lora"]["inputs"]["alpha"] == 2.0 and len([e for e in told.values() if e["class_type"] == "model"]) == 1
    changed = drawn(graph, here, tmp_path)
    assert np.abs(plain[0] - changed[0]).mean() > 1
    graph["4"]["inputs"]["denoise_strength"] = 0.1
    with pytest.raises(PromptError, match="not one step"):
        translate(graph, here)
    graph["10"]["inputs"]["lora_path"] = "none.ckpt"
    with pytest.raises(PromptError, match=r"node 10 \(LoadKolorsLoRA\).*no loras"):
        translate(graph, here)


def test_an_older_file_of_the_editors_runs(here: Places, tmp_path: Path) -> None:
    """KolorsTextEncode took the model itself, and KolorsSampler had no scheduler."""
    def at(id: int, kind: str, values: list[Any], inputs: dict[str, Any], *outputs: str) -> dict[str, Any]:
        sockets = [{"name": k, "type": t, "link": link} for k, (t, link) in inputs.items()]
        return {"id": id, "type": kind, "mode": 0, "inputs": sockets, "outputs": [{"name": o, "type": o} for o in outputs],
                "widgets_values": values}

    drawing = {"version": 0.4, "nodes": [
        at(1, "DownloadAndLoadKolorsModel", ["Kwai-Kolors/Kolors", "fp16"], {}, "KOLORSMODEL"),
        at(3, "KolorsTextEncode", ["a red apple on white", "fog", 1], {"kolors_model": ("KOLORSMODEL", 1)}, "KOLORS_EMBEDS"),
        at(4, "KolorsSampler", [64, 64, 3, "fixed", 4, 3], {
            "kolors_model": ("KOLORSMODEL", 2), "kolors_embeds": ("KOLORS_EMBEDS", 3), "latent": ("LATENT", None)}, "LATENT"),
        at(5, "VAELoader", [FILES["vae"]], {}, "VAE"),
        at(6, "VAEDecode", [], {"samples": ("LATENT", 4), "vae": ("VAE", 5)}, "IMAGE"),
        at(7, "PreviewImage", [], {"images": ("IMAGE", 6)}),
    ], "links": [[1, 1, 0, 3, 0, "KOLORSMODEL"], [2, 1, 0, 4, 0, "KOLORSMODEL"], [3, 3, 0, 4, 1, "KOLORS_EMBEDS"],
                 [4, 4, 0, 6, 0, "LATENT"],
                 [5, 5, 0, 6, 1, "VAE"], [6, 6, 0, 7, 0, "IMAGE"]]}
    old = drawn(json.loads(json.dumps(convert(drawing, here))), here, tmp_path)
    assert np.array_equal(old, drawn(prompt(), here, tmp_path))
