"""The failures that DreamBooth's prior preservation is for, with and without it: one person in six pictures, on the embedded model.

    python bench/dreambooth.py [--steps 40] [--only prior] [--table docs/training.md] [--sheet docs/assets/dreambooth.jpg]

The two trainings learn the subject at different speeds, so the weights of the last looks are judged, and those are compared that are
equally like the subject: how much of the diversity of pictures is left, and how far the bare `person` has moved (in the embedded CLIP).
What was judged is kept in out/dreambooth.json. Needs the extra `render`.
"""
from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from methods import put, shrunk, table
from PIL import Image as Pil

import safelight as sl
from safelight.progress import watch
from safelight.recipes.dreambooth import SETTINGS, measured
from safelight.reporting.sheet import contact_sheet
from safelight.train.methods import Subject
from safelight.values import Dataset, Image, Model, Patch

GROUNDS = ("blue", "green", "yellow", "pink", "white", "gray")
WHO = {"hair": "purple", "cut": "long", "skin": "tan", "clothes": "green", "mouth": "smiling", "glasses": "glasses"}
COLUMNS, LOOKS = 4, 4
INSTANCE, CLASS = "a sks person", "a person"
NEAR = 0.03
"""How far apart two likenesses may be that are called equal."""

FIRST, KNOWN = 0.3, Path("out/dreambooth.json")
"""The share of the steps before the first look that is judged; where judgements are kept."""

Judged = list[tuple[int, dict[str, Any], Patch]]
"""The looks of a training: step, numbers, weights."""


def subject(folder: Path, called: str = INSTANCE) -> Dataset:
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
        (folder / f"{i}.txt").write_text(f"{called}, {ground} background\n", "utf-8")
    return sl.folder(folder)


def judged(model: Model, data: Dataset, patch: Patch, count: int) -> Judged:
    """The last looks of a training, by `count` pictures of each kind."""
    asked, out = Subject(instance=INSTANCE, class_name=CLASS, judged=count), []
    for name, blob in sorted(patch.files.items()):
        if name.startswith("steps/") and (step := int(Path(name).stem.split("-")[1])) > FIRST * _last(patch):
            one, key = replace(patch, weights=blob), f"{blob.sha256} {count}"
            if key not in known():
                numbers = watch(measured(model, one, data.kept, asked))[0]
                KNOWN.parent.mkdir(exist_ok=True)
                KNOWN.write_text(json.dumps({**known(), key: numbers}), "utf-8")
            out.append((step, known()[key], one))
    return out


def known() -> dict[str, Any]:
    """What was judged before, by the weights' hash and the number of pictures."""
    found: dict[str, Any] = json.loads(KNOWN.read_text("utf-8")) if KNOWN.is_file() else {}
    return found


def _last(patch: Patch) -> int:
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    return int(max(h[0] for h in record["held_out"]))


def alike(found: dict[str, Judged]) -> dict[str, tuple[int, dict[str, Any], Patch]]:
    """A look of each training, the two of those within NEAR of one another that are most like the subject; the nearest when none are."""
    first, second = found.values()
    pairs = [(a, b) for a in first for b in second]
    close = [p for p in pairs if abs(p[0][1]["likeness"] - p[1][1]["likeness"]) <= NEAR]
    best = max(close, key=lambda p: p[0][1]["likeness"] + p[1][1]["likeness"]) if close else min(
        pairs, key=lambda p: abs(p[0][1]["likeness"] - p[1][1]["likeness"]))
    return dict(zip(found, best, strict=True))


def row(name: str, step: int, numbers: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """Of the table."""
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    held = record["held_out"]
    return {
        "": name, "steps": step, f"likeness ({numbers['likeness_before']:.2f} before)": f"{numbers['likeness']:.2f}",
        "diversity left": f"{numbers['ratio']:.0%}", f"drift of `{CLASS}`": f"{numbers['drift']:.2f}",
        f"held-out loss ({held[0][1]:.3f} before)": f"{next(h[1] for h in held if h[0] == step):.3f}",
        "seconds": round(record["seconds"] * step / _last(patch)), "file, kB": round(Path(patch.weights.path).stat().st_size / 1000),
    }


def drawn(model: Model, prompts: Sequence[str]) -> list[np.ndarray]:
    """A picture of each."""
    return [sl.generate(model, prompt, seeds=[100 + i], steps=12).pixels[0] for i, prompt in enumerate(prompts)]


def sheet(model: Model, data: Dataset, trained: dict[str, Patch]) -> Image:
    """The given pictures, the class before, and both trainings' subject and class at the same seeds."""
    said = [place.format(INSTANCE) for place in SETTINGS[1 : COLUMNS + 1]]
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
    p.add_argument("--steps", type=int, default=40, help="of the training without the class; that with it takes twice as many")
    p.add_argument("--batch", type=int, default=2, help="pictures of the subject a step; with prior preservation as many of the class")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--classes", type=int, default=12)
    p.add_argument("--judged", type=int, default=8)
    p.add_argument("--table", type=Path)
    p.add_argument("--sheet", type=Path)
    p.add_argument("--only", choices=("no prior", "prior"), help="one of the two trainings; they are kept, and not run again")
    a = p.parse_args()
    torch.set_num_threads(1)
    model = sl.model("mini")
    with tempfile.TemporaryDirectory() as folder:
        data = subject(Path(folder))
        knobs = {"instance": INSTANCE, "class_name": CLASS, "classes": a.classes, "judged": 0, "lr": a.lr, "samples": 0, "drop": 0.0,
                 "held_out": 0.17, "files": True}
        ways = {"no prior": {"prior": 0.0, "batch": a.batch, "steps": a.steps, "every": a.steps // LOOKS},
                "prior": {"prior": 0.5, "batch": 2 * a.batch, "steps": 2 * a.steps, "every": 2 * a.steps // LOOKS}}
        trained = {name: sl.train_dreambooth(model, data, **knobs, **way) for name, way in ways.items() if a.only in (None, name)}
        found = {name: judged(model, data, patch, a.judged) for name, patch in trained.items()}
        for name, looks in found.items():
            for step, numbers, _ in looks:
                print(json.dumps({"training": name, "step": step, **numbers}), flush=True)
        if len(found) < 2:
            return
        equal = alike(found)
        rows = [row(name, *look) for name, look in equal.items()]
        print(table(rows))
        if a.table:
            put(a.table, table(rows), "dreambooth")
        if a.sheet:
            shrunk(sheet(model, data, {name: look[2] for name, look in equal.items()}), a.sheet)


if __name__ == "__main__":
    main()
