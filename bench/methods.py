"""Every kind of adapter on the same pictures with the embedded model: a sheet before and after, and what each costs and learns.

    python bench/methods.py [--only lora vera] [--steps 150] [--size 128] [--sheet FILE.jpg] [--table FILE.md]

A method that was trained before is read from the store. `--table` writes the table into a page, between its marks; both only show the
methods asked for. Seconds are those of the loop, on one thread here.
"""
from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pil

import safelight as sl
from safelight.recipes.shared import training_dtype
from safelight.reporting.sheet import contact_sheet
from safelight.runtime import lease
from safelight.train import trainables
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Dataset, Image, Model, Patch

PICTURES = Path(__file__).parents[1] / "examples" / "pixel-people"
TRIGGER = "in pixel style"
PROMPTS = (
    "a person with short red hair, green shirt, blue background", "a smiling person with long blond hair, white background",
    "a person with black hair and glasses, yellow shirt, pink background", "a red apple, white background",
)
OTHERS: dict[str, tuple[dict[str, Any], float]] = {
    "vera": ({"rank": 256}, 2e-2), "loha": ({"rank": 8}, 1e-3), "lora-fa": ({}, 2e-3), "adalora": ({"rank": 12}, 2e-3),
    "delta-lora": ({}, 5e-4),
}
"""Where rank 16 and a rate of 1e-3 are not what a method is used with."""


def trained(model: Model, data: Dataset, method: str, steps: int, size: int) -> tuple[Patch, dict[str, Any]]:
    """The patch, and a row of the table."""
    given, rate = OTHERS.get(method, ({}, 1e-3))
    shape = LoraShape(**{"rank": 16, "method": method, **given})
    patch = sl.train_lora(
        model, data, shape=shape, optimizer=Optimizer(lr=rate), batches=Batches(steps=steps, batch=4, size=size),
        objective=Objective(prior=0.0), watch=Watch(samples=0, held_out=0.15),
    )
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    held = record["held_out"]
    with lease(model, dtype=training_dtype(), train=True) as family, trainables.adapter(family, shape, 0) as adapter:
        numbers = sum(p.numel() for p in adapter.parameters.values() if p.requires_grad)
    return patch, {
        "method": method, "rank": shape.rank, "rate": f"{rate:g}", "trained numbers": f"{numbers:,}",
        "file, kB": round(Path(patch.weights.path).stat().st_size / 1000), "seconds": round(record["seconds"]),
        "held-out loss": f"{held[0][1]:.4f} to {min(h[1] for h in held):.4f}",
    }


def drawn(model: Model) -> list[np.ndarray]:
    """A picture of each prompt, with the trigger."""
    return [sl.generate(model, f"{p}, {TRIGGER}", seeds=[i], steps=20).pixels[0] for i, p in enumerate(PROMPTS)]


def sheet(model: Model, patches: dict[str, Patch]) -> Image:
    """A row a method."""
    named = {"before": model, **{name: sl.with_lora(model, patch) for name, patch in patches.items()}}
    pixels = [picture for one in named.values() for picture in drawn(one)]
    labels = [f"{name}: {prompt}" for name in named for prompt in PROMPTS]
    return contact_sheet(Image(np.stack(pixels)), columns=len(PROMPTS), labels=labels)


def shrunk(sheet: Image, place: Path) -> None:
    """Write it at half its size."""
    pixels = sheet.bytes8()[0]
    Pil.fromarray(pixels).resize((pixels.shape[1] // 2, pixels.shape[0] // 2), Pil.Resampling.LANCZOS).save(place, quality=88)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(map(str, row.values())) for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put(page: Path, text: str, mark: str = "measured") -> None:
    """Between the page's marks `<!-- measured -->` and `<!-- /measured -->`."""
    said = page.read_text("utf-8")
    new, count = re.subn(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: m[1] + text + m[2], said, flags=re.DOTALL)
    if not count:
        raise SystemExit(f"{page} has no <!-- {mark} -->")
    page.write_text(new, "utf-8")


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(trainables.METHODS), choices=trainables.METHODS)
    p.add_argument("--steps", type=int, default=150)
    p.add_argument("--size", type=int, default=128)
    p.add_argument("--sheet", type=Path)
    p.add_argument("--table", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    model, data = sl.model("mini"), sl.caption(sl.curate(sl.folder(PICTURES)), trigger=TRIGGER)
    patches, rows = {}, []
    for method in a.only:
        patches[method], row = trained(model, data, method, a.steps, a.size)
        rows.append(row)
        print(json.dumps(row))
    print(table(rows))
    if a.table:
        put(a.table, table(rows))
    if a.sheet:
        shrunk(sheet(model, patches), a.sheet)


if __name__ == "__main__":
    main()
