"""Data-Juicer's filters that look with a network, on tiny networks with random weights, against the networks called directly."""
from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from safelight.data.juicer import run_recipe
from safelight.data.juicer.networks import network
from safelight.data.juicer.recipe import checked

TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures in two rows."""
    folder = tmp_path_factory.mktemp("pictures")
    draw = np.random.default_rng(3)
    for i in range(3):
        Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    told = [{"text": "<__dj__image> a fox <|__dj__eoc|> <__dj__image> snow", "images": ["0.png", "1.png"]},
            {"text": "no token", "images": ["2.png"]}]
    (folder / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in told))
    return folder


def stats(data: Path, out: Path, step: dict[str, Any], *, known: Path | None = None) -> list[dict[str, Any]]:
    for file in data.glob("*.png"):
        os.utime(file, (1.6e9, 1.6e9))  # what is younger than two seconds is not kept
    made = checked({"dataset_path": str(data / "data.jsonl"), "export_path": str(out / "r.jsonl"), "process": [step]}, "test")
    done = run_recipe(made, known=known)
    assert done.stats is not None and not done.faults
    return [json.loads(line)["__dj__stats__"] for line in done.stats.read_text().splitlines()]


def pixels(data: Path, name: str, side: int, mean: float = 0.5, std: float = 0.5) -> torch.Tensor:
    array = np.asarray(Image.open(data / name).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255
    return torch.from_numpy(((array - mean) / std).transpose(2, 0, 1)[None].copy())


def described(folder: Path, side: int, kind: str) -> None:
    said = {"image_processor_type": kind, "size": {"height": side, "width": side}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
            "do_resize": True, "resample": 3, "do_center_crop": False, "do_normalize": True, "do_rescale": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))


@pytest.mark.parametrize(("name", "key", "stat"), [
    ("image_nsfw_filter", "hf_nsfw_model", "image_nsfw_score"), ("image_watermark_filter", "hf_watermark_model", "image_watermark_prob")])
def test_classifiers(name: str, key: str, stat: str, data: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    net = ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_labels=2, **TOWER)).eval()
    net.save_pretrained(tmp_path / "net")
    described(tmp_path / "net", 32, "ViTImageProcessor")
    found = stats(data, tmp_path, {name: {key: str(tmp_path / "net"), ("max_score" if "nsfw" in name else "prob_threshold"): 1.0}})
    with torch.inference_mode():
        want = [float(net(pixel_values=pixels(data, f"{i}.png", 32)).logits.softmax(-1)[0, 1]) for i in range(3)]
    assert [v for s in found for v in s[stat]] == pytest.approx(want, abs=1e-6)
    assert len({round(v, 6) for v in want}) == 3


def test_another_network_of_the_same_name_is_asked_again(data: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        ViTForImageClassification(ViTConfig(image_size=32, patch_size=16, num_labels=2, **TOWER)).save_pretrained(tmp_path / "net")
        described(tmp_path / "net", 32, "ViTImageProcessor")
        network.cache_clear()
        found.append(stats(data, tmp_path, {"image_nsfw_filter": {"hf_nsfw_model": str(tmp_path / "net"), "max_score": 1.0}},
                           known=tmp_path / "measures.sqlite"))
    with sqlite3.connect(tmp_path / "measures.sqlite") as kept:
        assert kept.execute("SELECT COUNT(*), COUNT(DISTINCT question) FROM answers").fetchone() == (6, 2)
    kept.close()
    assert found[0] == found[1] != found[2]


def test_aesthetics_are_the_heads_of_the_embedding(data: Path, tmp_path: Path) -> None:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    folder = tmp_path / "aesthetics-predictor-tiny"
    net = CLIPVisionModelWithProjection(CLIPVisionConfig(image_size=32, patch_size=16, projection_dim=8, **TOWER)).eval()
    net.save_pretrained(folder)
    described(folder, 32, "CLIPImageProcessor")
    first, last = torch.nn.Linear(8, 4), torch.nn.Linear(4, 1)
    state = load_file(folder / "model.safetensors")
    state |= {"layers.0.weight": first.weight.data, "layers.0.bias": first.bias.data,
              "layers.7.weight": last.weight.data, "layers.7.bias": last.bias.data}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    found = stats(data, tmp_path, {"image_aesthetics_filter": {"hf_scorer_model": str(folder), "min_score": -9.0, "max_score": 9.0}})
    with torch.inference_mode():
        embeds = [net(pixel_values=pixels(data, f"{i}.png", 32)).image_embeds for i in range(3)]
        want = [float(last(first(e / e.norm()))) / 10 for e in embeds]
    assert [v for s in found for v in s["image_aesthetics_scores"]] == pytest.approx(want, abs=1e-6)


def test_the_embedded_encoders_compare_parts_with_their_pictures(data: Path, tmp_path: Path) -> None:
    from safelight.pictures import floats, read
    from safelight.scoring.clip import ClipTowers

    step = {"image_text_similarity_filter": {"hf_clip": "embedded", "min_score": -1.0, "horizontal_flip": True}}
    found = stats(data, tmp_path, step)
    towers = ClipTowers.load()
    looked = towers.image(np.stack([floats(read(data / f"{i}.png"))[:, ::-1] for i in range(2)]))
    want = (looked * towers.text(["a fox", "snow"])).sum(axis=1)
    assert found[0]["image_text_similarity"] == pytest.approx(want.tolist(), abs=1e-5)
    assert found[1]["image_text_similarity"] == []


def test_blip_says_whether_they_belong_together(data: Path, tmp_path: Path) -> None:
    from transformers import BlipConfig, BlipForImageTextRetrieval
    from transformers.models.blip.configuration_blip import BlipTextConfig, BlipVisionConfig

    from safelight.data.juicer.networks import EMBEDDED, Network

    torch.manual_seed(0)
    words = Network(EMBEDDED, "CLIPModel").tokenizer
    text = BlipTextConfig(vocab_size=len(words), encoder_hidden_size=16, max_position_embeddings=32, **TOWER)
    config = BlipConfig(text_config=text.to_dict(), vision_config=BlipVisionConfig(image_size=32, patch_size=16, **TOWER).to_dict(),
                        image_text_hidden_size=8)
    net = BlipForImageTextRetrieval(config).eval()
    net.save_pretrained(tmp_path / "net")
    words.save_pretrained(tmp_path / "net")
    described(tmp_path / "net", 32, "BlipImageProcessor")
    found = stats(data, tmp_path, {"image_text_matching_filter": {"hf_blip": str(tmp_path / "net"), "min_score": 0.0}})
    tokens = words(["snow"], return_tensors="pt")
    with torch.inference_mode():
        given = {k: tokens[k] for k in ("input_ids", "attention_mask")}
        scores = net(**given, pixel_values=pixels(data, "1.png", 32)).itm_score
    assert found[0]["image_text_matching_score"][1] == pytest.approx(float(scores.softmax(-1)[0, 1]), abs=1e-6)


def test_a_network_that_is_not_there_ends_the_run(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="safelight pull"):
        stats(data, tmp_path, {"image_nsfw_filter": {"hf_nsfw_model": "nobody/nothing"}})
    assert not (tmp_path / "r.jsonl").exists()
