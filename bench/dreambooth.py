"""The failures that DreamBooth's prior preservation is for, with and without it: one person in six pictures, on the embedded model.

    python bench/dreambooth.py [--steps 200] [--sheet docs/assets/dreambooth.jpg]

Prints, for both trainings, how much of the diversity of pictures is left and how far the bare `person` has moved (in the embedded CLIP),
the held-out loss before and at the end, parameters, size of the file and seconds. Needs the extra `render`.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pil

import safelight as sl
from safelight.recipes.dreambooth import SETTINGS
from safelight.reporting.sheet import contact_sheet
from safelight.values import Dataset, Image, Model, Patch

GROUNDS = ("blue", "green", "yellow", "pink", "white", "gray")
WHO = {"hair": "purple", "cut": "long", "skin": "tan", "clothes": "green", "mouth": "smiling", "glasses": "glasses"}
COLUMNS = 4
INSTANCE, CLASS = "a sks person", "a person"


def subject(folder: Path) -> Dataset:
    """Six pictures of one person, before six backgrounds, in a style that the model has never seen."""
    from dicebear import Style

    place = Path(__file__).parents[1] / "examples" / "make_pixel_people.py"
    spec = importlib.util.spec_from_file_location("make_pixel_people", place)
    assert spec is not None and spec.loader is not None
    pixel: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pixel)
    style = Style(json.loads((files("dicebear_styles") / "pixel-art.json").read_text("utf-8")))
    for i, ground in enumerate(GROUNDS):
        (folder / f"{i}.png").write_bytes(pixel.draw(style, {**WHO, "ground": ground}, random.Random(3)))
        (folder / f"{i}.txt").write_text(f"{INSTANCE}, {ground} background\n", "utf-8")
    return sl.folder(folder)


def told(patch: Patch) -> dict[str, Any]:
    """The numbers of a training."""
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    held = record["held_out"]
    return record["dreambooth"] | {
        "held_out_before": round(held[0][1], 4), "held_out_kept": round(min(h[1] for h in held), 4), "held_out_last": round(held[-1][1], 4),
        "kept_step": record["kept_step"], "seconds": round(record["seconds"]), "bytes": Path(patch.weights.path).stat().st_size,
    }


def drawn(model: Model, prompts: Sequence[str]) -> list[np.ndarray]:
    """A picture of each."""
    return [sl.generate(model, prompt, seeds=[100 + i], steps=12).pixels[0] for i, prompt in enumerate(prompts)]


def sheet(model: Model, data: Dataset, trained: dict[str, Patch]) -> Image:
    """The given pictures, the class before, and both trainings' subject and class at the same seeds."""
    said = [place.format(INSTANCE) for place in SETTINGS[:COLUMNS]]
    given = [np.asarray(Pil.open(row.picture.path).convert("RGB").resize((128, 128)), np.float32) / 255 for row in data][:COLUMNS]
    rows, labels = [*given, *drawn(model, [CLASS] * COLUMNS)], ["given"] * COLUMNS + [f"before: {CLASS}"] * COLUMNS
    for name, patch in trained.items():
        after = sl.with_lora(model, patch)
        rows += [*drawn(after, said), *drawn(after, [CLASS] * COLUMNS)]
        labels += [f"{name}: {prompt}" for prompt in said] + [f"{name}: {CLASS}"] * COLUMNS
    return contact_sheet(Image(np.stack(rows)), columns=COLUMNS, labels=labels)


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--steps", type=int, default=200)
    p.add_argument("--batch", type=int, default=4, help="pictures of the subject a step; with prior preservation as many of the class")
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--classes", type=int, default=32)
    p.add_argument("--judged", type=int, default=16)
    p.add_argument("--sheet", type=Path)
    p.add_argument("--only", choices=("no prior", "prior"), help="one of the two trainings; they are kept, and not run again")
    a = p.parse_args()
    model = sl.model("mini")
    with tempfile.TemporaryDirectory() as folder:
        data = subject(Path(folder))
        knobs = {"instance": INSTANCE, "class_name": CLASS, "classes": a.classes, "judged": a.judged, "steps": a.steps, "lr": a.lr,
                 "every": a.steps // 4, "samples": 0, "drop": 0.0, "held_out": 0.17}
        ways = {"no prior": {"prior": 0.0, "batch": a.batch}, "prior": {"prior": 0.5, "batch": 2 * a.batch}}
        trained = {name: sl.train_dreambooth(model, data, **knobs, **way) for name, way in ways.items() if a.only in (None, name)}
        for name, patch in trained.items():
            print(json.dumps({name: told(patch)}))
        if a.sheet:
            pixels = sheet(model, data, trained).bytes8()[0]
            Pil.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2), Pil.Resampling.LANCZOS).save(a.sheet, quality=88)


if __name__ == "__main__":
    main()
