"""The model in the package: what it weighs, that it draws what it is asked for, that diffusers loads it, and the whole way with it."""
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import safelight as sl
from safelight.cli import cli
from safelight.embedded import WEIGHTS, vocabulary
from safelight.sampling.settings import Sampling
from safelight.scoring.clip import ClipTowers

ROOT = Path(__file__).parents[2]


def corners(pixels: np.ndarray) -> np.ndarray:
    """(B, 3) mean colour of the upper corners, 0 to 255."""
    return np.concatenate([pixels[:, :10, :10], pixels[:, :10, -10:]], axis=2).mean((1, 2)) * 255


def test_the_folder_is_small_complete_and_half_precision() -> None:
    files = [p for p in WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 64_000_000
    index = json.loads((WEIGHTS / "model_index.json").read_text())
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        assert index[part][1]
        assert (WEIGHTS / part).is_dir()
    card = (WEIGHTS / "README.md").read_text()
    for needed in ("license: apache-2.0", "CC BY 4.0", "MIT", "Draftbit", "## Limits", "## Measured"):
        assert needed in card


@pytest.mark.parametrize("colour", ["yellow", "blue", "pink"])
def test_the_background_is_the_one_asked_for_in_both_languages(colour: str) -> None:
    wanted = np.array([int(vocabulary.BACKGROUND_HEX[colour][i:i + 2], 16) for i in (1, 3, 5)])
    en, zh = vocabulary.BACKGROUNDS[colour]
    for prompt in (f"a smiling girl with long black hair, {en} background", f"一个黑色长发的女孩,微笑,{zh}背景"):
        drawn = sl.generate(sl.model("mini"), prompt, seeds=[1, 2], sampling=Sampling(steps=8))
        assert drawn.pixels.shape == (2, 128, 128, 3)
        assert np.abs(corners(drawn.pixels) - wanted).max() < 45


def test_the_same_seed_is_the_same_picture_and_another_is_not() -> None:
    model = sl.model("mini")
    first = sl.generate(model, "a beach at sunset", seeds=[5], sampling=Sampling(steps=4))
    again = sl.generate(model, "a beach at sunset", seeds=[5, 6], sampling=Sampling(steps=4))
    other = sl.generate(model, "a beach at sunset", seeds=[6], sampling=Sampling(steps=4))
    assert np.abs(first.pixels[0] - again.pixels[0]).max() < 0.05  # a batch of two rounds elsewhere
    assert np.abs(other.pixels[0] - again.pixels[1]).max() < 0.05
    assert np.abs(first.pixels[0] - other.pixels[0]).max() > 0.2


def test_diffusers_loads_the_folder_as_it_is() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    drawn = pipe("a smiling girl with long black hair, yellow background", num_inference_steps=6, guidance_scale=4.0,
                 generator=torch.Generator().manual_seed(0), output_type="np").images
    wanted = np.array([int(vocabulary.BACKGROUND_HEX["yellow"][i:i + 2], 16) for i in (1, 3, 5)])
    assert np.abs(corners(drawn) - wanted).max() < 45


def test_the_clip_tells_backgrounds_and_scenes_apart() -> None:
    from random import Random

    from safelight.embedded.render import picture

    towers = ClipTowers.load()
    scenes = list(vocabulary.SCENES)
    pixels = np.stack([np.asarray(picture({"kind": "scene", "scene": s, "time": "day"}, Random(9)), np.float32) / 255 for s in scenes])
    for language in (0, 1):
        similarity = towers.image(pixels) @ towers.text([vocabulary.SCENES[s][language] for s in scenes]).T
        assert (similarity.argmax(1) == np.arange(len(scenes))).mean() > 0.8


def test_the_whole_way_from_the_command_line(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a smiling girl with long purple hair, in pixel style\na red heart, in pixel style\n", "utf-8")
    out, some = tmp_path / "made", tmp_path / "some"
    some.mkdir()
    for name in ("person-0[1-8]*", "person-11*", "broken*", "thumbnail*"):
        for file in (ROOT / "examples/pixel-people").glob(name):
            shutil.copy(file, some)
    asked = ["develop", str(some), "--trigger", "in pixel style", "--prompts", str(prompts), "--steps", "3"]
    told = CliRunner().invoke(cli, [*asked, "--out", str(out)], catch_exceptions=False)
    assert told.exit_code == 0
    lines = dict(line.split(": ", 1) for line in told.output.splitlines()[-3:])
    assert list(lines) == ["sheet", "lora", "report"]
    assert Path(lines["lora"]).stat().st_size > 100_000
    page = Path(lines["report"]).read_text("utf-8")
    assert "in pixel style" in page
    assert "near duplicate" in page
    assert "<script src" not in page
    assert len(list((out / "after").glob("*.png"))) == 2
    history = str(sl.why(next((out / "after").glob("*.png"))))
    for op in ("folder", "curate", "caption", "train_lora", "with_lora", "storyboard"):
        assert op in history
