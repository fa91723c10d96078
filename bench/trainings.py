"""The trainings that are no adapters, on the embedded model: what each costs and learns, and pictures before and after.

    python bench/trainings.py [--only full embedding control new] [--sheets docs/assets] [--table docs/training.md]

Adapters are measured by `methods.py`, DreamBooth by `dreambooth.py`. What was trained before is read from the store, and what was stopped
goes on. Seconds are those of the loop, on one thread here. `embedding` and `control` need the extra `render`.
"""
from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from dreambooth import subject as pixel_person
from methods import PICTURES, PROMPTS, TRIGGER, drawn, put, shrunk, table
from PIL import Image as Pil
from safetensors import safe_open
from torch.nn.functional import max_pool2d

import safelight as sl
from safelight.embedded.captions import caption
from safelight.embedded.render import draw as attributes_of
from safelight.embedded.render import picture
from safelight.reporting.sheet import contact_sheet
from safelight.values import Dataset, Image, Model, Patch

WORD, NEAR = "<sks>", 2
GIRL = {"kind": "person", "subject": "girl", "hair style": "pigtails", "hair colour": "pink", "glasses": "sunglasses", "beard": "none",
        "expression": "smiling", "eyes": "open", "clothes": "checkered", "clothes colour": "green", "skin": "tan", "frame": "portrait"}
GROUNDS = ("blue", "yellow", "white", "gray", "orange", "purple")
ASKED = ("", ", blue background", " on a beach", " in a forest at night", ", close-up")
LED = ("a person with long purple hair, yellow background", "a smiling man with a beard, white background", "a girl with pigtails",
       "a person on a beach at sunset")
UNSEEN = ("a person with long purple hair, blue background", "a person with short black hair, glasses, yellow shirt, white background",
          "a person with long red hair and dark skin, pink background", "a person with short blonde hair, red shirt, green background")

Rows = list[tuple[str, Sequence[np.ndarray]]]


@dataclass(frozen=True)
class Shown:
    """A training: its patch, what it was given, its settings, and the sheet's rows."""

    patch: Patch
    given: str
    knobs: dict[str, Any]
    rows: Rows
    more: str = ""


def one(model: Model, prompt: str, seed: int) -> np.ndarray:
    """(H, W, 3)."""
    pixels: np.ndarray = sl.generate(model, prompt, seeds=[seed], steps=20).pixels[0]
    return pixels


def given(data: Dataset, count: int) -> list[np.ndarray]:
    """The first pictures of a dataset, at the model's size."""
    return [np.asarray(Pil.open(row.picture.path).convert("RGB").resize((128, 128)), np.float32) / 255 for row in data][:count]


def full(model: Model, work: Path) -> Shown:
    """A style from thirty pictures, in the U-Net's own weights."""
    data = sl.caption(sl.curate(sl.folder(PICTURES)), trigger=TRIGGER)
    knobs = {"steps": 100, "batch": 4, "lr": 2e-4}
    patch = sl.train_full(model, data, size=128, warmup=10, samples=0, held_out=0.15, every=25, **knobs)
    after = sl.with_full(model, patch)
    return Shown(patch, f"{len(data)} pictures", knobs, [(f"{name}: {{}}, {TRIGGER}", drawn(who)) for name, who in
                                                          (("before", model), ("after", after))])


def girl(folder: Path) -> Dataset:
    """Six pictures of one person that the model could draw, if it knew who is meant; captions say the background."""
    for i, ground in enumerate(GROUNDS):
        picture({**GIRL, "background": ground}, Random(i)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"{WORD}, {ground} background\n", "utf-8")
    return sl.folder(folder)


def embedding(model: Model, work: Path) -> Shown:
    """A word for a person of the model's own kind; and for one of a kind that it has never seen, which is more than a word can do."""
    knobs = {"steps": 300, "batch": 8, "lr": 5e-3}
    fixed = {"token": WORD, "init_word": "girl", "vectors": 4, "drop": 0.0, "samples": 0, "held_out": 0.17, "every": 50}
    data, foreign = girl(made(work / "girl")), pixel_person(made(work / "pixel"), WORD)
    patch = sl.train_embedding(model, data, **knobs, **fixed)
    other = sl.train_embedding(model, foreign, **knobs, **fixed)
    rows: Rows = [("given", given(data, len(ASKED)))]
    for name, who, word in (("before", model, "girl"), ("after", sl.with_embedding(model, patch), WORD)):
        rows.append((f"{name}: {word}{{}}", [one(who, word + asked, i) for i, asked in enumerate(ASKED)]))
    rows += [("given, of another style", given(foreign, len(ASKED))),
             (f"after that: {WORD}{{}}", [one(sl.with_embedding(model, other), WORD + asked, i) for i, asked in enumerate(ASKED)])]
    return Shown(patch, f"{len(data)} pictures", knobs, rows)


def made(folder: Path) -> Path:
    """The folder, there."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def rendered(folder: Path, count: int, name: str) -> Dataset:
    """Pictures of the renderer with their captions: three people to one landscape."""
    for i in range(count):
        rng = Random(f"{name}/{i}")
        what = attributes_of("scene" if i % 4 == 3 else "person", rng)
        picture(what, rng).save(folder / f"{i:04}.png")
        (folder / f"{i:04}.txt").write_text(caption(what, rng) + "\n", "utf-8")
    return sl.folder(folder)


def followed(hints: Image, pixels: Sequence[np.ndarray]) -> float:
    """Share of the hints' edges that have an edge of the drawing within NEAR pixels."""
    edges = sl.hint(Image(np.stack(pixels)), by="canny").pixels[..., 0] > 0.5
    close = max_pool2d(torch.from_numpy(edges).float()[:, None], 2 * NEAR + 1, 1, NEAR)[:, 0].numpy() > 0
    return float(close[hints.pixels[..., 0] > 0.5].mean())


def control(model: Model, work: Path) -> Shown:
    """Edges, from a short training; beside it the network that ships, which learned for an hour."""
    knobs = {"steps": 250, "batch": 8, "lr": 1e-3}
    data = rendered(made(work / "learn"), 800, "learn")
    patch = sl.train_control(model, data, attention=False, drop=0.5, samples=0, held_out=0.02, every=125, **knobs)
    hints = sl.hint(Image(np.stack(given(rendered(made(work / "look"), len(LED), "look"), len(LED)))), by="canny")
    nets = {"after": patch, "mini-edges": sl.load_control(Path("mini-edges"))}
    rows: Rows = [("hint", list(hints.pixels)), ("before: {}", [one(model, said, i) for i, said in enumerate(LED)])]
    for name, net in nets.items():
        led = [sl.with_control(model, net, image=Image(hints.pixels[i : i + 1])) for i in range(len(LED))]
        rows.append((f"{name}: {{}}", [one(who, said, i) for i, (who, said) in enumerate(zip(led, LED, strict=True))]))
    told = {name.split(":")[0]: f"{followed(hints, pixels):.0%}" for name, pixels in rows[1:]}
    return Shown(patch, f"{len(data)} pictures", knobs, rows, "edges followed: " + ", ".join(f"{n} {s}" for n, s in told.items()))


def new(model: Model, work: Path) -> Shown:
    """A small U-Net from random weights, by the pictures and captions of `full`; what it draws on the way."""
    data, knobs = sl.curate(sl.folder(PICTURES)), {"steps": 1500, "batch": 8, "lr": 1e-3}
    patch = sl.train_full(sl.new_model(model), data, warmup=50, average=0.99, flip=True, prompts=UNSEEN, samples=len(UNSEEN), held_out=0.15,
                          every=knobs["steps"] // 5, **knobs)
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8"))
    looks: dict[int, list[np.ndarray]] = {}
    for taken in record["samples"]:
        looks.setdefault(taken["step"], []).append(np.asarray(Pil.open(patch.files[taken["file"]].path).convert("RGB"), np.float32) / 255)
    return Shown(patch, f"{len(data)} pictures", knobs, [(f"step {step}: {{}}", pictures) for step, pictures in looks.items()])


TRAININGS: dict[str, tuple[Callable[[Model, Path], Shown], Sequence[str]]] = {
    "full": (full, PROMPTS), "embedding": (embedding, ASKED), "control": (control, LED),
    "new": (new, UNSEEN),
}


NAMES = {"new": "`new_model`, `train_full`"}


def numbers(patch: Patch) -> int:
    """How many are in the file, but for a LoRA's alphas."""
    with safe_open(patch.weights.path, "np") as f:
        return sum(int(np.prod(f.get_slice(name).get_shape())) for name in f.keys() if not name.endswith(".alpha"))  # noqa: SIM118


def row(name: str, shown: Shown) -> dict[str, Any]:
    """Of the table."""
    record = json.loads(Path(shown.patch.files["record.json"].path).read_text("utf-8"))
    held, k = record["held_out"], shown.knobs
    shares = f"{shown.given}, {k['steps']} steps of {k['batch']}"
    return {
        "training": NAMES.get(name, f"`train_{name}`"), "shown": shares, "rate": f"{k['lr']:g}",
        "trained numbers": f"{numbers(shown.patch):,}", "file, kB": f"{Path(shown.patch.weights.path).stat().st_size / 1000:,.0f}",
        "seconds": round(record["seconds"]), "held-out loss": f"{held[0][1]:.4f} to {min(h[1] for h in held):.4f}",
    }


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--only", nargs="+", default=list(TRAININGS), choices=TRAININGS)
    p.add_argument("--sheets", type=Path)
    p.add_argument("--table", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in a.only:
        train, prompts = TRAININGS[name]
        with TemporaryDirectory() as folder:
            shown = train(sl.model("mini"), Path(folder))
            rows.append(row(name, shown))
            print(json.dumps(rows[-1]), shown.more, flush=True)
            if a.sheets:
                labels = [label.format(said) for label, pixels in shown.rows for said, _ in zip(prompts, pixels, strict=True)]
                pixels = Image(np.stack([p for _, some in shown.rows for p in some]))
                shrunk(contact_sheet(pixels, columns=len(prompts), labels=labels), a.sheets / f"{name}.jpg")
    print(table(rows))
    if a.table:
        put(a.table, table(rows))


if __name__ == "__main__":
    main()
