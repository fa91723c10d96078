"""SD3's transformer in the original repository's single files, against diffusers' own converter."""
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from safelight.families import find
from safelight.families.sources import open_source
from safelight.values import Part
from tests import tiny

CPU = torch.device("cpu")

BACK = (
    ("pos_embed.pos_embed", "pos_embed"), ("pos_embed.proj", "x_embedder.proj"), ("proj_out.", "final_layer.linear."),
    ("norm_out.linear.", "final_layer.adaLN_modulation.1."), ("time_text_embed.timestep_embedder.", "t_embedder.mlp."),
    ("time_text_embed.text_embedder.", "y_embedder.mlp."), ("mlp.linear_1.", "mlp.0."), ("mlp.linear_2.", "mlp.2."),
    ("transformer_blocks.", "joint_blocks."), (".attn.to_add_out.", ".context_block.attn.proj."), (".to_out.0.", ".proj."),
    (".attn.norm_added_", ".context_block.attn.ln_"), (".norm_q.", ".ln_q."), (".norm_k.", ".ln_k."),
    (".norm1_context.linear.", ".context_block.adaLN_modulation.1."), (".norm1.linear.", ".x_block.adaLN_modulation.1."),
    (".ff_context.net.0.proj.", ".context_block.mlp.fc1."), (".ff_context.net.2.", ".context_block.mlp.fc2."),
    (".ff.net.0.proj.", ".x_block.mlp.fc1."), (".ff.net.2.", ".x_block.mlp.fc2."),
)


def original(tensors: dict[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """diffusers' tensors by the original names."""
    out: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        asked = re.match(r"(.*)\.(attn2?)\.(to_q|add_q_proj)\.(\w+)$", name)
        if asked:
            block, attention, first, leaf = asked.groups()
            three = [tensors[f"{block}.{attention}.{first.replace('_q', f'_{c}')}.{leaf}"] for c in "qkv"]
            side = "x" if first == "to_q" else "context"
            out[f"{block.replace('transformer_blocks', 'joint_blocks')}.{side}_block.{attention}.qkv.{leaf}"] = torch.cat(three)
        elif not re.search(r"\.(to|add)_[kv](_proj)?\.", name):
            new = name
            for old, renamed in BACK:
                new = new.replace(old, renamed)
            new = re.sub(r"(?<!_block)\.(attn2?)\.(?=proj|ln)", r".x_block.\1.", new)
            turned = name.startswith(("norm_out", f"transformer_blocks.{blocks - 1}.norm1_context"))
            out[new] = torch.cat(tensor.chunk(2)[::-1]) if turned else tensor
    return out


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_a_single_file_is_the_same_model(tmp_path: Path, prefix: str) -> None:
    folder = tiny.sd3(tmp_path / "m")
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    old = original(tensors, 2)
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
    old = original(load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors"), 2)
    tower = load_file(folder / "text_encoder" / "model.safetensors")
    file = tmp_path / "sd3.safetensors"
    save_file({n: t.contiguous() for n, t in old.items()} | {f"text_encoders.clip_l.transformer.{n}": t for n, t in tower.items()}, file)
    assert open_source(file).config("text_encoder")["architectures"] == ["CLIPTextModel"]
    built = open_source(file).build("text_encoder", CLIPTextModel, device=CPU, dtype=torch.float32).state_dict()
    assert all(torch.equal(t, tower[f"text_model.{n}"]) for n, t in built.items())
    with pytest.raises(ValueError, match="text_encoder_3"):
        open_source(file).config("text_encoder_3")
