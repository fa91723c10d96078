"""DreamBooth (arXiv:2208.12242): a rare word before a class's word learns to mean one subject, from a handful of pictures of it.

What is trained is a LoRA or the whole denoiser, by those recipes; pictures of the class, drawn by the model before it is trained, hold the
class where it was. The two failures that this is for are measured afterwards. Overfitting: pictures of the subject in many settings are all
the same. Language drift: the bare word of the class has come to mean the subject.
"""
from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pil

from safelight.codec import decode, encode
from safelight.data.networks import find
from safelight.disk import put
from safelight.pictures import floats, read, square
from safelight.recipes import denoising, full, lora, shared
from safelight.recipes.teaching import Plan
from safelight.reporting.sheet import contact_sheet
from safelight.runtime import lease
from safelight.sampling.draw import draw
from safelight.scoring.clip import ClipTowers, forget
from safelight.scoring.diversity import diversity
from safelight.scoring.drift import drift
from safelight.spec import Work
from safelight.store import current
from safelight.train import cache, parallel
from safelight.train.lessons import Lesson
from safelight.train.methods import FullShape, Subject
from safelight.values import Blob, Caption, Dataset, Image, Model, Patch, Row

if TYPE_CHECKING:
    from safelight.families import Family

SETTINGS = ("{}", "{}, close-up", "{}, blue background", "{} on a beach", "{}, yellow background", "{} in the snow",
            "{} in a city at night", "{} in a forest")
"""Where a subject is drawn to see whether it can be drawn anywhere else than in its pictures."""

DONE = "trained.json"
"""In the run's own folder, once it is trained and not yet measured."""

SHOWN = 4
"""Pictures of each kind on the sheet."""


def train_dreambooth(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str) -> Work[Patch]:
    """A patch of the kind `lora` or `full`; its record has `dreambooth`, what `measured` says, and `dreambooth.png` shows it. The plan's
    shape is a Subject."""
    judge = _judge(plan.shape)
    if judge is not None:
        ClipTowers.load(judge)  # now, not when all is trained
        forget()
    patch = (yield from _taught(model, data, plan, work, lineage)) if not (work / DONE).is_file() else _read(work / DONE)
    if plan.shape.judged >= 2:
        _write(work / DONE, patch)  # so that the training is not lost when the measuring is stopped
        patch = yield from _judged(model, patch, data, plan.shape)
    shutil.rmtree(work)
    return patch


def _taught(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str) -> Work[Patch]:
    word = rare(plan.shape)
    rest = (plan.optimizer, plan.batches, replace(plan.objective, trigger=word), plan.watch, plan.seed)
    called = Dataset(tuple(shared.called(row, word, Caption("dreambooth", plan.shape.instance)) for row in data.kept))
    ready = partial(prepare, subject=plan.shape)
    if plan.shape.whole:
        shape = FullShape(parts="all" if plan.shape.text_encoder else "denoiser")
        return (yield from full.train_full(model, called, Plan(shape, *rest), work / "run", lineage, prepare=ready))
    return (yield from lora.train_lora(model, called, lora.Plan(plan.shape, *rest), work / "run", lineage, prepare=ready))


def _write(place: Path, patch: Patch) -> None:
    told = encode(patch)
    put(place, json.dumps({"tree": told.tree, "at": {sha: blob.path for sha, blob in told.blobs.items()}}).encode())


def _read(place: Path) -> Patch:
    told = json.loads(place.read_text("utf-8"))
    patch: Patch = decode(told["tree"], {}, lambda sha: Blob(told["at"][sha], sha))
    return patch


def _judged(model: Model, patch: Patch, data: Dataset, subject: Subject) -> Work[Patch]:
    numbers, sheet = yield from measured(model, patch, data.kept, subject)
    record = json.loads(Path(patch.files["record.json"].path).read_text("utf-8")) | {"dreambooth": numbers}
    held = io.BytesIO()
    Pil.fromarray(sheet.bytes8()[0]).save(held, "PNG")
    blobs = {"record.json": json.dumps(record, ensure_ascii=False).encode(), "dreambooth.png": held.getvalue()}
    return replace(patch, files={**patch.files, **{name: current().blob(raw, Path(name).suffix) for name, raw in blobs.items()}})


def _judge(subject: Subject) -> Path | None:
    """The folder of the CLIP that is given. ValueError when there is none."""
    return find("train_dreambooth", subject.judge) if subject.judge and subject.judged >= 2 else None


def rare(subject: Subject) -> str:
    """The words of the instance's prompt that the class's has not. ValueError when there is none."""
    known = subject.class_name.split()
    words = [word for word in subject.instance.split() if word not in known]
    if not words or " ".join(words) not in subject.instance:
        raise ValueError(f"train_dreambooth: instance {subject.instance!r}, class_name {subject.class_name!r}; expected the class's words "
                         "with a rare word among them, such as 'a sks person' and 'a person'")
    return " ".join(words)


def prepare(op: str, family: Family, model: Model, data: Dataset, plan: Any, *, subject: Subject) -> Work[Lesson]:
    """The lesson of the subject's pictures, each by those of its captions that have the rare word, with the class's beside them."""
    lesson = yield from denoising.prepare(op, family, model, data, replace(plan, objective=replace(plan.objective, prior=0.0)))
    lesson = replace(lesson, learn=shared.naming(lesson.learn, plan.objective.trigger))
    if not plan.objective.prior:
        return lesson
    shelf = cache.Shelf(current().folder("encoded"))
    with parallel.first():
        own = yield from denoising.own_pictures(family, model, [subject.class_name] * subject.classes, lesson.side, shelf)
        texts = yield from shared.texts(family, model, {*lesson.texts, subject.class_name}, shelf)
    return replace(lesson, own=own, texts=texts)


def measured(model: Model, patch: Patch, rows: Sequence[Row], subject: Subject) -> Work[tuple[dict[str, Any], Image]]:
    """What became of the model, in the CLIP that is given or the embedded one, and a sheet of it.

    `diversity` of the subject drawn in many settings, beside that of the class before (`diversity_before`) and the `ratio` of the two;
    `drift` of the class's bare words (see `scoring.drift`); `likeness`, the mean cosine similarity of the subject's pictures and the given
    ones, and that of the class's before.
    """
    n, towers = subject.judged, ClipTowers.load(_judge(subject))
    places = [SETTINGS[i % len(SETTINGS)] for i in range(n)]
    drawn = []
    for who, called in ((model, subject.class_name), (model.with_patch(patch), subject.instance)):
        drawn.append((yield from _drawn(who, [place.format(called) for place in places] + [subject.class_name] * n)))
    before, after = (towers.image(image.pixels) for image in drawn)
    given = towers.image(np.stack([floats(square(read(row.picture.path, least=towers.size), towers.size)) for row in rows]))
    spread = [diversity(seen[:n]) for seen in (before, after)]
    numbers = {
        "diversity_before": spread[0], "diversity": spread[1], "ratio": spread[1] / max(spread[0], 1e-9),
        "drift": drift(before[n:], after[n:]), "likeness_before": float((before[:n] @ given.T).mean()),
        "likeness": float((after[:n] @ given.T).mean()), "pictures": n,
    }
    chosen = [(0, 0), (1, 0), (0, n), (1, n)]
    pixels = np.concatenate([drawn[which].pixels[at : at + min(n, SHOWN)] for which, at in chosen])
    infos = tuple(info for which, at in chosen for info in drawn[which].info[at : at + min(n, SHOWN)])
    said = {name: round(value, 3) for name, value in numbers.items()}
    title = f"{subject.class_name}; {subject.instance}; then {subject.class_name}, before and after: drift {said['drift']}"
    return said, contact_sheet(Image(pixels, infos), columns=min(n, SHOWN), title=title)


def _drawn(model: Model, prompts: Sequence[str]) -> Work[Image]:
    """One picture a prompt, each with its own seed, the same for every model."""
    with lease(model, holder="train_dreambooth") as family:
        return (yield from draw(family, shared.shots(family, prompts), previews=False))
