"""From a model folder to pictures, through the ops: generate, storyboard, image-to-image, inpainting, LoRAs on top."""
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from safelight import runtime
from safelight.events import Note, Preview, Progress
from safelight.op import Op, load_ops
from safelight.runtime import lease
from safelight.values import Image, Mask, Model
from tests import tiny
from tests.patching import look, same, write

OPS = load_ops()
FEW = {"steps": 4}


@pytest.fixture(scope="module", params=["mini", "sd1"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tiny.LAYOUTS[request.param](tmp_path_factory.mktemp("models") / request.param)
    named = OPS["model"](str(folder))
    assert isinstance(named, Model)
    return named


def picture(side: int, seed: int = 0) -> Image:
    return Image(np.random.default_rng(seed).random((1, side, side, 3), dtype=np.float32))


def gap(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    return float(np.abs(a - b).max())


def test_a_seed_is_a_picture_alone_or_in_a_batch(model: Model) -> None:
    batch = OPS["generate"](model, "a red apple", seeds=[3, 4, 5], **FEW)
    alone = OPS["generate"](model, "a red apple", seeds=[4], **FEW)
    assert batch.pixels.shape == (3, alone.pixels.shape[1], alone.pixels.shape[2], 3)
    assert gap(batch.pixels[1:2], alone.pixels) < 0.05
    assert gap(batch.pixels[0], batch.pixels[1]) > 0.05
    assert [row["seed"] for row in batch.info] == [3, 4, 5]
    assert batch.info[0]["prompt"] == "a red apple"
    assert batch.info[0]["model_hash"] == model.fingerprint[:10]


def test_settings_reach_the_picture(model: Model) -> None:
    plain = OPS["generate"](model, "a red apple", seeds=[1], **FEW)
    changes = {"negative": "blue", "scale": 9.0, "sampler": "heun", "schedule": "karras"}
    for change in [*({k: v} for k, v in changes.items()), {"guide": "off"}, {"guide": "rescale"}]:
        other = OPS["generate"](model, "a red apple", seeds=[1], **{**FEW, **change})
        assert gap(plain.pixels, other.pixels) > 1e-3, change
    weighted = OPS["generate"](model, "a (red:1.6) apple", seeds=[1], **FEW)
    assert gap(plain.pixels, weighted.pixels) > 1e-4


def test_size(model: Model) -> None:
    f = 8 if model.source.endswith("mini") else 4
    wide = OPS["generate"](model, "a", seeds=[1], width=10 * f, height=6 * f, **FEW)
    assert wide.pixels.shape[1:3] == (6 * f, 10 * f)
    assert wide.info[0]["size"] == [10 * f, 6 * f]
    with pytest.raises(ValueError, match=f"multiples of {f}"):
        OPS["generate"](model, "a", seeds=[1], width=10 * f + 1, height=6 * f, **FEW)


def test_image_to_image_keeps_more_the_less_is_walked(model: Model) -> None:
    start = OPS["decode"](model, OPS["encode"](model, picture(32)))
    near, far = (OPS["generate"](model, "a", seeds=[2], image=start, denoise=d, steps=8).pixels for d in (0.15, 0.9))
    assert near.shape == start.pixels.shape
    assert np.abs(near - start.pixels).mean() < np.abs(far - start.pixels).mean()
    with pytest.raises(ValueError, match="batch of 2 for 3"):
        OPS["generate"](model, "a", seeds=[1, 2, 3], image=Image(np.zeros((2, 32, 32, 3), np.float32)), **FEW)


def test_inpainting_changes_nothing_outside_the_mask(model: Model) -> None:
    start, mask = picture(32), np.zeros((1, 32, 32), np.float32)
    mask[:, :, 16:] = 1
    out = OPS["generate"](model, "a", seeds=[2], image=start, mask=Mask(mask), denoise=0.8, **FEW).pixels
    assert np.array_equal(out[:, :, :16], start.pixels[:, :, :16])
    assert gap(out[:, :, 16:], start.pixels[:, :, 16:]) > 0.05
    with pytest.raises(ValueError, match="a mask and no image"):
        OPS["generate"](model, "a", seeds=[2], mask=Mask(mask), **FEW)


def test_the_work_tells_how_far_it_is_and_leaves_the_model_clean(model: Model) -> None:
    with lease(model) as family:
        before = look(family)
    op: Op[..., Any] = OPS["generate"]
    work = op.spec.body(model, "a", seeds=[1, 2], image=picture(32))
    seen = []
    for event in work:
        seen.append(event)
        if isinstance(event, Preview):
            break
    with pytest.raises(RuntimeError, match="held by generate"), lease(model, train=True):
        pass
    work.close()
    assert any(isinstance(e, Progress) and e.what == "sampling" for e in seen)
    assert any(isinstance(e, Note) and "denoise is 1" in e.text for e in seen)
    with lease(model, train=True) as family:
        pass
    assert same(look(family), before)


def test_a_lora_counts_by_its_strength(model: Model, tmp_path: Path) -> None:
    with lease(model, dtype=torch.float32) as family:
        file = Path(write(family, tmp_path / "noisy.safetensors").weights.path)
    loaded = OPS["load_lora"](file)
    assert loaded.info["rank"] == 2
    assert Path(loaded.weights.path) != file
    plain = OPS["generate"](model, "a", seeds=[1], **FEW)
    none, half, full = (OPS["generate"](OPS["with_lora"](model, loaded, strength=s), "a", seeds=[1], **FEW) for s in (0.0, 0.5, 1.0))
    beside = OPS["generate"](OPS["with_lora"](model, loaded, strength=1.0, merged=False), "a", seeds=[1], **FEW)
    assert np.array_equal(plain.pixels, none.pixels)
    assert gap(plain.pixels, half.pixels) > 1e-2
    assert gap(half.pixels, full.pixels) > 1e-2
    assert np.abs(beside.pixels - full.pixels).mean() < np.abs(plain.pixels - full.pixels).mean() / 4
    assert np.array_equal(OPS["generate"](model, "a", seeds=[1], **FEW).pixels, plain.pixels)


def test_lora_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("no")
    for name, says in (("text", "no checkpoint that can be read"), ("nothing", "there is no file")):
        with pytest.raises(ValueError, match=says):
            OPS["load_lora"](tmp_path / f"{name}.safetensors")


ROWS = [{"prompt": "a cat", "negative": "dog", "seed": 7}, {"prompt": "a red apple"}]


def as_csv() -> str:
    return "prompt,negative,seed\na cat,dog,7\na red apple,,\n"


FORMS = {
    "txt": "# two\na cat\tdog\t7\n\na red apple\n", "csv": as_csv(), "jsonl": "\n".join(map(json.dumps, ROWS)),
    "yaml": "- {prompt: a cat, negative: dog, seed: 7}\n- a red apple\n",
}


def test_a_storyboard_is_the_same_in_every_form(model: Model, tmp_path: Path) -> None:
    drawn = []
    for suffix, text in FORMS.items():
        (tmp_path / f"board.{suffix}").write_text(text, encoding="utf-8")
        drawn.append(OPS["storyboard"](model, tmp_path / f"board.{suffix}", **FEW))
    assert all(np.array_equal(d.pixels, drawn[0].pixels) for d in drawn)
    assert [(i["prompt"], i["negative"], i["seed"]) for i in drawn[0].info] == [("a cat", "dog", 7), ("a red apple", "", 1)]
    alone = OPS["generate"](model, "a cat", negative="dog", seeds=[7], **FEW)
    assert gap(alone.pixels, drawn[0].pixels[:1]) < 0.05


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.txt", "# nothing\n", "no prompt"), ("a.csv", "prompt,sead\na,1\n", "sead"), ("a.jsonl", '{"seed": 1}', "picture 0: no prompt"),
        ("a.yaml", "prompt: a", "a list"), ("a.doc", "a", "not one of"), ("a.csv", "prompt,seed\na,x\n", "picture 0: invalid literal"),
    ],
)
def test_storyboards_that_cannot_be_drawn(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=says):
        OPS["storyboard"](str(tiny.sd1(tmp_path / "m")), tmp_path / name)
    runtime.release()


def test_models_by_name(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no model_index"):
        OPS["model"](str(tmp_path))
    folder = tiny.sd1(tmp_path / "m")
    assert OPS["model"](str(folder)).key == OPS["model"](str(folder) + "/").key


def test_a_folder_of_pictures_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        Image(np.full((1, 8, 8, 3), number / 10, np.float32)).save(tmp_path / f"{number}.png")
    read = OPS["load_image"](tmp_path)
    assert read.pixels[:, 0, 0, 0] == pytest.approx([0.1, 0.2, 1.0], abs=0.01)
