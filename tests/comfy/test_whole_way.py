"""From a folder of pictures to a report in one graph that has ops of ours and node classes of ComfyUI's, drawn as an editor saves it."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Pil

from safelight import comfy, runtime
from safelight.cli import cli
from safelight.comfy import Places, object_info
from safelight.comfy.convert import widget_inputs
from safelight.engine import finish
from safelight.folders import roots
from safelight.store import Store
from tests import tiny
from tests.comfy.prompts import node


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Places]:
    (tmp_path / "pictures").mkdir()
    for i in range(4):
        pixels = np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)
        Pil.fromarray(pixels).save(tmp_path / "pictures" / f"{i}.png")
        (tmp_path / "pictures" / f"{i}.txt").write_text("a red apple on white")
    yield Places(roots(), tmp_path / "input", tmp_path / "out")
    runtime.release()


def whole(tmp_path: Path) -> dict[str, Any]:
    tiny.mini(tmp_path / "tiny")
    teach = {"steps": 2, "batch": 1, "size": 64, "rank": 2, "samples": 0, "held_out": 0, "warmup": 0, "text_encoder": False, "seed": 1}
    return {
        "1": node("folder", path=str(tmp_path / "pictures")),
        "2": node("curate", data=["1", 0], min_side=32, near_duplicates=0, min_contrast=0, min_sharpness=0),
        "3": node("caption", data=["2", 0], by="file", trigger="in my style"),
        "4": node("model", name=str(tmp_path / "tiny")),
        "5": node("train_lora", model=["4", 0], data=["3", 0], alpha="", betas="0.9,0.99", **teach),
        "6": node("with_lora", model=["4", 0], lora=["5", 0], strength=1.0, text_strength=""),
        "7": node("generate", model=["6", 0], prompt="a red apple in my style", seeds="1..2", width=64, height=64, steps=2, scale=3.0),
        "8": node("score", image=["7", 0], by="sharpness,colourfulness"),
        "9": node("report", data=["3", 0], patch=["5", 0], after=["8", 0], title="the whole way"),
        "10": node("CLIPTextEncode", clip=["6", 1], text="night city"),
        "11": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "12": node("KSampler", model=["6", 0], seed=3, steps=2, cfg=2.0, sampler_name="euler", scheduler="normal", positive=["10", 0],
                   negative=["10", 0], latent_image=["11", 0], denoise=1.0),
        "13": node("VAEDecode", samples=["12", 0], vae=["6", 2]),
        "14": node("ImageBatch", image1=["7", 0], image2=["13", 0]),
        "15": node("SaveImage", images=["14", 0], filename_prefix="both"),
    }


def as_drawn(prompt: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The prompt as an editor's workflow, by what /object_info says alone."""
    nodes, links = [], []
    for key, entry in prompt.items():
        known, given = info[entry["class_type"]], entry["inputs"]
        inputs: list[dict[str, Any]] = []
        for name, value in given.items():
            if isinstance(value, list):
                links.append([len(links) + 1, int(value[0]), value[1], int(key), len(inputs), known["output"]])
                inputs.append({"name": name, "type": "*", "link": len(links)})
        values: list[Any] = []
        for name, spec, extra in widget_inputs(known):
            default = (spec[1] if len(spec) > 1 else {}).get("default", "")
            values += [given.get(name, default), *["fixed"] * extra]
        nodes.append({"id": int(key), "type": entry["class_type"], "mode": 0, "inputs": inputs, "outputs": [], "widgets_values": values})
    return {"nodes": nodes, "links": links, "version": 0.4}


def test_the_whole_way_in_one_graph(here: Places, tmp_path: Path) -> None:
    files = finish(comfy.run(whole(tmp_path), here, store=Store(tmp_path / "store")))
    assert set(files) == {"9", "15"}
    assert [f.name for f in files["15"]] == ["both_00001_.png", "both_00002_.png", "both_00003_.png"]
    page = next(f for f in files["9"] if f.is_file()).read_text("utf-8")
    assert "the whole way" in page


def test_drawn_in_an_editor_and_run_from_the_command_line(here: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every widget has its default, as an editor sends it: a number that may be nothing is an empty text."""
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAFELIGHT_MODELS", "")
    drawn = as_drawn(whole(tmp_path), object_info(here))
    file = tmp_path / "whole.json"
    file.write_text(json.dumps(drawn))
    told = CliRunner().invoke(cli, ["run", str(file), "--check"], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    told = CliRunner().invoke(cli, ["run", str(file), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert told.exit_code == 0, told.output
    assert len(list((tmp_path / "out").glob("both_*.png"))) == 3 and "the whole way" in next((tmp_path / "out").rglob("*.html")).read_text()
