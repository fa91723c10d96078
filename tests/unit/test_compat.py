"""Other trainers' commands as they are, from the first argument to a file that reads back."""
from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors.torch import load_file

from safelight.cli import cli, status
from safelight.cli.compat import DIFFSYNTH, diffsynth_job
from safelight.cli.compat_kohya import DEFAULTS, job
from safelight.embed import safetensors_texts
from safelight.op import load_ops
from safelight.patches import lora as patch_lora
from safelight.train import lora_file
from safelight.values import Blob, Patch
from tests import tiny

WORDS = ["a red apple", "night city", "一个紫色短发的女孩"]
SMALL = ["--steps_per_epoch", "2", "--height", "32", "--width", "32", "--lora_rank", "2", "--precision", "32", "--learning_rate", "0.01"]


def run(*words: str) -> int:
    return status(lambda: cli.main(list(words), standalone_mode=False))


def picture(path: Path, seed: int, side: tuple[int, int] = (40, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pil.fromarray(np.random.default_rng(seed).integers(0, 255, (*side, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """A dataset as that script reads it."""
    for i in range(3):
        picture(tmp_path / "data" / "train" / f"{i}.jpg", i)
    with open(tmp_path / "data" / "train" / "metadata.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["file_name", "text"], *[[f"{i}.jpg", w] for i, w in enumerate(WORDS)]])
    return tmp_path / "data"


@pytest.fixture
def kolors(tmp_path: Path) -> list[str]:
    """The paths of a small Kolors, as arguments."""
    root = tiny.kolors(tmp_path / "Kolors")
    return ["--pretrained_unet_path", str(root / "unet" / "diffusion_pytorch_model.safetensors"), "--pretrained_text_encoder_path",
            str(root / "text_encoder"), "--pretrained_fp16_vae_path", str(root / "vae" / "diffusion_pytorch_model.safetensors")]


def test_diffsynth_from_its_command_to_its_checkpoints(tmp_path: Path, numbered: Path, kolors: list[str]) -> None:
    out = tmp_path / "models"
    words = ["compat", "diffsynth-kolors-lora", *kolors, *SMALL, "--lora_alpha", "4.0", "--dataset_path", str(numbered),
             "--output_path", str(out), "--max_epochs", "2", "--center_crop", "--use_gradient_checkpointing"]
    assert run(*words) == 0
    folder = out / "lightning_logs" / "version_0" / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["epoch=0-step=2.ckpt", "epoch=1-step=4.ckpt"]
    held = torch.load(folder / "epoch=1-step=4.ckpt", weights_only=True)
    ends = {k.split(".transformer_blocks.")[1] for k in held}
    assert ends == {f"0.attn{n}.to_{p}.lora_{m}.default.weight" for n in (1, 2) for p in ("q", "k", "v", "out") for m in "AB"}
    assert all(t.dtype == torch.float32 and 2 in t.shape for t in held.values())
    first = torch.load(folder / "epoch=0-step=2.ckpt", weights_only=True)
    assert held.keys() == first.keys() and any(not torch.equal(held[k], first[k]) for k in held)
    # what is in the checkpoint, with the alpha that its user gives, is what is in our file
    family = tiny.load(tmp_path / "Kolors", device=torch.device("cpu"), dtype=torch.float32)
    lora_file.write(tmp_path / "theirs.safetensors", held, {})
    seen = []
    for file, options in ((out / "kolors-lora.safetensors", {}), (tmp_path / "theirs.safetensors", {"alpha": 4.0})):
        with patch_lora.lora(family, Patch("lora", Blob.of(file), options={**options, "merged": False})):
            seen.append(lora_file.probe(family, [WORDS[0]]))
    assert torch.equal(*seen)
    assert float((seen[0] - lora_file.probe(family, [WORDS[0]])).abs().max()) > 1e-4
    assert run(*words) == 0 and (out / "lightning_logs" / "version_1" / "checkpoints" / "epoch=1-step=4.ckpt").is_file()


def test_the_steps_of_diffsynth(numbered: Path) -> None:
    usual = diffsynth_job(DIFFSYNTH | {"center_crop": True})
    assert not usual.problems
    k = usual.knobs
    assert (k["steps"], k["batch"], k["rank"], k["alpha"], k["lr"], k["size"], k["targets"]) == (500, 1, 4, 4.0, 1e-4, 1024, "attention")
    assert (k["betas"], k["clip"], k["decay"], k["prior"], k["drop"], k["text_encoder"]) == ([0.9, 0.999], 0.0, "constant", 0.0, 0.0, False)
    more = diffsynth_job(DIFFSYNTH | {"accumulate_grad_batches": 4, "max_epochs": 3, "batch_size": 2})
    assert (more.knobs["steps"], more.knobs["batch"], more.every) == (375, 8, 125)
    assert "center_crop" in " ".join(more.notes) and more.knobs["crops"] > 1


@pytest.mark.parametrize(("words", "said"), [
    (["--lora_rnk", "4"], "argument --lora_rnk is unknown; did you mean 'lora_rank'"),
    (["--lora_rank", "four"], "invalid int value: 'four'"),
    (["--height", "512"], "--height 512: other than --width"),
    (["--lora_target_modules", "to_q"], "--lora_target_modules to_q"),
    (["--pretrained_lora_path", "x.ckpt"], "--pretrained_lora_path x.ckpt"),
])
def test_what_diffsynth_takes_and_we_do_not(
    numbered: Path, kolors: list[str], words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compat", "diffsynth-kolors-lora", *kolors, "--dataset_path", str(numbered), "--center_crop", *words) == 1
    assert said in capsys.readouterr().err


def test_a_missing_path_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("compat", "diffsynth-kolors-lora", "--lora_rank", "4") == 1
    assert "--pretrained_unet_path, --pretrained_text_encoder_path" in capsys.readouterr().err


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """kohya's: two folders with repeats; one caption is missing, one has the extension that is not asked for."""
    for i in range(3):
        picture(tmp_path / "kohya" / "2_red fox" / f"{i}.png", i)
    (tmp_path / "kohya" / "2_red fox" / "0.caption").write_text("a fox in snow\nsecond line")
    (tmp_path / "kohya" / "2_red fox" / "1.txt").write_text("not read")
    picture(tmp_path / "kohya" / "1_night" / "3.png", 3, (32, 64))
    return tmp_path / "kohya"


KOHYA = ["--resolution", "64", "--network_dim", "2", "--network_alpha", "1", "--learning_rate", "0.01", "--mixed_precision", "no"]


def test_kohya_from_its_folders_to_its_files(tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.sd1(tmp_path / "m")
    words = ["compat", "kohya", "--pretrained_model_name_or_path", str(model), "--train_data_dir", str(folders), "--output_dir",
             str(tmp_path / "out"), "--output_name", "fox", *KOHYA, "--network_args", "conv_dim=2", "conv_alpha=1",
             "--train_batch_size", "2", "--max_train_epochs", "2",
             "--save_every_n_epochs", "1", "--seed", "3", "--xformers", "--enable_bucket", "--shuffle_caption", "--keep_tokens", "1"]
    assert run(*words) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["fox-000001.safetensors", "fox.safetensors"]
    told = safetensors_texts(tmp_path / "out" / "fox.safetensors")
    assert (told["ss_steps"], told["ss_network_dim"], told["ss_network_alpha"], told["ss_seed"]) == ("8", "2", "1", "3")
    tags = next(iter(json.loads(told["ss_tag_frequency"]).values()))
    assert tags == {"a fox in snow": 1, "night": 1, "red fox": 2}
    assert len(json.loads(told["ss_bucket_info"])["buckets"]) == 2
    family = tiny.load(model, device=torch.device("cpu"), dtype=torch.float32)
    changes = patch_lora.read(str(tmp_path / "out" / "fox.safetensors"))
    assert len(patch_lora.match(family, changes, "fox")) == len(changes) > 60
    early, late = (load_file(tmp_path / "out" / f"fox{n}.safetensors") for n in ("-000001", ""))
    assert early.keys() == late.keys() and any(not torch.equal(early[k], late[k]) for k in late)
    assert "note: xformers" in capsys.readouterr().err


def test_kohya_by_its_toml_files(tmp_path: Path, folders: Path) -> None:
    model = tiny.sd1(tmp_path / "m")
    (tmp_path / "data.toml").write_text(
        f'[general]\nshuffle_caption = true\ncaption_extension = ".txt"\n[[datasets]]\nresolution = 32\nbatch_size = 3\n'
        f'  [[datasets.subsets]]\n  image_dir = "{folders}/2_red fox"\n  num_repeats = 5\n  class_tokens = "sks fox"\n')
    (tmp_path / "run.toml").write_text(
        f'pretrained_model_name_or_path = "{model}"\ndataset_config = "{tmp_path}/data.toml"\noutput_dir = "{tmp_path}/out"\n'
        '[network]\nnetwork_module = "networks.lora"\nnetwork_dim = 2\nnetwork_train_unet_only = true\n[more]\nmax_train_steps = 3\n'
        'seed = 1\noptimizer_type = "AdamW"\noptimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]\nlr_scheduler = "cosine"\n'
        'learning_rate = 0.01\n')
    assert run("compat", "kohya", "--config_file", str(tmp_path / "run.toml"), "--max_train_steps", "2") == 0
    told = safetensors_texts(tmp_path / "out" / "last.safetensors")
    assert [told[f"ss_{k}"] for k in ("steps", "total_batch_size", "lr_scheduler", "text_encoder_lr")] == ["2", "3", "cosine", "None"]
    assert json.loads(told["ss_dataset_dirs"]) == {"5_pictures": {"n_repeats": 5, "img_count": 3}}
    assert next(iter(json.loads(told["ss_tag_frequency"]).values())) == {"not read": 1, "sks fox": 2}
    assert json.loads(told["safelight.settings"])["optimizer"]["weight_decay"] == 0.1
    assert not any(k.startswith("lora_te") for k in load_file(tmp_path / "out" / "last.safetensors"))


def test_what_kohya_takes_and_we_do_not_is_one_list(folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compat", "kohya", "--pretrained_model_name_or_path", str(tiny.sd1(tmp_path / "m")), "--train_data_dir", str(folders)]
    assert run(*words, "--clip_skip", "2", "--resolution", "32,48", "--network_args", "conv_dim=9", "rank_dropout=0.1") == 1
    said = capsys.readouterr().err
    assert all(word in said for word in ("clip_skip = 2", "resolution = '32,48'", "conv_dim=9", "rank_dropout=0.1"))
    assert run(*words, "--network_dimm", "2") == 1
    assert "argument --network_dimm is unknown; did you mean 'network_dim'" in capsys.readouterr().err
    (tmp_path / "x.toml").write_text("learning_rat = 1")
    assert run("compat", "kohya", "--config_file", str(tmp_path / "x.toml")) == 1
    assert "setting 'learning_rat' is unknown; did you mean 'learning_rate'" in capsys.readouterr().err


@pytest.mark.parametrize(("asked", "knob", "value"), [
    ({"optimizer_type": "Prodigy", "learning_rate": 1.0}, "kind", "prodigy"),
    ({"optimizer_type": "Prodigy", "learning_rate": 1.0}, "weight_decay", 0.0), ({"use_lion_optimizer": True}, "betas", [0.9, 0.99]),
    ({"use_8bit_adam": True}, "kind", "adamw8bit"),
    ({"lr_scheduler": "cosine_with_restarts"}, "decay", "restarts"), ({"lr_warmup_steps": 0.1}, "warmup", 160),
    ({"min_snr_gamma": 5.0}, "min_snr", 5.0), ({"noise_offset": 0.05}, "noise_offset", 0.05), ({"max_timestep": 500}, "highest", 0.5),
    ({"network_dim": None}, "rank", 4), ({"text_encoder_lr": 0.0}, "text_encoder", False),
    ({"unet_lr": 1e-4, "text_encoder_lr": 1e-4}, "lr", 1e-4),
    ({"network_module": "lycoris.kohya", "network_args": ["algo=loha"]}, "method", "loha"), ({"max_train_epochs": 2}, "steps", 20),
    ({"resolution": [64, 64]}, "size", 64), ({"gradient_accumulation_steps": 4}, "batch", 4), ({"max_grad_norm": 0.5}, "clip", 0.5),
])
def test_kohya_settings_one_by_one(asked: dict[str, object], knob: str, value: object) -> None:
    found = job(DEFAULTS | asked, 10, {})
    assert found.knobs[knob] == value and not found.problems
    assert found.knobs.keys() <= {*load_ops()["train_lora"].spec.setting}
