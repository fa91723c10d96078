"""Training a ControlNet: it learns to follow, the model stays as it was, and a stopped run ends as one that was not."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image as Pil
from safetensors import safe_open
from safetensors.torch import load_file

from safelight import runtime
from safelight.patches import control
from safelight.recipes import controlnet, denoising, shared
from safelight.recipes.controlnet import Plan, train_control
from safelight.store import Store, current, using
from safelight.train import cache
from safelight.train.lessons import Slot
from safelight.train.settings import Batches, Optimizer, Watch
from safelight.values import Blob, Caption, Dataset, Model, Row
from tests import tiny
from tests.patching import asked, by_hand
from tests.stopping import end

SIDE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny.model(tiny.mini(tmp_path_factory.mktemp("models") / "mini"))


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Bright boxes at eight places."""
    rows = []
    for i in range(8):
        pixels = np.full((SIDE, SIDE, 3), 40, np.uint8)
        pixels[8 * (i % 4):8 * (i % 4) + 24, 5 * i:5 * i + 20] = 220
        path = tmp_path / f"{i}.png"
        Pil.fromarray(pixels).save(path)
        rows.append(Row(Blob.of(path), path.name, SIDE, SIDE, (Caption("file", "a red apple"),)))
    return Dataset(tuple(rows))


def plan(**changes: Any) -> Plan:
    settings = {"by": "canny", "attention": False, "optimizer": Optimizer(lr=3e-3, warmup=2), "batches": Batches(steps=6, batch=2),
                "watch": Watch(held_out=0.25, every=3, samples=1), "seed": 5}
    return Plan(**settings | changes)


def test_a_stopped_run_ends_with_the_same_file(model: Model, data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "CHECKPOINT_SECONDS", 0.0)
    with using(Store(tmp_path / "store")):
        straight = end(train_control(model, data, plan(), tmp_path / "a", "{}"))
        assert end(train_control(model, data, plan(), tmp_path / "b", "{}"), stop_after=4) is None
        resumed = end(train_control(model, data, plan(), tmp_path / "b", "{}"))
    assert straight is not None and resumed is not None
    assert straight.weights.sha256 == resumed.weights.sha256
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("attention", [True, False])
def test_what_was_trained_is_read_back_and_steers(model: Model, data: Dataset, tmp_path: Path, attention: bool) -> None:
    with using(Store(tmp_path / "store")):
        patch = end(train_control(model, data, plan(attention=attention), tmp_path / "run", "{}"))
        assert patch is not None
    config = control.describe(patch.weights.path)
    assert config == patch.options["config"]
    assert (config["mid_block_type"] == "UNetMidBlock2D") is not attention
    with safe_open(patch.weights.path, "pt") as f:
        assert f.metadata()["modelspec.architecture"].endswith("/controlnet")
        assert all(f.get_tensor(name).dtype == torch.float16 for name in f.keys())  # noqa: SIM118, it is no mapping
    with runtime.lease(model, dtype=torch.float32, holder="test") as family:
        net = control.load(family, patch.weights.path, config)
        x, cond = torch.randn(1, family.channels, 8, 8, generator=torch.Generator().manual_seed(1)), family.encode_text([""])
        plain = family.predict(x, family.sigmas[[500]], cond)
        for strength, moved in ((0.0, False), (1.0, True)):
            with control.attached(family, net, torch.ones(1, SIDE, SIDE, 3), strength=strength):
                assert bool((family.predict(x, family.sigmas[[500]], cond) - plain).abs().max() > 1e-5) is moved
    assert {"record.json", "samples/step-000006-0.png"} <= set(patch.files)


def test_diffusers_loads_what_is_saved(model: Model, data: Dataset, tmp_path: Path) -> None:
    """From the folder, and from the single file beside a configuration; in diffusers it adds what it adds here."""
    with using(Store(tmp_path / "store")):
        patch = end(train_control(model, data, plan(), tmp_path / "run", "{}"))
        assert patch is not None
        assert sorted(p.name for p in patch.save(tmp_path / "out")) == ["config.json", "diffusion_pytorch_model.safetensors"]
    ours = load_file(patch.weights.path)
    options: dict[str, Any] = {"local_files_only": True, "torch_dtype": torch.float16}
    folder = ControlNetModel.from_pretrained(tmp_path / "out", **options)
    single = ControlNetModel.from_single_file(patch.weights.path, config=str(tmp_path / "out"), **options)
    assert all(net.state_dict().keys() == ours.keys() and all(torch.equal(t, ours[n]) for n, t in net.state_dict().items())
               for net in (folder, single))
    hint = torch.rand(1, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(3))
    with runtime.lease(model, dtype=torch.float32, holder="test") as family:
        net = control.load(family, patch.weights.path, patch.options["config"])
        with control.attached(family, net, hint):
            said = family.predict(*asked(family))
        assert torch.allclose(said, by_hand(family, [(folder.float(), hint, 1.0)]), atol=1e-4)
        assert (said - family.predict(*asked(family))).abs().max() > 1e-4


def prepared(family: Any, model: Model, data: Dataset, wanted: Plan, given: Dataset | None = None) -> tuple[Any, controlnet.Hints]:
    """The lesson and its hints, filled."""

    def work() -> Any:
        lesson = yield from denoising.prepare("train_control", family, model, data, wanted)
        shown = controlnet.Hints(cache.Shelf(current().folder("encoded")), "given" if given else wanted.by,
                                 controlnet.pairs(family, data, lesson, wanted, given))
        yield from shown.fill()
        return lesson, shown

    return end(work())  # type: ignore[return-value]


def test_it_learns_to_follow(model: Model, data: Dataset, tmp_path: Path) -> None:
    """On the very pictures and noise of its steps the loss falls below what the network says without it."""
    with using(Store(tmp_path / "store")), runtime.lease(model, dtype=torch.float32, train=True, holder="test") as family:
        wanted = plan(batches=Batches(steps=1, batch=4, drop=0.0), watch=Watch(held_out=0.0), optimizer=Optimizer(checkpointing=True))
        lesson, shown = prepared(family, model, data, wanted)
        copy = controlnet.begin(family, wanted)
        assert copy.net.is_gradient_checkpointing
        net = denoising.Net(family, copy, lesson, wanted, lambda slots: copy.steering(shown.of(slots)))
        before = next(net.losses(0)).item()
        optimizer = torch.optim.AdamW(copy.parameters.values(), lr=3e-3)
        for _ in range(25):
            loss = next(net.losses(0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert next(net.losses(0)).item() < 0.8 * before
        with copy.off():
            assert next(net.losses(0)).item() == pytest.approx(before, rel=1e-5)
        assert all(p.grad is None for p in family.trainable()["unet"].parameters())


def test_hints_are_of_the_window_that_is_shown(model: Model, data: Dataset, tmp_path: Path) -> None:
    """Made once of the very crop, mirrored where it is, or given under the same name."""
    rng = np.random.default_rng(4)
    for row in data:
        Pil.fromarray(rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)).save(tmp_path / f"hint-{row.name}")
    given = Dataset(tuple(replace(row, picture=Blob.of(tmp_path / f"hint-{row.name}")) for row in reversed(data.kept)))
    wanted = plan(by="invert", batches=Batches(steps=1, batch=4, crops=2, flip=True, size=32))
    with using(Store(tmp_path / "store")), runtime.lease(model, dtype=torch.float32, train=True, holder="test") as family:
        for hints in (None, given):
            lesson, shown = prepared(family, model, data, wanted, hints)
            slots = [Slot(n, lesson.learn, n, n % 4, "") for n in range(4)]
            for slot, seen in zip(slots, shown.of(slots), strict=True):
                kept = lesson.learn.kept[slot.item]
                row, other, cut = shown.pairs[kept.keys[slot.cut]]
                assert row.name == kept.name and cut.mirrored is (slot.cut >= 2)
                pixels = cut.of(np.asarray(Pil.open((other or row).picture.path))) / np.float32(255)
                assert np.abs((pixels if hints else 1 - pixels) - seen.numpy()).max() < 0.005
        with pytest.raises(ValueError, match=r"hints: 1 of 8 pictures have none, such as 7.png"):
            prepared(family, model, data, wanted, Dataset(given.rows[1:]))
