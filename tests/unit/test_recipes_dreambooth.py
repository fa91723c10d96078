"""DreamBooth: what is called what, that the class's pictures are the model's own and are seen, and what is measured."""
from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from safelight import runtime
from safelight.engine import finish
from safelight.recipes import denoising, dreambooth, shared
from safelight.recipes.dreambooth import rare, train_dreambooth
from safelight.recipes.teaching import Plan
from safelight.scoring import clip
from safelight.scoring.diversity import diversity
from safelight.scoring.drift import drift
from safelight.store import Store, using
from safelight.train.methods import HELD, Subject
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.values import Blob, Caption, Dataset, Model, Row
from tests import tiny
from tests import towers as small

SUBJECT = Subject(rank=2, instance="a sks apple", class_name="a apple", classes=3, judged=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.model(tiny.sd1(tmp_path_factory.mktemp("models") / "sd1"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = []
    for i, said in enumerate(["a sks apple, on white", "something", "", "else"]):
        Pil.fromarray(np.random.default_rng(i).integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(Row(Blob.of(tmp_path / f"{i}.png"), f"{i}.png", 32, 32, (Caption("file", said),) if said else ()))
    return Dataset(tuple(rows))


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = small.write(tmp_path / "towers") / "clip"
    monkeypatch.setattr(clip, "embedded", lambda: place)


def plan(subject: Subject = SUBJECT, objective: Objective = HELD) -> Plan:
    batches = Batches(steps=2, batch=4, drop=0.0)
    return Plan(subject, Optimizer(lr=0.05, warmup=0), batches, objective, Watch(held_out=0.25, every=1, samples=0), 0)


@pytest.mark.parametrize(("instance", "named", "word"), [
    ("a sks toy", "a toy", "sks"), ("photo of ohwx man", "photo of man", "ohwx"), ("a zwx qqv dog", "a dog", "zwx qqv"),
])
def test_the_rare_word_is_what_the_class_has_not(instance: str, named: str, word: str) -> None:
    assert rare(Subject(instance=instance, class_name=named)) == word


@pytest.mark.parametrize("instance", ["a toy", "x a y toy"])
def test_a_prompt_without_a_rare_word_is_refused(instance: str) -> None:
    with pytest.raises(ValueError, match="train_dreambooth: instance"):
        rare(Subject(instance=instance, class_name="a toy"))


@pytest.mark.parametrize(("prior", "own", "seen"), [(0.5, 3, 2), (0.0, 0, 0)])
def test_half_of_a_batch_are_the_models_own_pictures_of_the_class(
    model: Model, data: Dataset, tmp_path: Path, prior: float, own: int, seen: int,
) -> None:
    asked = plan(objective=replace(HELD, prior=prior, prior_weight=0.7, trigger="sks"))
    called = Dataset(tuple(shared.called(row, "sks", Caption("dreambooth", SUBJECT.instance)) for row in data))
    with using(Store(tmp_path / "store")), runtime.lease(model, dtype=torch.float32, holder="test") as family:
        lesson = finish(dreambooth.prepare("train_dreambooth", family, model, called, asked, subject=SUBJECT))
        assert {c for kept in (*lesson.learn.kept, *lesson.held.kept) for c in kept.captions} == {"a sks apple, on white", "a sks apple"}
        assert [kept.captions for kept in lesson.own.kept] == [("a apple",)] * own
        if own:
            drawn = torch.stack([lesson.own.read(i)["latent"] for i in range(own)])
            assert not torch.allclose(drawn[0], drawn[1])
        net = denoising.Net(family, Nothing(), lesson, asked)
        slots = net.course.slots(0)
        assert [slot.caption for slot in slots if slot.quiet] == ["a apple"] * seen
        [part] = net.course.parts(0, [range(4)])
        errors = net.errors(part)
        assert torch.allclose(net.part_loss(part), (errors[: 4 - seen].sum() + 0.7 * errors[4 - seen :].sum()) / 4)


class Nothing:
    """What is trained in these tests of the loss."""

    text = False


@pytest.mark.parametrize("whole", [False, True])
def test_both_failures_are_measured(model: Model, data: Dataset, tmp_path: Path, embedded: None, whole: bool) -> None:
    with using(Store(tmp_path / "store")):
        asked = plan(replace(SUBJECT, rank=16 if whole else 2, whole=whole, text_encoder=True))
        asked = replace(asked, optimizer=Optimizer(lr=0.005 if whole else 0.05, warmup=0), watch=replace(asked.watch, held_out=0.0))
        patch = finish(train_dreambooth(model, data, asked, tmp_path / "run", "{}"))
        record = json.loads(Path(patch.files["record.json"].path).read_text())
    assert patch.kind == ("full" if whole else "lora")
    found = record["dreambooth"]
    assert found["ratio"] == pytest.approx(found["diversity"] / found["diversity_before"], rel=0.05)
    assert found["drift"] > 0
    assert record["proof"]["matched"] == record["proof"]["total"] > 0
    with Pil.open(patch.files["dreambooth.png"].path) as sheet:
        assert sheet.width > 500


def test_a_model_that_has_not_moved_has_not_drifted(model: Model, data: Dataset, tmp_path: Path, embedded: None) -> None:
    with using(Store(tmp_path / "store")):
        patch = finish(train_dreambooth(model, data, plan(replace(SUBJECT, judged=0)), tmp_path / "run", "{}"))
        numbers, _ = finish(dreambooth.measured(model, replace(patch, strength=0.0), data.kept, replace(SUBJECT, judged=3)))
    assert numbers["drift"] == pytest.approx(0, abs=1e-3)


def test_diversity_and_drift_by_hand() -> None:
    x = np.eye(3, dtype=np.float32)
    assert diversity(x) == pytest.approx(1)
    assert diversity(np.stack([x[0], x[0], x[1]])) == pytest.approx(2 / 3)
    assert drift(x, x) == 0
    assert drift(x, np.roll(x, 1, axis=0)) == pytest.approx(1)
    half = np.float32([0.5**0.5, 0.5**0.5, 0])
    assert drift(x[:2], np.stack([half, x[1]])) == pytest.approx((1 - 0.5**0.5) / 2)
    with pytest.raises(ValueError, match="two or more"):
        diversity(x[:1])
    with pytest.raises(ValueError, match="same prompts"):
        drift(x, x[:2])
