"""Textual inversion: only the new word's vectors are trained, and the file means the same here and in diffusers."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image as Pil

from safelight import progress
from safelight.families import Family
from safelight.patches import embedding as patch
from safelight.recipes.teaching import Plan
from safelight.recipes.textual_inversion import PHRASES, prepare
from safelight.runtime import lease
from safelight.store import Store, using
from safelight.train.lora_file import probe, write
from safelight.train.methods import Token
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.train.trainables.embedding import Vectors, embedding
from safelight.values import Blob, Caption, Dataset, Patch, Row
from tests import tiny
from tests.patching import look, same

SAID = ["a <new> apple", "night city"]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.loader(tmp_path_factory.mktemp("models"))


def moved(vectors: Vectors) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return {name: p.detach() + 0.1 * torch.randn_like(p) for name, p in vectors.parameters.items()}


@pytest.mark.parametrize(("layout", "named"), [
    ("sd1", "webui"), ("sd1", "diffusers"), ("taiyi", "webui"), ("sdxl", "webui"), ("refiner", "webui"), ("sd3", "webui"),
])
def test_the_file_means_what_was_trained(load: Any, tmp_path: Path, layout: str, named: str) -> None:
    family: Family = load(layout)
    plain = probe(family, SAID)  # first: some towers note in their configuration that they have run
    before = look(family)
    with embedding(family, Token(init_word="red apple", vectors=3, layout=named)) as vectors:  # type: ignore[arg-type]
        trained = moved(vectors)
        vectors.load(trained)
        said = probe(family, SAID)
        with vectors.off():
            assert torch.equal(probe(family, SAID), plain)
        write(tmp_path / "new.safetensors", vectors.file(trained), {})
        names = set(vectors.parameters)
    assert same(look(family), before)
    assert names == ({"clip_l", "clip_g"} if layout in ("sdxl", "sd3") else {"emb_params" if named == "webui" else "<new>"})
    assert not torch.allclose(said, plain, atol=1e-4)
    p = Patch("embedding", Blob.of(tmp_path / "new.safetensors"), options={"words": ["embedding:new", "<new>"]})
    with patch.embedding(family, p):
        assert torch.equal(probe(family, SAID), said)
        if layout != "sd3":  # T5 reads the word's letters
            assert torch.equal(probe(family, ["a embedding:new apple", "night city"]), said)


def test_it_begins_with_the_meaning_of_a_word(load: Any) -> None:
    family: Family = load("sd1")
    with embedding(family, Token(init_word="red", vectors=1)):
        ids = family.text.tokenizer("red", add_special_tokens=False)["input_ids"]  # type: ignore[attr-defined]
        assert len(ids) == 1
        assert torch.allclose(family.encode_text(["<new>"]).tokens, family.encode_text(["red"]).tokens, atol=1e-5)


@pytest.mark.parametrize("layout", ["sd1", "sdxl"])
def test_gradients_reach_the_vectors_alone(load: Any, layout: str) -> None:
    family: Family = load(layout)
    with embedding(family, Token(vectors=2)) as vectors:
        x = torch.randn(2, family.channels, 8, 8)
        family.predict(x, family.sigmas[[100, 600]], family.encode_text(SAID)).square().mean().backward()
        assert all(float(p.grad.abs().sum()) > 0 for p in vectors.parameters.values() if p.grad is not None)
        assert all(p.grad is not None for p in vectors.parameters.values())
        assert all(p.grad is None for net in family.trainable().values() for p in net.parameters())


@pytest.mark.parametrize("named", ["webui", "diffusers"])
def test_diffusers_reads_the_file(tmp_path: Path, named: str) -> None:
    family = tiny.load(tiny.sd1(tmp_path / "m"), device=torch.device("cpu"), dtype=torch.float32)
    # one vector and nothing beside it: this tokenizer, unlike CLIP's, has tokens for spaces, which the two put elsewhere
    with embedding(family, Token(vectors=1, layout=named)) as vectors:  # type: ignore[arg-type]
        vectors.load(moved(vectors))
        write(tmp_path / "new.safetensors", vectors.file(dict(vectors.parameters)), {})
        ours = family.encode_text(["<new>"]).tokens.detach()
    nets: Any = dict(family.trainable())
    words = family.text.tokenizer  # type: ignore[attr-defined]
    rest: Any = dict.fromkeys(("safety_checker", "feature_extractor"))
    noise = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipe = StableDiffusionPipeline(**nets, **rest, tokenizer=words, scheduler=noise, requires_safety_checker=False)
    pipe.load_textual_inversion(str(tmp_path / "new.safetensors"), token="<new>")
    theirs = pipe.encode_prompt("<new>", "cpu", 1, False)[0]
    assert torch.allclose(theirs, ours, atol=1e-5)


def test_a_caption_with_the_word_stays_and_others_become_phrases(tmp_path: Path) -> None:
    model = tiny.model(tiny.sd1(tmp_path / "m"))
    said = {"0.png": "<new>, blue background", "1.png": "a red apple", "2.png": "<new>", "3.png": ""}
    rows = []
    for i, (name, text) in enumerate(said.items()):
        Pil.new("RGB", (32, 32), (60 * i, 0, 0)).save(tmp_path / name)
        rows.append(Row(Blob.of(tmp_path / name), name, 32, 32, (Caption("file", text),) if text else ()))
    plan = Plan(Token(), Optimizer(), Batches(batch=1), Objective(prior=0.0), Watch(held_out=0.0), 0)
    with using(Store(tmp_path / "store")), lease(model, train=True) as family:
        lesson = progress.watch(prepare("train_embedding", family, model, Dataset(tuple(rows)), plan))
    called = {kept.name: kept.captions for kept in lesson.learn.kept}
    phrases = tuple(phrase.format("<new>") for phrase in PHRASES)
    assert called == {"0.png": ("<new>, blue background",), "1.png": phrases, "2.png": phrases, "3.png": phrases}


def test_models_that_read_text_otherwise_are_refused(load: Any) -> None:
    with pytest.raises(ValueError, match="kolors model has no CLIP text encoder"), embedding(load("kolors"), Token()):
        pass
    with pytest.raises(ValueError, match="expected a word each"), embedding(load("sd1"), Token(init_word=" ")):
        pass
