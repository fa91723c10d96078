"""Files and folders that are no model, are broken, or want more than to be read."""
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import safelight as sl
from safelight.families.checkpoint import About, about
from safelight.families.sources import Folder, open_source
from tests import checkpoints as c

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> c.Make:
    return c.maker(tmp_path_factory.mktemp("models"))


def test_an_unknown_file_says_what_was_found(tmp_path: Path) -> None:
    path = c.save(tmp_path / "x.safetensors", {"blocks.0.attn.weight": torch.zeros(3, 5), "blocks.1.attn.weight": torch.zeros(3, 5)})
    with pytest.raises(ValueError, match=r"no family knows it; it has 2 tensors, most under blocks\.0.*blocks\.0\.attn\.weight \[3, 5\]"):
        open_source(path)


@pytest.mark.parametrize(("name", "kind"), [
    ("lora_unet_down_blocks_0.lora_down.weight", "lora"), ("unet.mid_block.to_q.lora_A.weight", "lora"),
    ("control_model.input_hint_block.0.weight", "controlnet"), ("emb_params", "embedding"),
])
def test_a_file_that_is_no_model_is_named(name: str, kind: str, tmp_path: Path) -> None:
    path = c.save(tmp_path / "x.safetensors", {name: torch.zeros(4, 4)})
    assert about(path) == About("", kind)
    with pytest.raises(ValueError, match=f"it is a {kind}, no whole model"):
        open_source(path)


def test_files_of_one_part_are_named(made: c.Make, tmp_path: Path) -> None:
    files = c.separate(made("sd1"), tmp_path, "original")
    found = [about(Path(files[part])) for part in ("unet", "vae", "text_encoder")]
    assert found == [About("sd", "model"), About("", "vae"), About("", "text_encoder")]
    with pytest.raises(ValueError, match=r"vae=.*is a text_encoder"):
        sl.model(files["unet"], vae=files["text_encoder"])


def test_missing_and_unknown_tensors_are_counted(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    tensors, head = load_file(one.file), "model.diffusion_model."
    del tensors[f"{head}out.2.bias"], tensors[f"{head}middle_block.1.norm.bias"]
    tensors[f"{head}time_embed.7.weight"] = torch.zeros(3)
    tensors[f"{head}input_blocks.1.0.in_layers.0.weight"] = torch.zeros(5)
    path = c.save(tmp_path / "x.safetensors", tensors)
    says = r"2 missing \(mid_block\S+, conv_out.bias\), 1 unknown \(\S+time_embed.7.weight\), 1 of another shape \(\S+ \[5\] for \[32\]\)"
    with pytest.raises(ValueError, match=says) as e:
        open_source(path).build("unet", type(one.nets["unet"]), device=CPU, dtype=torch.float32)
    assert str(path) in str(e.value)


@pytest.mark.parametrize("spoil", ["cut", "length", "offsets", "json"])
def test_a_truncated_or_lying_header_is_refused(spoil: str, made: c.Make, tmp_path: Path) -> None:
    raw, path = made("sd1").file.read_bytes(), tmp_path / "x.safetensors"
    n = int.from_bytes(raw[:8], "little")
    spoiled = {
        "cut": raw[:-100], "length": (2**40).to_bytes(8, "little") + raw[8:], "json": raw[:8] + b"[" + raw[9:],
        "offsets": raw[:8] + re.sub(rb'"data_offsets":\[0,(\d+)\]', rb'"data_offsets":[8,\1]', raw[8 : 8 + n], count=1) + raw[8 + n :],
    }
    path.write_bytes(spoiled[spoil])
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        open_source(path)


# Folders that want more than to be read.


@pytest.mark.parametrize("entry", ["custom_pipelines", "custom_pipeline", "trust_remote_code", "_attn_implementation_internal"])
@pytest.mark.parametrize("place", ["model_index.json", "unet/config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json"])
def test_configurations_that_run_code_are_refused(entry: str, place: str, made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    folder = tmp_path / "model"
    for f in (one.folder / place).parent.rglob("*") if "/" in place else one.folder.rglob("*"):
        to = folder / f.relative_to(one.folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        if f.is_file():
            to.symlink_to(f)
    data = json.loads((one.folder / place).read_text())
    (folder / place).unlink()
    (folder / place).write_text(json.dumps({**data, "deep": {"er": [{entry: {"AutoModel": "evil.Model"}}]}}))
    if "/" in place:
        (folder / "model_index.json").symlink_to(one.folder / "model_index.json")
    part = place.partition("/")[0]
    with pytest.raises(ValueError, match=f"{entry}.*refused"):
        parts = Folder(folder)
        parts.folder(part) if part == "tokenizer" else parts.build(part, type(one.nets[part]), device=CPU, dtype=torch.float32)


def test_a_folder_with_broken_or_far_weights_is_refused(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    (tmp_path / "model_index.json").write_text((one.folder / "model_index.json").read_text())
    for part in ("unet", "text_encoder"):
        net = one.nets[part]
        net.save_pretrained(tmp_path / part)
        raw = next((tmp_path / part).glob("*.safetensors")).read_bytes()
        next((tmp_path / part).glob("*.safetensors")).write_bytes(raw[:-50])
        with pytest.raises(ValueError, match=r"\.safetensors: no sound safetensors file"):
            open_source(tmp_path).build(part, type(net), device=CPU, dtype=torch.float32)
        net.save_pretrained(tmp_path / part, max_shard_size="20KB")
        next(f for f in (tmp_path / part).glob("*.safetensors") if "-of-" not in f.name).unlink()
        found = open_source(tmp_path).build(part, type(net), device=CPU, dtype=torch.float32)
        assert all(torch.equal(t, found.state_dict()[n]) for n, t in net.state_dict().items())
        table = next((tmp_path / part).glob("*.index.json"))
        told = json.loads(table.read_text())
        for far in ("../x.safetensors", "/x.safetensors", "gone.safetensors"):
            table.write_text(json.dumps({**told, "weight_map": {**told["weight_map"], "more": far}}))
            with pytest.raises(ValueError, match=r"does not lie beside it|no name below"):
                open_source(tmp_path).build(part, type(net), device=CPU, dtype=torch.float32)


def test_a_folder_that_lacks_tensors_is_refused(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    for part in ("text_encoder", "unet"):
        one.nets[part].save_pretrained(tmp_path / part)
        file = next((tmp_path / part).glob("*.safetensors"))
        tensors = load_file(file)
        tensors.pop(sorted(tensors)[0])
        save_file(tensors, file, {"format": "pt"})
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for part in ("text_encoder", "unet"):
        with pytest.raises(ValueError, match=f"{part} lacks 1 tensors|{part}.*missing"):
            open_source(tmp_path).build(part, type(one.nets[part]), device=CPU, dtype=torch.float32)


