"""Training a ControlNet: it learns to follow, the model stays as it was, and a stopped run ends as one that was not."""
from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors import safe_open

from safelight import runtime
from safelight.patches import control
from safelight.recipes import controlnet, shared
from safelight.recipes.controlnet import Plan, train_control
from safelight.store import Store, using
from safelight.train.settings import Batches, Optimizer, Watch
from safelight.values import Blob, Caption, Dataset, Model, Patch, Row
from tests import tiny

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


def end(work: Generator[Any, Any, Patch], stop_after: int | None = None) -> Patch | None:
    """The patch; None when the work was closed after so many events of training."""
    seen = 0
    while True:
        try:
            event = next(work)
        except StopIteration as done:
            patch: Patch = done.value
            return patch
        seen += getattr(event, "what", "") == "train"
        if stop_after is not None and seen >= stop_after:
            work.close()
            return None


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


def test_it_learns_to_follow(model: Model, data: Dataset, tmp_path: Path) -> None:
    """On the very pictures and noise of its steps the loss falls below what the network says without it."""
    with using(Store(tmp_path / "store")), runtime.lease(model, dtype=torch.float32, train=True, holder="test") as family:
        def lesson() -> Any:
            return (yield from shared.encoded(family, model, data.kept, ["a red apple"] * 8, side=SIDE, part=0.0, seed=0))

        work = lesson()
        try:
            while True:
                next(work)
        except StopIteration as done:
            known = done.value
        asked = plan(batches=Batches(steps=1, batch=4, drop=0.0))
        net = controlnet.Net(family, controlnet.begin(family, asked), known, asked)
        before = next(net.losses(0)).item()
        optimizer = torch.optim.AdamW(net.copy.parameters(), lr=3e-3)
        for _ in range(25):
            loss = next(net.losses(0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert next(net.losses(0)).item() < 0.8 * before
        assert all(p.grad is None for p in family.trainable()["unet"].parameters())
