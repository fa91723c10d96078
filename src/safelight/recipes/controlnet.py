"""Train a ControlNet (arXiv:2302.05543): a copy of the U-Net's encoder learns to steer it by a hint picture, the U-Net stays as it is.

Hints are made of the pictures themselves (`safelight.data.hints`), so any captioned dataset will do. The copy begins with outputs of zero:
at the first step it changes nothing. Half of the captions are best left empty, so that it learns to read the hint and not the words.
"""
from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from safelight.data import hints
from safelight.events import Progress
from safelight.families.joining import join, repeats
from safelight.patches import control
from safelight.pictures import floats, read, square
from safelight.recipes import shared
from safelight.runtime import lease
from safelight.spec import Work
from safelight.store import current
from safelight.train import batches, held_out, lora_file, objectives
from safelight.train.loop import Reading, Trained, train
from safelight.train.settings import Batches, Optimizer, Watch
from safelight.values import Cond, Dataset, Model, Patch

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


def train_control(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str) -> Work[Patch]:
    """The patch, float16, with its curves, samples and proof in `files`. `work` is the run's own folder: called again after it was stopped,
    in any way, it goes on there. `lineage` is written into the file."""
    with lease(model, dtype=shared.training_dtype(), train=True, holder="train_control") as family:
        side = yield from shared.check("train_control", family, data, plan.batches.size)
        rows, captions = data.kept, [row.caption for row in data.kept]
        part = plan.watch.held_out
        lesson = yield from shared.encoded(family, model, rows, captions, side=side, part=part, seed=plan.seed)
        net = Net(family, begin(family, plan), lesson, plan)
        parameters, watcher = dict(net.copy.named_parameters()), Watching(net, work / "samples")
        trained = yield from train(shared.training(parameters, net.losses, watcher, plan=plan, work=work))
        config = json.loads(json.dumps(control.shape(net.copy)))  # as it comes back from the file
        notes = lora_file.modelspec(family, f"{plan.by} for {Path(model.source).name}", side, kind="controlnet")
    notes |= {control.CONFIG: json.dumps(config, sort_keys=True), "safelight.hint": plan.by, "safelight.lineage": lineage}
    file = work / "control.safetensors"
    lora_file.write(file, {k: t.half() for k, t in trained.weights.items()}, notes)
    yield Progress(what="read the file back")
    proof = prove(model, file, trained, config, net.hints(lesson.learn[:1]))
    files = shared.lasting(work / "samples", trained.record, proof=vars(proof), settings=plan)
    info = {"name": plan.by, "hint": plan.by, "steps": trained.step}
    patch = Patch("control", current().blob(file), options={"config": config}, files=files, info=info)
    shutil.rmtree(work)
    return patch


def begin(family: Family, plan: Plan) -> nn.Module:
    """The copy as it is before the first step; the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(batches.number("control", plan.seed))
        net: nn.Module = control.fresh(family, attention=plan.attention)
        return net


@dataclass(frozen=True)
class Net:
    """The model, the copy that is trained, the data, and what the loss is."""

    family: Family
    copy: nn.Module
    lesson: shared.Encoded
    plan: Plan

    def hints(self, rows: Sequence[int]) -> Tensor:
        """(B, side, side, 3) in [0, 1] of these rows' middle squares."""
        paths = [self.lesson.rows[i].picture.path for i in rows]
        pixels = np.stack([floats(square(read(path, least=self.lesson.side), self.lesson.side)) for path in paths])
        return torch.from_numpy(hints.make(pixels, self.plan.by, hints.Asked()))

    @contextmanager
    def steered(self, hint: Tensor) -> Iterator[None]:
        """The model under the hints (B, H, W, 3), one a row."""
        f = self.family
        half = torch.autocast(f.device.type, f.dtype, enabled=f.dtype != torch.float32)  # the copy's weights are float32
        with control.attached(f, self.copy, hint), half:
            yield

    def said(self, x: Tensor, sigma: Tensor, cond: Cond, hint: Tensor) -> Tensor:
        """What the network says of x (B, C, h, w) under the hints."""
        with self.steered(hint):
            return self.family.predict(x, sigma, cond).float()

    def cond(self, captions: Sequence[str]) -> Cond:
        """The captions as the model reads them."""
        return join([self.lesson.texts[c] for c in captions], repeated=repeats(self.family))

    def losses(self, step: int) -> Iterator[Tensor]:
        """One part: the batch's mean squared error."""
        f, plan, b = self.family, self.plan, self.plan.batches.batch
        rows = [self.lesson.learn[i] for i in batches.items(plan.seed, step, b, len(self.lesson.learn))]
        x0 = self.lesson.latents[rows].to(f.device)
        noise = batches.noise(plan.seed, step, b, tuple(x0.shape[1:])).to(f.device)
        sigma = batches.levels(f.sigmas, batches.times(plan.seed, step, b)).to(f.device)
        empty = (torch.rand(b, generator=batches.generator("drop", plan.seed, step)) < plan.batches.drop).tolist()
        cond = self.cond(["" if e else self.lesson.captions[i] for i, e in zip(rows, empty, strict=True)])
        said = self.said(f.noised(x0, noise, sigma), sigma, cond, self.hints(rows))
        yield (said - f.target(x0, noise, sigma)).square().mean()

    @torch.no_grad()
    def held_out_losses(self) -> Tensor:
        """(N,) of the held-out pictures, under their captions and hints."""
        f, held = self.family, self.lesson.held

        def errors(i: int, noise: Tensor, sigma: Tensor) -> Tensor:
            cond = self.cond([self.lesson.captions[held[i]]] * len(sigma))
            x0, noise, sigma = self.lesson.latents[held[i]].to(f.device).expand(noise.shape), noise.to(f.device), sigma.to(f.device)
            said = self.said(f.noised(x0, noise, sigma), sigma, cond, self.hints([held[i]]))
            return objectives.mean_square(said - f.target(x0, noise, sigma))

        shapes = [tuple(self.lesson.latents.shape[1:])] * len(held)
        return held_out.HeldOut(shapes, f.sigmas, self.plan.seed).losses(errors)


class Watching:
    """What is looked at between steps: the held-out loss, and pictures drawn after hints that were not learned from."""

    def __init__(self, net: Net, folder: Path) -> None:
        """Pictures go to `folder`."""
        self.net, self.folder = net, folder
        self.first: Tensor | None = None

    def __call__(self, step: int, record: dict[str, Any]) -> Work[Reading | None]:
        """A reading when pictures were held out; `samples` go into the record."""
        net, lesson = self.net, self.net.lesson
        rows = [*lesson.held, *lesson.learn][: net.plan.watch.samples]
        prompts = [lesson.captions[i] for i in rows]
        if rows:
            with net.steered(net.hints(rows)):
                record["samples"] = yield from shared.samples(net.family, prompts, self.folder, step)
        if not len(lesson.held):
            return None
        now = net.held_out_losses()
        self.first = now if self.first is None else self.first
        yield Progress(what="held-out loss")
        return held_out.reading(now, self.first)


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
