"""A model is the same model in every layout its files have: networks compared with a folder in diffusers layout, bit for bit."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

import safelight as sl
from safelight import codec, families
from safelight.families.checkpoint import Checkpoint
from safelight.families.sources import Folder, open_model, open_source
from safelight.lineage import about as told_about
from safelight.runtime import lease
from safelight.values import Part
from safelight.weights import header
from tests import checkpoints as c
from tests.checkpoints import built, outputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> c.Make:
    return c.maker(tmp_path_factory.mktemp("models"))


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    assert a.keys() == b.keys()
    assert all(t.std() > 0 for t in a.values())
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", sorted(c.TINY))
def test_a_single_file_says_what_the_folder_says(kind: str, made: c.Make) -> None:
    one = made(kind)
    folder, file = open_source(one.folder), open_source(one.file)
    assert folder.family == file.family == ("sdxl" if kind in ("sdxl", "refiner") else "sd")
    assert same(outputs(built(folder, one)), said := outputs(built(file, one)))
    assert same(said, outputs(one.nets))
    assert file.config("scheduler")["prediction_type"] == one.layout.scheduler["prediction_type"]
    assert file.config("vae")["scaling_factor"] == one.layout.vae["scaling_factor"]
    for part in one.layout.text:
        words = [PreTrainedTokenizerFast.from_pretrained(p.folder(part.replace("text_encoder", "tokenizer"))) for p in (folder, file)]
        assert words[0].pad_token_id == words[1].pad_token_id == (0 if one.layout.text[part][1]["pad_token_id"] == 0 else 49407)


@pytest.mark.parametrize("kind", ["sd1", "refiner"])
def test_half_precision_files_are_the_same_numbers(kind: str, made: c.Make, tmp_path: Path) -> None:
    one = made(kind)
    halves = {part: net.half() for part, net in c.networks(one.layout).items()}
    folder = c.folder(tmp_path / "half", one.layout, halves)
    file = c.checkpoint(tmp_path / "half.safetensors", one.layout, one.nets, half=True)
    assert same(outputs(built(open_source(folder), one)), outputs(built(open_source(file), one)))


def test_the_family_draws_from_a_single_file(made: c.Make) -> None:
    one = made("words")
    drawn = []
    for source in (one.folder, one.file):
        parts = open_source(source)
        f = families.find(parts.family)(parts, device=CPU, dtype=torch.float32)
        x = torch.ones(1, 4, 8, 8)
        drawn.append(f.decode(f.denoise(x, f.sigmas[[500]], f.encode_text(["a (red:1.2) cat"]))))
    assert torch.allclose(*drawn, atol=1e-4)  # weights that begin at other places in memory are multiplied in another order


@pytest.mark.parametrize("kind", sorted(c.FULL))
def test_the_real_models_are_known_by_their_headers(kind: str, tmp_path: Path) -> None:
    real = c.FULL[kind]
    nets = c.networks(real, empty=True)
    file = c.sparse(tmp_path / "x.safetensors", {n: tuple(t.shape) for n, t in c.single(real, nets).items()})
    found = Checkpoint(file)
    assert found.family == ("sdxl" if kind in ("sdxl", "refiner") else "sd")
    assert found.config("unet")["sample_size"] == (128 if found.family == "sdxl" else 64)
    for part, net in nets.items():
        last = {"text_projection.weight"}
        assert set(found.layouts[part].tensors) - last == {n.removeprefix("text_model.") for n in net.state_dict()} - last
        told = {"unet": real.unet, "vae": real.vae}.get(part) or real.text[part][1]
        assert comparable(found.config(part)).items() >= comparable(told).items()


def comparable(config: Mapping[str, Any]) -> dict[str, str]:
    """As texts; how many transformers a level has where it has any; without what weights do not tell."""
    told = {k: list(v) if isinstance(v, tuple) else v for k, v in config.items() if k not in ("sample_size", "addition_time_embed_dim")}
    depth = told.get("transformer_layers_per_block", 1)
    if "cross_attention_dim" in told:
        kinds = told["down_block_types"]
        every = depth if isinstance(depth, list) else [depth] * len(kinds)
        told["transformer_layers_per_block"] = [d for d, kind in zip(every, kinds, strict=True) if "CrossAttn" in kind]
    return {k: str(v) for k, v in told.items()}


def test_kolors_is_known_by_its_unet(tmp_path: Path) -> None:
    more = {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 5632}
    net = c.networks(dataclasses.replace(c.FULL["sdxl"], unet={**c.FULL["sdxl"].unet, **more}), empty=True)["unet"]
    found = Checkpoint(c.sparse(tmp_path / "x.safetensors", {n: tuple(t.shape) for n, t in net.state_dict().items()}))
    assert found.family == "kolors"
    assert found.config("unet").items() >= {"encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj"}.items()
    assert found.layouts["unet"].tensors.keys() == net.state_dict().keys()
    assert found.config("scheduler")["num_train_timesteps"] == 1100


def test_a_folder_with_chatglm_is_kolors_whatever_its_pipeline_is_called(tmp_path: Path) -> None:
    told = {"_class_name": "StableDiffusionXLPipeline", "text_encoder": ["kolors", "ChatGLMModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (tmp_path / "model_index.json").write_text(json.dumps(told))
    assert Folder(tmp_path).family == "kolors"


@pytest.mark.parametrize(("down", "up"), [([1, [2, 1]], [[1, 2, 3], 1]), ([1, [2, 2]], [[2, 2, 2], 1])])
def test_distilled_sdxl_models_have_other_depths_everywhere(down: list[Any], up: list[Any], tmp_path: Path) -> None:
    depths = {"transformer_layers_per_block": down, "reverse_transformer_layers_per_block": up, "mid_block_type": "UNetMidBlock2D"}
    layout = c.sdxl()
    net = c.networks(dataclasses.replace(layout, unet={**layout.unet, **depths}))["unet"]
    found = open_source(c.save(tmp_path / "x.safetensors", c.unet_names(net)))
    assert found.family == "sdxl"
    again = found.build("unet", type(net), device=CPU, dtype=torch.float32).state_dict()
    assert again.keys() == net.state_dict().keys()
    assert all(torch.equal(t, again[n]) for n, t in net.state_dict().items())


# Single networks, and parts from elsewhere.


@pytest.mark.parametrize("names", ["original", "diffusers"])
@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_networks_in_files_of_their_own(kind: str, names: str, made: c.Make, tmp_path: Path) -> None:
    one = made(kind)
    files = c.separate(one, tmp_path, names)
    model = sl.model(files.pop("unet"), **files)
    assert model.family == ("sdxl" if kind == "sdxl" else "sd")
    found, wanted = outputs(built(open_model(model), one)), outputs(one.nets)
    if kind == "sdxl" and names == "diffusers":  # a tower by transformers' names does not tell its activation; real ones by their width
        found = {n: t for n, t in found.items() if not n.startswith("text_encoder_2")}
        wanted = {n: t for n, t in wanted.items() if n in found}
    assert same(found, wanted)
    assert open_model(model).config("vae")["scaling_factor"] == one.layout.vae["scaling_factor"]


def test_a_missing_part_is_asked_for_by_name(made: c.Make, tmp_path: Path) -> None:
    files = c.separate(made("sd1"), tmp_path, "original")
    model = sl.model(files["unet"], text_encoder=files["text_encoder"])
    with pytest.raises(ValueError, match="holds no vae; give one with vae="), lease(model, dtype=torch.float32):
        pass


@pytest.mark.parametrize("where", ["file", "component", "folder", "checkpoint"])
def test_another_vae_from_anywhere(where: str, made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    vae = c.networks(one.layout, seed=9)["vae"]
    source = tmp_path / "other"
    if where == "file":
        source = c.save(tmp_path / "vae.safetensors", c.vae_names(vae))
    elif where == "component":
        vae.save_pretrained(source)
    else:
        nets = {**one.nets, "vae": vae}
        source = c.folder(source, one.layout, nets) if where == "folder" else c.checkpoint(tmp_path / "x.safetensors", one.layout, nets)
    base, model = sl.model(str(one.file)), sl.model(str(one.file), vae=str(source))
    assert model.key != base.key
    assert model.parts[0].name == "vae"
    parts = open_model(model)
    found, net = (parts.build(part, type(one.nets[part]), device=CPU, dtype=torch.float32) for part in ("vae", "unet"))
    assert all(torch.equal(t, vae.state_dict()[n]) for n, t in found.state_dict().items())
    assert torch.equal(net.conv_in.weight, one.nets["unet"].conv_in.weight)
    assert found.config.scaling_factor == parts.config("vae")["scaling_factor"] == one.layout.vae["scaling_factor"]


def test_parts_are_in_the_key_the_lineage_and_the_store(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    source = c.save(tmp_path / "vae.safetensors", c.vae_names(c.networks(one.layout, seed=9)["vae"]))
    first = sl.model(str(one.file), vae=str(source), prediction="v-zsnr")
    assert codec.decode(codec.encode(first).tree, {}, lambda sha: pytest.fail(sha)) == first
    told = told_about(first)["parts"]
    assert [p["part"] for p in told] == ["vae", "scheduler"]
    assert told[0]["source"] == "vae.safetensors"
    assert "vae=" in str(sl.why(first))
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(source.read_bytes())
    assert sl.model(str(one.file), vae=str(moved), prediction="v-zsnr").key == first.key  # by content, not by place
    c.save(source, c.vae_names(c.networks(one.layout, seed=10)["vae"]))
    assert sl.model(str(one.file), vae=str(source), prediction="v-zsnr").key != first.key
    with pytest.raises(ValueError, match="no longer what"), lease(first):
        pass


def test_what_training_caches_by_follows_the_part(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    source = c.save(tmp_path / "vae.safetensors", c.vae_names(c.networks(one.layout, seed=9)["vae"]))
    plain, other = open_source(one.folder), open_source(one.folder, (Part("vae", str(source), ""),))
    assert plain.fingerprint("vae") != other.fingerprint("vae")
    assert plain.fingerprint("text_encoder", "tokenizer") == other.fingerprint("text_encoder", "tokenizer")
    assert plain.fingerprint() != other.fingerprint()


# What a network predicts.


def variant(one: c.Made, path: Path, more: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> dict[str, Any]:
    c.save(path, {**load_file(one.file), **more}, metadata)
    return open_source(path).config("scheduler")


def test_prediction_type_by_metadata_by_marks_and_by_the_user(made: c.Make, tmp_path: Path) -> None:
    one, path, mark = made("sd1"), tmp_path / "x.safetensors", torch.zeros(1)
    found = variant(one, path, {"v_pred": mark, "ztsnr": mark})
    assert (found["prediction_type"], found["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert variant(one, path, {"v_pred": mark})["rescale_betas_zero_snr"] is False
    assert variant(one, path, {}, {"modelspec.prediction_type": "v"})["prediction_type"] == "v_prediction"
    assert variant(one, path, {"v_pred": mark}, {"modelspec.prediction_type": "epsilon"})["prediction_type"] == "epsilon"
    asked = open_model(sl.model(str(path), prediction="v-zsnr")).config("scheduler")
    assert (asked["prediction_type"], asked["rescale_betas_zero_snr"], asked["beta_end"]) == ("v_prediction", True, 0.012)
    with pytest.raises(ValueError, match="EDM"):
        variant(one, path, {"edm_mean": mark})


def test_sd2_says_v_by_the_spread_of_one_vector(tmp_path: Path) -> None:
    real = c.FULL["sd2"]
    names = c.single(real, c.networks(real, empty=True))
    told = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    width = names[told].shape[0]
    for spread, says in ((0.05, "epsilon"), (0.3, "v_prediction")):
        path = c.sparse(tmp_path / f"{spread}.safetensors", {n: tuple(t.shape) for n, t in names.items()})
        entry = header.read(path).tensors[told]
        with open(path, "r+b") as f:
            f.seek(entry.start)
            f.write((torch.randn(width, generator=torch.Generator().manual_seed(0)) * spread).half().numpy().tobytes())
        found = Checkpoint(path)
        assert found.config("scheduler")["prediction_type"] == says
        assert found.config("unet")["sample_size"] == (96 if says == "v_prediction" else 64)


# Older and smaller ways to keep a model.


def test_folders_of_halves_and_of_pickles(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    for part, net in c.networks(one.layout).items():
        net.save_pretrained(tmp_path / "half" / part, variant="fp16")
        net.save_pretrained(tmp_path / "old" / part)
        file = next((tmp_path / "old" / part).glob("*.safetensors"))
        torch.save(load_file(file), file.with_suffix(".bin"))
        file.unlink()
    for name in ("half", "old"):
        (tmp_path / name / "model_index.json").write_text((one.folder / "model_index.json").read_text())
        assert same(outputs(built(open_source(tmp_path / name), one)), outputs(one.nets))
    assert open_source(tmp_path / "old").fingerprint("unet") != open_source(tmp_path / "old").fingerprint("vae")


def test_a_pickled_checkpoint_is_the_same_model(made: c.Make, tmp_path: Path) -> None:
    one = made("sd1")
    torch.save({"state_dict": c.single(one.layout, one.nets), "epoch": 3}, tmp_path / "x.ckpt")
    found = open_source(tmp_path / "x.ckpt")
    assert found.family == "sd"
    assert same(outputs(built(found, one)), outputs(one.nets))
