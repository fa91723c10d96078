"""Every family is trained by the same recipe, and its file is proven by reading it back and changes the picture."""
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.op import load_ops
from safelight.values import Dataset, Patch
from tests import tiny

OPS = load_ops()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(1)
    for i in range(3):
        Pil.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(["a red apple, in ink", "night city, in ink", "一个紫色短发的女孩, in ink"][i])
    return OPS["folder"](folder)


@pytest.mark.parametrize("layout", ["inpaint", "taiyi", "sdxl", "refiner", "kolors", "sd3"])
def test_a_lora_for_every_family(tmp_path: Path, data: Dataset, layout: str) -> None:
    model = tiny.model(tiny.LAYOUTS[layout](tmp_path / "m"))
    knobs = {"steps": 3, "batch": 2, "rank": 2, "lr": 0.05, "warmup": 0, "held_out": 0.0, "samples": 0, "every": 3}
    patch = OPS["train_lora"](model, data, **knobs)
    assert isinstance(patch, Patch)
    record = json.loads(Path(patch.files["record.json"].path).read_text())
    assert len(record["loss"]) == 3 and np.isfinite(record["loss"]).all()
    assert record["proof"]["matched"] == record["proof"]["total"] > 0
    plain, drawn = (OPS["generate"](m, "a red apple, in ink", seeds=[1], steps=2) for m in (model, OPS["with_lora"](model, patch)))
    assert np.abs(plain.pixels - drawn.pixels).max() > 1e-3
