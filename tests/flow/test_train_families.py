"""Every family through the same recipes: two steps, the file read back and proven, a picture that it changes; or a refusal with why."""
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.op import load_ops
from safelight.values import Dataset, Image, Model, Patch
from tests import tiny

OPS = load_ops()

SHORT = {"steps": 2, "batch": 2, "lr": 0.05, "warmup": 0, "held_out": 0.0, "samples": 0, "every": 2}
RECIPES: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2}, "full": {"kept": "float32"}, "dreambooth": {"rank": 2, "classes": 1, "judged": 0}, "embedding": {"vectors": 2},
    "control": {},
}
FAMILIES = ["sd1", "mini", "sdxl", "kolors", "sd3"]
REFUSED = {
    ("kolors", "embedding"): "kolors model has no CLIP text encoder",
    ("sd3", "control"): "sd3 model has no U-Net whose encoder could be copied",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for i in range(3):
        Pil.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(["a red apple, in ink", "night city, in ink", "一个紫色短发的女孩, in ink"][i])
    return OPS["folder"](folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    known: dict[str, Model] = {}

    def made(layout: str) -> Model:
        if layout not in known:
            known[layout] = tiny.model(tiny.LAYOUTS[layout](tmp_path_factory.mktemp(layout) / "m"))
        return known[layout]

    return made


def used(model: Model, recipe: str, patch: Patch) -> Model:
    if patch.kind == "control":
        hint = Image(np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32))
        return OPS["with_control"](model, patch, image=hint, strength=10.0)
    return OPS[f"with_{patch.kind}"](model, patch)


def check(model: Model, recipe: str, data: Dataset) -> None:
    patch = OPS[f"train_{recipe}"](model, data, **SHORT, **RECIPES[recipe])
    assert isinstance(patch, Patch)
    record = json.loads(Path(patch.files["record.json"].path).read_text())
    assert len(record["loss"]) == 2 and np.isfinite(record["loss"]).all()
    assert record["proof"]["matched"] == record["proof"]["total"] > 0
    said = "a <new> apple" if recipe == "embedding" else "a red apple, in ink"
    plain, drawn = (OPS["generate"](m, said, seeds=[1], steps=2) for m in (model, used(model, recipe, patch)))
    assert np.abs(plain.pixels - drawn.pixels).max() > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("layout", FAMILIES)
def test_every_family_by_every_recipe(model: Callable[[str], Model], data: Dataset, layout: str, recipe: str) -> None:
    if (layout, recipe) in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[layout, recipe]):
            OPS[f"train_{recipe}"](model(layout), data, **SHORT, **RECIPES[recipe])
        return
    check(model(layout), recipe, data)


@pytest.mark.parametrize("layout", ["inpaint", "taiyi", "refiner"])
def test_a_lora_for_their_relatives(model: Callable[[str], Model], data: Dataset, layout: str) -> None:
    check(model(layout), "lora", data)
