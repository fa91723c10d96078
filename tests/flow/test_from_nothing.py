"""Models with random weights: what they are told, that they learn through the shared loop, resume exactly, and can be saved and read."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import UNet2DConditionModel
from PIL import Image as Pil

from safelight.cli import cli
from safelight.families import FAMILIES, Family
from safelight.families.sources import open_source
from safelight.op import load_ops
from safelight.recipes import shared
from safelight.recipes.full import train_full
from safelight.recipes.teaching import Plan
from safelight.runtime import lease
from safelight.store import Store, using
from safelight.train.methods import FREE, FullShape
from safelight.train.settings import Batches, Optimizer, Watch
from safelight.values import Blob, Caption, Dataset, Model, Patch, Row
from tests import tiny
from tests.stopping import end

OPS = load_ops()
KINDS: dict[str, tuple[str, ...]] = {"none": (), "class": ("cat", "guinea pig"), "text": ()}
WHAT = (("cat", 0.1), ("a guinea pig, asleep", 0.9))
"""What a picture is called, and how bright it is."""


@pytest.fixture(scope="module")
def like(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.model(tiny.mini(tmp_path_factory.mktemp("like") / "m"))


def new(like: Model, kind: str, **more: Any) -> Model:
    found = OPS["new_model"](like, conditioning=kind, labels=KINDS[kind], **more)
    assert isinstance(found, Model)
    return found


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    rows = []
    for i in range(4):
        said, bright = WHAT[i % 2]
        noise = np.random.default_rng(i).integers(0, 20, (64, 64, 3))
        Pil.fromarray((noise + 230 * bright).astype(np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(Row(Blob.of(tmp_path / f"{i}.png"), f"{i}.png", 64, 64, (Caption("file", said),)))
    return Dataset(tuple(rows))


def plan(steps: int) -> Plan:
    watch = Watch(held_out=0.0, every=steps, samples=0)
    return Plan(FullShape(), Optimizer(lr=2e-3, warmup=0), Batches(steps=steps, batch=2), FREE, watch, 0)


def told(f: Family, *prompts: str) -> torch.Tensor:
    """What the network says of the same noise under each prompt."""
    x = torch.randn(1, f.channels, 8, 8, generator=torch.Generator().manual_seed(1)).expand(len(prompts), -1, -1, -1)
    return f.predict(x, f.sigmas[[500]].expand(len(prompts)), f.encode_text(prompts))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_through_the_shared_loop_and_can_be_saved(like: Model, data: Dataset, tmp_path: Path, kind: str) -> None:
    model = new(like, kind)
    patch = OPS["train_full"](model, data, lr=2e-3, warmup=0, steps=6, batch=2, held_out=0.25, samples=0, every=6)
    held = json.loads(Path(patch.files["record.json"].path).read_text())["held_out"]
    assert held[-1][1] < 0.9 * held[0][1]
    trained = OPS["with_full"](model, patch)
    assert OPS["generate"](trained, "cat", seeds=[1], steps=2).pixels.shape == (1, 64, 64, 3)
    trained.save(tmp_path / "out")
    saved = tiny.model(tmp_path / "out")
    assert (saved.family, saved.fingerprint == model.fingerprint) == (model.family, False)
    with lease(saved, dtype=torch.float32) as f, torch.no_grad():
        out = told(f, "cat")
    with lease(trained, dtype=torch.float32) as f, torch.no_grad():
        assert torch.allclose(out, told(f, "cat"), atol=2e-2)  # the folder has 16 bits
    theirs = UNet2DConditionModel.from_pretrained(tmp_path / "out" / "unet")
    assert theirs.config.num_class_embeds == (3 if kind == "class" else None)


def test_a_class_is_what_its_name_stands_in_and_nothing_is_none(like: Model) -> None:
    with lease(new(like, "class"), dtype=torch.float32) as f:
        cat, pig, none, also = told(f, "a CAT, sitting", "guinea pig", "", "cat").detach()
        assert torch.allclose(cat, also, atol=1e-6)
        assert not torch.allclose(cat, pig, atol=1e-4) and not torch.allclose(cat, none, atol=1e-4)
        assert torch.allclose(pig, told(f, "a guinea pig").detach()[0], atol=1e-5)
        assert [f.tokens(text) for text in ("cat", "")] == [1, 0]
        with pytest.raises(ValueError, match="'concatenate' names no class of this model; expected one of cat, guinea pig, or nothing"):
            f.encode_text(["concatenate"])
        assert isinstance(f, FAMILIES["classes"])  # type: ignore[arg-type]


def test_a_model_that_is_told_nothing_says_the_same_to_every_text(like: Model) -> None:
    with lease(new(like, "none"), dtype=torch.float32) as f:
        a, b = told(f, "", "a red apple")
        assert torch.equal(a, b)
        x, weight = torch.randn(1, f.channels, 8, 8), next(f.trainable()["unet"].parameters()).requires_grad_(True)
        assert f.predict(x, f.sigmas[[10]], f.encode_text([""])).requires_grad
        assert not f.denoise(x, f.sigmas[[10]], f.encode_text([""])).requires_grad
        weight.requires_grad_(False)


def test_a_stopped_run_ends_with_the_same_file(like: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "CHECKPOINT_SECONDS", 0.0)
    model = new(like, "class")
    with using(Store(tmp_path / "store")):
        straight = end(train_full(model, data, plan(2), tmp_path / "a", "{}"))
        assert end(train_full(model, data, plan(2), tmp_path / "b", "{}"), stop_after=1) is None
        resumed = end(train_full(model, data, plan(2), tmp_path / "b", "{}"))
    assert straight is not None and resumed is not None
    assert straight.weights.sha256 == resumed.weights.sha256


def test_the_seed_makes_the_weights(like: Model, tmp_path: Path) -> None:
    first, other = new(like, "text"), new(like, "text", seed=1)
    assert first.fingerprint != other.fingerprint
    with using(Store(tmp_path / "another")):
        again = new(like, "text")
    assert (again.fingerprint, again.key) == (first.fingerprint, first.key)
    assert again.source != first.source
    assert open_source(first.source).fingerprint("vae") == open_source(like.source).fingerprint("vae")


@pytest.mark.parametrize(("given", "says"), [
    ({"conditioning": "class"}, "expected different names for class"),
    ({"conditioning": "class", "labels": ["cat", "Cat"]}, "expected different names for class"),
    ({"conditioning": "text", "labels": ["cat"]}, "expected different names for class"),
])
def test_names_go_with_classes(like: Model, given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OPS["new_model"](like, **given)


def test_the_command_saves_it(like: Model, tmp_path: Path) -> None:
    said = ["new-model", "--like", like.source, "--conditioning", "class", "--label", "cat", "--label", "dog", "-o", str(tmp_path / "out")]
    told = CliRunner().invoke(cli, said, catch_exceptions=False)
    assert told.exit_code == 0 and str(tmp_path / "out" / "model_index.json") in told.output
    saved = tiny.model(tmp_path / "out")
    assert saved.fingerprint == OPS["new_model"](like, conditioning="class", labels=["cat", "dog"]).fingerprint


def test_what_it_is_made_like_has_to_be_a_plain_folder(like: Model) -> None:
    plain = new(like, "none")
    with pytest.raises(ValueError, match="got a classes model; expected one such as mini or SD"):
        OPS["new_model"](plain, conditioning="text")
    with pytest.raises(ValueError, match="with 1 patches; expected a model in one folder"):
        OPS["new_model"](like.with_patch(Patch("full", Blob("x", "y"))))
