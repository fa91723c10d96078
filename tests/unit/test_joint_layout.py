"""SD3's transformer in the original repository's single files, against diffusers' own converter."""
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from safelight.families import find
from safelight.families.sources import open_source
from safelight.values import Part
from tests import tiny
from tests.checkpoints import joint_names

CPU = torch.device("cpu")

@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_single_file_is_the_same_model(tmp_path: Path, prefix: str) -> None:
    folder = tiny.sd3(tmp_path / "m")
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    old = joint_names(tensors, 2)
    again = convert_sd3_transformer_checkpoint_to_diffusers(dict(old))
    assert again.keys() == tensors.keys() and all(torch.equal(again[n], tensors[n]) for n in tensors)
    towers = {} if not prefix else {
        f"text_encoders.{name}.transformer.{n}": t
        for name, part in (("clip_l", "text_encoder"), ("clip_g", "text_encoder_2"))
        for n, t in load_file(folder / part / "model.safetensors").items()
    }
    file = tmp_path / "sd3.safetensors"
    save_file({prefix + n: t.contiguous() for n, t in old.items()} | towers, file)
    assert open_source(file).family == "sd3"
    for n in ("", "_2", "_3"):
        shutil.copytree(folder / f"tokenizer{n}", folder / f"text_encoder{n}", dirs_exist_ok=True)
    parts = [Part(p, str(folder / p), "") for p in ("vae", "text_encoder", "text_encoder_2", "text_encoder_3")]
    whole = tiny.load(folder, device=CPU, dtype=torch.float32)
    loose = find("sd3")(open_source(file, parts), device=CPU, dtype=torch.float32)
    x, sigma = torch.randn(2, 16, 8, 8), whole.sigmas[[100, 900]]
    assert torch.equal(whole.sigmas, loose.sigmas)
    a, b = (f.predict(x, sigma, f.encode_text(["a red apple", ""])) for f in (whole, loose))
    assert torch.equal(a, b)


def test_the_first_tower_in_a_file_has_no_projection(tmp_path: Path) -> None:
    folder = tiny.sd3(tmp_path / "m")
    old = joint_names(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"), 2)
    tower = load_file(folder / "text_encoder" / "model.safetensors")
    file = tmp_path / "sd3.safetensors"
    save_file({n: t.contiguous() for n, t in old.items()} | {f"text_encoders.clip_l.transformer.{n}": t for n, t in tower.items()}, file)
    assert open_source(file).config("text_encoder")["architectures"] == ["CLIPTextModel"]
    built = open_source(file).build("text_encoder", CLIPTextModel, device=CPU, dtype=torch.float32).state_dict()
    assert all(torch.equal(t, tower[f"text_model.{n}"]) for n, t in built.items())
    assert open_source(file).config("text_encoder_3") == {}
