"""What recipes that train on captioned pictures have in common: data encoded once, pictures to look at, what outlives the run."""
from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from PIL import Image as Pil
from torch import Tensor, nn

from safelight.computing import chosen
from safelight.data import buckets
from safelight.data.augment import Ways
from safelight.events import Note, Preview
from safelight.families.sources import TEXT, open_model
from safelight.runtime import choose_device, choose_dtype
from safelight.sampling.draw import Shot, draw, starts
from safelight.sampling.settings import SIZE, Guidance, Sampling, Size
from safelight.spec import Work
from safelight.store import current
from safelight.train import cache
from safelight.train.batches import generator
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Training, Watcher
from safelight.train.pictures import Cut, Kept, Pictures
from safelight.train.settings import Batches, Optimizer, Watch
from safelight.train.tracking import METRICS
from safelight.values import Blob, Caption, Cond, Dataset, Model, Row, canonical, digest

if TYPE_CHECKING:
    from safelight.families import Family

SAMPLE = Sampling(steps=12)

CHECKPOINT_SECONDS = 15.0


def training_dtype() -> torch.dtype:
    """As it was said, else the device's own; but never float16, whose gradients vanish without a scale."""
    said = chosen().dtype
    dtype: torch.dtype = getattr(torch, said) if said else choose_dtype(choose_device())
    return torch.float32 if dtype == torch.float16 else dtype


class Plan(Protocol):
    """The settings that every recipe's plan has."""

    @property
    def optimizer(self) -> Optimizer:
        """How a step is made."""
        ...

    @property
    def batches(self) -> Batches:
        """How long, and what is seen at once."""
        ...

    @property
    def watch(self) -> Watch:
        """What is looked at on the way."""
        ...


def training(parameters: Mapping[str, nn.Parameter], losses: Callable[[int], Iterable[Tensor]], watcher: Watcher, *,
             plan: Plan, work: Path) -> Training:
    """What the loop needs, by a recipe's plan; checkpoints lie in the run's own folder `work`."""
    return Training(
        parameters=parameters,
        losses=losses,
        steps=plan.batches.steps,
        optimizer=plan.optimizer,
        pictures=plan.batches.batch,
        checkpoints=Checkpoints(work / "checkpoints"),
        watch=watcher,
        every=plan.watch.every,
        patience=plan.watch.patience,
        seconds=CHECKPOINT_SECONDS,
    )


def check(op: str, family: Family, data: Dataset, size: int) -> Work[int]:
    """The side pictures are cut to. ValueError when there is no picture or the size does not fit; a note when captions are missing."""
    rows = data.kept
    if not rows:
        raise ValueError(f"{op}: data has no picture left ({len(data.rows)} were dropped); expected at least one")
    bare = sum(not row.caption for row in rows)
    if bare:
        yield Note(text=f"{op}: {bare} of {len(rows)} pictures have no caption", level="warning")
    side = size or family.size
    if side % family.cell:
        raise ValueError(f"{op}: size {side}; expected a multiple of {family.cell} for this model")
    return side


def kept(family: Family, model: Model, rows: Sequence[Row], said: Sequence[Sequence[str]], batches: Batches, *,
         side: int, shelf: cache.Shelf, masked: bool = False) -> Work[Pictures]:
    """The rows, each called one of what is `said` of it, encoded as `batches` asks: every window, and with `flip` its mirror image."""
    cuts = [cut_of(row, texts, batches, side=side, factor=family.factor) for row, texts in zip(rows, said, strict=True)]
    wanted = [(row, cut) for row, some in zip(rows, cuts, strict=True) for cut in some]
    keys = iter((yield from cache.pictures(family, open_model(model).fingerprint("vae"), wanted, shelf, masked=masked)))
    shapes = [(some[0].height // family.factor, some[0].width // family.factor) for some in cuts]
    return Pictures(shelf, [
        Kept(row.name, tuple(called), tuple(next(keys) for _ in some), shape, int(row.info.get("repeats", 1)))
        for row, some, called, shape in zip(rows, cuts, said, shapes, strict=True)
    ])


def cut_of(row: Row, said: Sequence[str], batches: Batches, *, side: int, factor: int) -> list[Cut]:
    """The windows of a picture: the middle, or `crops` of them at places that depend on the picture's content alone; squares, or of the
    bucket whose shape is nearest. Mirrored ones follow where no caption speaks of sides, writing and the like."""
    width = height = side
    if batches.buckets:
        step = math.lcm(factor, 64 if side >= 256 else 16)
        width, height = buckets.place(row.width, row.height, buckets.table(side, step=step)).bucket
    places = [(0.5, 0.5)]
    if batches.crops > 1:
        places = torch.rand(batches.crops, 2, generator=generator("crops", row.picture.sha256), dtype=torch.float64).tolist()
    cuts = [Cut(width, height, x, y) for x, y in places]
    every = {*said, *(layer.text for layer in row.captions if layer.by != "folder")}  # those it has had tell of the picture too
    mirrors = batches.flip and all(Ways(flip="skip").may_flip(text) for text in every)
    return cuts + ([replace(cut, mirrored=True) for cut in cuts] if mirrors else [])


def called(row: Row, word: str, otherwise: Caption) -> Row:
    """The row; where its caption has not the word in it, it is called otherwise."""
    return row if has(word, row.caption) else replace(row, captions=(*row.captions, otherwise))


def naming(pictures: Pictures, word: str) -> Pictures:
    """Of several captions of a picture those that have the word in them; each has one."""
    kept = [replace(k, captions=tuple(c for c in k.captions if has(word, c))) for k in pictures.kept]
    return replace(pictures, kept=kept)


def has(word: str, text: str) -> bool:
    """Whether the word, or words, stand in a text by themselves; between Chinese characters they do."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.ASCII) is not None


def texts(family: Family, model: Model, prompts: Iterable[str], shelf: cache.Shelf) -> Work[Mapping[str, Cond]]:
    """The prompts as the untouched model reads them, encoded where they are not yet."""
    parts, patches = open_model(model), [p.key for p in model.patches]
    return (yield from cache.texts(family, digest(parts.fingerprint(*TEXT), *patches), sorted(prompts), shelf))


def shots(family: Family, prompts: Sequence[str], sampling: Sampling = SAMPLE, size: Size = SIZE) -> list[Shot]:
    """The prompts to be drawn, each with its own seed, the same every time."""
    begun = starts(family, size, len(prompts), None, None)
    return [Shot(p, seed, sampling, Guidance(), z) for seed, (p, (z, _)) in enumerate(zip(prompts, begun, strict=True))]


def samples(family: Family, prompts: Sequence[str], folder: Path, step: int) -> Work[list[dict[str, Any]]]:
    """Draw the prompts into `folder`; the rows of the record."""
    if not prompts:
        return []
    drawn = yield from draw(family, shots(family, prompts), previews=False)
    folder.mkdir(exist_ok=True)
    out = []
    for i, pixels in enumerate(drawn.bytes8()):
        held = BytesIO()
        Pil.fromarray(pixels).save(held, "PNG")
        name = f"step-{step:06d}-{i}.png"
        (folder / name).write_bytes(held.getvalue())
        yield Preview(data=base64.b64encode(held.getvalue()).decode(), media="image/png", index=i)
        out.append({"step": step, "prompt": prompts[i], "file": f"samples/{name}"})
    return out


def lasting(folder: Path, record: Mapping[str, Any], **more: Any) -> dict[str, Blob]:
    """The record, its lines and the sample pictures as files of the patch, copied into the store."""
    store = current()
    kept = {k: v for k, v in record.items() if k != "watched"} | {k: json.loads(canonical(v)) for k, v in more.items()}
    files = {"record.json": store.blob(json.dumps(kept, ensure_ascii=False).encode(), ".json")}
    for taken in kept.get("samples", []):
        files[taken["file"]] = store.blob(folder / Path(taken["file"]).name)
    if (metrics := folder.parent / METRICS).is_file():
        files[METRICS] = store.blob(metrics)
    return files
