"""Captioners with networks: small real BLIP, LLaVA and ONNX files with random weights, against transformers' own processors."""
from __future__ import annotations

import csv
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import safelight as sl
from safelight.data.asking import Looking, Tagging
from safelight.data.captioners import Asked, blip, wd14
from safelight.data.captions import caption
from safelight.values import Blob, Caption, Dataset, Row
from tests.tiny import tokenizer

SIZES = ((40, 24), (20, 30), (16, 16))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, rng, rows = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for i, (width, height) in enumerate(SIZES):
        path = folder / f"{i}.png"
        Pil.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        rows.append(Row(Blob.of(path), path.name, width, height, (Caption("file", f"given {i}"),)))
    return Dataset(tuple(rows))


def said(data: Dataset, by: str, looking: Looking, tagging: Tagging | None = None) -> list[str]:
    work = caption(data, by, Asked(looking=looking, tagging=tagging or Tagging()))
    try:
        while True:
            next(work)
    except StopIteration as stop:
        return [r.captions[-1].text if r.captions[-1].by == by else "" for r in stop.value]


@pytest.fixture(scope="module")
def blip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words, folder = tokenizer(32), tmp_path_factory.mktemp("blip")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    marks = {"bos_token_id": 1, "sep_token_id": 2, "eos_token_id": 2, "pad_token_id": 0}
    text = {"vocab_size": len(words), "encoder_hidden_size": 32, "max_position_embeddings": 64, **shape, **marks}
    config = BlipConfig(text_config=text, vision_config={"image_size": 32, "patch_size": 8, **shape}, projection_dim=16)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        BlipForConditionalGeneration(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def test_blip_says_what_transformers_says(data: Dataset, blip_folder: Path) -> None:
    """Beam search over one batch, against BLIP's own image processor and a plain call of generate."""
    net = BlipForConditionalGeneration.from_pretrained(blip_folder).eval()
    shown = BlipImageProcessorPil(size={"height": 32, "width": 32})([Pil.open(r.picture.path) for r in data], return_tensors="pt")
    ours = np.stack([blip.prepared(Path(r.picture.path), 32, blip.MEAN, blip.STD) for r in data])
    assert np.abs(ours - shown["pixel_values"].numpy()).max() < 1e-6
    with torch.no_grad():
        ids = net.generate(pixel_values=shown["pixel_values"], num_beams=3, do_sample=False, max_length=12, min_length=4)
    expected = [" ".join(t.split()) for t in tokenizer(32).batch_decode(ids, skip_special_tokens=True)]
    asked = Looking(network=str(blip_folder), beam_search=True, num_beams=3, max_length=12, min_length=4, batch_size=3)
    assert said(data, "blip", asked) == expected and all(expected)


def test_blip_draws_the_same_words_again_and_others_with_another_seed(data: Dataset, blip_folder: Path) -> None:
    asked = Looking(network=str(blip_folder), max_length=16, batch_size=2)
    first = said(data, "blip", asked)
    assert said(data, "blip", dataclasses.replace(asked, max_data_loader_n_workers=2)) == first
    assert said(data, "blip", dataclasses.replace(asked, caption_seed=1)) != first


def test_a_prompt_is_gone_on_from_and_left_out(data: Dataset, blip_folder: Path) -> None:
    asked = Looking(network=str(blip_folder), prompt="a girl", beam_search=True, max_length=16)
    with_prompt = said(data, "blip", asked)
    assert all(not t.startswith("a girl") for t in with_prompt)
    assert with_prompt != said(data, "blip", dataclasses.replace(asked, prompt=""))


def test_the_layers_below_stay_and_the_network_is_part_of_the_key(data: Dataset, blip_folder: Path, tmp_path: Path) -> None:
    folder = Path(data.rows[0].picture.path).parent
    out = sl.caption(sl.folder(folder), by="blip", network=str(blip_folder), beam_search=True, max_length=8, min_length=1)
    assert [c.by for c in out.rows[0].captions] == ["blip"]
    with pytest.raises(ValueError, match=r"is not in .*safelight pull hf:nobody/nothing"):
        sl.caption(sl.folder(folder), by="blip", network="nobody/nothing")
    with pytest.raises(ValueError, match="min_length: got 9"):
        Looking(min_length=9, max_length=8)


CHAT = "{% for m in messages %}{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}{% endfor %} :"


@pytest.fixture(scope="module")
def vlm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words, folder = tokenizer(64), tmp_path_factory.mktemp("vlm")
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(image_size=32, patch_size=8, **shape),
        text_config=LlamaConfig(vocab_size=len(words), bos_token_id=1, eos_token_id=2, pad_token_id=0, **shape),
        image_token_index=words.convert_tokens_to_ids("<image>"), image_seq_length=16)
    eyes = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    with torch.random.fork_rng():
        torch.manual_seed(3)
        LlavaForConditionalGeneration(config).save_pretrained(folder)
    LlavaProcessor(eyes, words, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
                   chat_template=CHAT).save_pretrained(folder)
    return folder


def test_a_vision_language_model_answers(data: Dataset, vlm_folder: Path) -> None:
    """Greedy answers do not depend on how many pictures are asked about at once, and only the answer is kept."""
    asked = Looking(network=str(vlm_folder), prompt="a man", beam_search=True, max_length=10, min_length=3)
    alone = said(data, "vlm", asked)
    assert len(alone) == 3 and all(alone) and not any("a man" in t for t in alone)
    assert said(data, "vlm", dataclasses.replace(asked, batch_size=3)) == alone
    assert said(data, "vlm", dataclasses.replace(asked, prompt="a night city, a red apple")) != alone


def test_code_from_a_models_folder_is_never_run(data: Dataset, tmp_path: Path) -> None:
    mapped = dict.fromkeys(("AutoConfig", "AutoModelForImageTextToText", "AutoProcessor"), "evil.Evil")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": mapped}))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    with pytest.raises(ValueError, match="is no vision-language model that transformers has a class for"):
        said(data, "vlm", Looking(network=str(tmp_path)))
    assert not (tmp_path / "ran").exists()
    (tmp_path / "config.json").write_text('{"trust_remote_code": true}')
    with pytest.raises(ValueError, match="trust_remote_code"):
        said(data, "vlm", Looking(network=str(tmp_path)))


TAGS = [("general", 9), ("sensitive", 9), ("1girl", 0), ("long_hair", 0), ("^_^", 0), ("hatsune_miku", 4), ("simple_background", 0)]
SEEN = np.array([0.1, 0.8, 0.9, 0.5, 0.4, 0.95, 0.34], np.float32)


def tags_table(folder: Path) -> Path:
    with open(folder / "selected_tags.csv", "w", newline="") as f:
        csv.writer(f).writerows([["tag_id", "name", "category", "count"], *[[i, n, c, 9] for i, (n, c) in enumerate(TAGS)]])
    return folder / "selected_tags.csv"


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, "hatsune miku, 1girl, long hair, ^_^"),
    ({"character_tags_first": False}, "1girl, long hair, ^_^, hatsune miku"),
    ({"remove_underscore": False}, "hatsune_miku, 1girl, long_hair, ^_^"),
    ({"general_threshold": 0.3}, "hatsune miku, 1girl, long hair, ^_^, simple background"),
    ({"character_threshold": 0.96}, "1girl, long hair, ^_^"),
    ({"undesired_tags": ("long_hair", "1girl")}, "hatsune miku, ^_^"),
    ({"always_first_tags": ("1girl", "absent")}, "1girl, hatsune miku, long hair, ^_^"),
    ({"rating": "first"}, "sensitive, hatsune miku, 1girl, long hair, ^_^"),
    ({"rating": "last"}, "hatsune miku, 1girl, long hair, ^_^, sensitive"),
])
def test_which_tags_are_said(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert wd14.chosen(SEEN, wd14.Tags.of(tags_table(tmp_path)), dataclasses.replace(Tagging(), **changes)) == expected


def test_pictures_lie_in_the_middle_of_a_white_square_blue_first(tmp_path: Path) -> None:
    Pil.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "a.png")
    x = wd14.prepared(tmp_path / "a.png", 20)
    assert x.shape == (20, 20, 3) and x.dtype == np.float32
    assert x[10, 10].tolist() == [0, 0, 255] and x[0, 0].tolist() == [255, 255, 255]


def network(path: Path, side: int, batch: int | str) -> np.ndarray:
    """A tagger of one layer: the mean of each channel / 255 through a matrix and a sigmoid; returns the matrix."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    matrix = np.random.default_rng(1).normal(0, 8, (3, len(TAGS))).astype(np.float32)
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0), helper.make_node("Div", ["m", "top"], ["d"]),
             helper.make_node("MatMul", ["d", "w"], ["l"]), helper.make_node("Sigmoid", ["l"], ["y"])]
    held = {"axes": np.array([1, 2], np.int64), "top": np.array(255, np.float32), "w": matrix}
    graph = helper.make_graph(nodes, "tagger", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, side, side, 3])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, len(TAGS)])],
                              [numpy_helper.from_array(v, n) for n, v in held.items()])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return matrix


@pytest.mark.parametrize("batch", [1, 2, "N"])
def test_a_wd_tagger_runs_whatever_its_batch(batch: int | str, data: Dataset, tmp_path: Path) -> None:
    matrix, table = network(tmp_path / "model.onnx", 16, batch), wd14.Tags.of(tags_table(tmp_path))
    means = np.stack([wd14.prepared(Path(r.picture.path), 16).mean(axis=(0, 1)) / 255 for r in data])
    expected = [wd14.chosen(p, table, Tagging()) for p in (1 / (1 + np.exp(-means @ matrix))).astype(np.float32)]
    assert said(data, "wd14", Looking(network=str(tmp_path), batch_size=3)) == expected and any(expected)


def test_a_tagger_without_its_runtime_or_table_says_so(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"has no model\.onnx and no selected_tags\.csv"):
        said(data, "wd14", Looking(network=str(tmp_path)))
    tags_table(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"pip install 'safelight\[onnx\]'"):
        said(data, "wd14", Looking(network=str(tmp_path)))
