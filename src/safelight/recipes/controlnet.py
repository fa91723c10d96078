"""Train a ControlNet (arXiv:2302.05543): a copy of the U-Net's encoder learns to steer it by a hint picture, the U-Net stays as it is.

Hints are made of the pictures themselves (`safelight.data.hints`), so any captioned dataset will do, or are given beside them; they are
made once and kept. The copy begins with outputs of zero: at the first step it changes nothing. Half of the captions are best left empty,
so that it learns to read the hint and not the words.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from safelight.data import hints
from safelight.events import Progress
from safelight.patches import control
from safelight.pictures import bytes8, floats, read
from safelight.recipes import denoising, shared
from safelight.runtime import lease
from safelight.spec import Work
from safelight.store import current
from safelight.train import batches, cache, held_out, lora_file, parallel
from safelight.train.captions import captioned
from safelight.train.lessons import Lesson, Slot
from safelight.train.loop import Trained
from safelight.train.methods import FREE
from safelight.train.pictures import Cut
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.train.trainables.steady import Steady
from safelight.values import Dataset, Model, Patch, Row, canonical, digest

if TYPE_CHECKING:
    from safelight.families import Family


@dataclass(frozen=True)
class Plan:
    """All settings of a run. `by` is the preprocessor; `attention` false leaves the text out of the copy, for a file half as large."""

    by: str
    attention: bool
    optimizer: Optimizer
    batches: Batches
    watch: Watch
    seed: int
    objective: Objective = FREE


def train_control(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str, *, given: Dataset | None = None) -> Work[Patch]:
    """The patch, float16, with its curves, samples and proof in `files`. `work` is the run's own folder: called again after it was stopped,
    in any way, it goes on there. `lineage` is written into the file. `given` are hint pictures by the names of the dataset's."""
    by = plan.by if given is None else "given"
    with lease(model, dtype=shared.training_dtype(), train=True, holder="train_control") as family:
        copy = begin(family, plan)
        lesson = yield from denoising.prepare("train_control", family, model, data, plan)
        shown = Hints(cache.Shelf(current().folder("encoded")), by, pairs(family, data, lesson, plan, given))
        with parallel.first():
            yield from shown.fill()
        net = denoising.Net(
            family, copy, lesson, plan, lambda slots: copy.steering(shown.of(slots)), beside=(copy.net,), drawn=alike(lesson))
        trained = yield from denoising.learn(net, work)
        config = json.loads(json.dumps(control.shape(copy.net)))  # as it comes back from the file
        notes = lora_file.modelspec(family, f"{by} for {Path(model.source).name}", lesson.side, kind="controlnet")
    notes |= {control.CONFIG: json.dumps(config, sort_keys=True), "safelight.hint": by, "safelight.lineage": lineage}
    file = work / "control.safetensors"
    lora_file.write(file, {k: t.half() for k, t in trained.weights.items()}, notes)
    yield Progress(what="read the file back")
    proof = prove(model, file, trained, config, shown.of([Slot(0, lesson.learn, 0, 0, "")]))
    files = shared.lasting(work / "samples", trained.record, proof=vars(proof), settings=plan)
    told = {"_class_name": "ControlNetModel", **config}
    files["config.json"] = current().blob(json.dumps(told, indent=1).encode(), ".json")
    info = {"name": by, "hint": by, "steps": trained.step}
    patch = Patch("control", current().blob(file), options={"config": config}, files=files, info=info)
    shutil.rmtree(work)
    return patch


@dataclass(frozen=True)
class Copy(Steady):
    """A ControlNet beside a model. `state` holds whether it is `on`."""

    family: Family
    net: nn.Module
    state: dict[str, bool] = field(default_factory=lambda: {"on": True})

    @property
    def layers(self) -> Mapping[str, nn.Parameter]:
        """The weights."""
        return self.parameters

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model without it, for as long as the block lasts."""
        self.state["on"] = False
        try:
            yield
        finally:
            self.state["on"] = True

    @contextmanager
    def steering(self, hint: Tensor) -> Iterator[None]:
        """The model under the hints (B, H, W, 3), one a row."""
        if not self.state["on"]:
            yield
            return
        f = self.family
        half = torch.autocast(f.device.type, f.dtype, enabled=f.dtype != torch.float32)  # the copy's weights are float32
        with control.attached(f, self.net, hint), half:
            yield


def begin(family: Family, plan: Plan) -> Copy:
    """The copy as it is before the first step; the same for the same seed. ValueError when there is nothing to copy."""
    if "unet" not in family.trainable():
        raise ValueError(f"train_control: a {family.name} model has no U-Net whose encoder could be copied; use SD, SDXL or Kolors")
    with torch.random.fork_rng():
        torch.manual_seed(batches.number("control", plan.seed))
        net = control.fresh(family, attention=plan.attention)
    if plan.optimizer.checkpointing:
        net.enable_gradient_checkpointing()
    return Copy(dict(net.named_parameters()), False, family, net)


Pairs = Mapping[str, tuple[Row, Row | None, Cut]]
"""By the key of a picture's latent: the picture, the hint that was given for it, and the window that is shown of both."""


def pairs(family: Family, data: Dataset, lesson: Lesson, plan: Plan, given: Dataset | None) -> Pairs:
    """ValueError naming a picture that has no hint, when hints are given."""
    rows, by_name = data.kept, {Path(row.name).stem: row for row in given.kept} if given is not None else {}
    lost = [row.name for row in rows if given is not None and Path(row.name).stem not in by_name]
    if lost:
        raise ValueError(f"train_control: hints: {len(lost)} of {len(rows)} pictures have none, such as {lost[0]}; "
                         "expected one of the same name")
    out: dict[str, tuple[Row, Row | None, Cut]] = {}
    learn, held = held_out.split(rows, plan.watch.held_out, plan.seed)
    for i, kept in zip([*learn, *held], [*lesson.learn.kept, *lesson.held.kept], strict=True):
        said = captioned(rows[i], lesson.trigger, several=plan.batches.several)
        cuts = shared.cut_of(rows[i], said, plan.batches, side=lesson.side, factor=family.factor)
        out |= {key: (rows[i], by_name.get(Path(rows[i].name).stem), cut) for key, cut in zip(kept.keys, cuts, strict=True)}
    return out


@dataclass(frozen=True)
class Hints:
    """Hint pictures of 8 bits, made once and kept on a shelf."""

    shelf: cache.Shelf
    by: str
    pairs: Pairs

    def key(self, latent: str) -> str:
        """Where the hint of a latent lies."""
        row, given, cut = self.pairs[latent]
        return digest("hint", self.by, (given or row).picture.sha256, canonical(cut))

    def fill(self) -> Work[None]:
        """Make those that are missing."""
        missing = [latent for latent in self.pairs if not self.shelf.has(self.key(latent))]
        for done, latent in enumerate(missing, 1):
            row, given, cut = self.pairs[latent]
            pixels = floats(cut.of(read((given or row).picture.path, least=max(cut.width, cut.height))))
            made = pixels if given is not None else hints.make(pixels[None], self.by, hints.Asked())[0]
            self.shelf.put(self.key(latent), {"hint": torch.from_numpy(bytes8(made).copy())})
            yield Progress(step=done, total=len(missing), what="hints", unit="picture")

    def of(self, slots: Sequence[Slot]) -> Tensor:
        """(B, H, W, 3) in [0, 1]."""
        keys = [self.key(slot.pictures.kept[slot.item].keys[slot.cut]) for slot in slots]
        return torch.from_numpy(floats(np.stack([cache.there(self.shelf, key)["hint"].numpy() for key in keys])))


def alike(lesson: Lesson) -> list[Slot]:
    """Pictures whose hints are drawn after, those that are not learned from first: all of one shape."""
    pictures = [(p, i) for p in (lesson.held, lesson.learn) for i in range(len(p))]
    shape = pictures[0][0].kept[pictures[0][1]].shape
    same = [(p, i) for p, i in pictures if p.kept[i].shape == shape]
    return [Slot(n, p, i, 0, p.kept[i].captions[0]) for n, (p, i) in enumerate(same)]


@torch.no_grad()
def prove(model: Model, file: Path, trained: Trained, config: dict[str, Any], hint: Tensor) -> lora_file.Proof:
    """Read the file back in float32 and compare with the trained weights, rounded as the file's are. ValueError when they differ."""
    with lease(model, dtype=torch.float32, holder="train_control") as family:
        net = control.load(family, str(file), config)
        with control.attached(family, net, hint):
            read_back = lora_file.probe(family, [""])
        layers = dict(net.named_parameters())
        for name, p in layers.items():
            p.copy_(trained.weights[name].half())
        with control.attached(family, net, hint):
            return lora_file.compare(lora_file.probe(family, [""]), read_back, len(layers), len(trained.weights))
