"""Train a LoRA (arXiv:2106.09685) on captioned pictures: from a model and a dataset to a patch that is proven to do what was trained.

Read `train_lora` from top to bottom; what it uses lies in `safelight.train`. Latents and captions are encoded once and kept; the LoRA's
weights are float32 over the model in its own dtype; a share of every batch holds the model to what it said before when the trigger is not
there (prior preservation, arXiv:2208.12242, with the model's own answers as target), so that the style stays where it is called.
"""
from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from safelight import provenance
from safelight.data import summary
from safelight.embed import LINEAGE
from safelight.events import Note, Progress
from safelight.recipes import denoising, lora_notes, portable, shared, teaching
from safelight.runtime import lease, release
from safelight.spec import Work
from safelight.store import current
from safelight.train import lora_file, trainables
from safelight.train.lessons import Lesson
from safelight.train.loop import Reading, Trained, Watcher
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Dataset, Model, Patch, canonical


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    shape: LoraShape
    optimizer: Optimizer
    batches: Batches
    objective: Objective
    watch: Watch
    seed: int


def train_lora(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str, *,
               prepare: teaching.Prepare = denoising.prepare) -> Work[Patch]:
    """The patch, with its curves, samples and proof in `files`. `work` is the run's own folder: called again after it was stopped, in any
    way, it goes on there, and ends with the very file an uninterrupted run writes. `lineage` is written into the file."""
    if plan.shape.method == "adalora" and (plan.optimizer.average or plan.optimizer.kind == "schedulefree"):
        raise ValueError("train_lora: adalora takes ranks away, which averaged weights would still have; expected average 0 and another "
                         "optimizer than schedulefree")
    samples, file = work / "samples", work / "lora.safetensors"
    with lease(model, dtype=shared.training_dtype(), train=True, holder="train_lora") as family:
        lesson = yield from prepare("train_lora", family, model, data, plan)
        with trainables.adapter(family, plan.shape, plan.seed) as adapter:
            net = denoising.Net(family, adapter, lesson, plan)
            watcher: Watcher = denoising.Watching(net, samples)
            watcher = Keeping(watcher, adapter, work / "steps") if plan.watch.files else watcher
            trained = yield from denoising.learn(net, work, watcher=watcher, rates=adapter.rates)
            tensors = adapter.file(trained.weights)
        notes = lora_notes.metadata(family, model, lesson=lesson, plan=plan, trained=trained, samples=samples, tensors=tensors)
    sha = lora_file.tensor_hash(tensors)
    notes |= {LINEAGE: lineage, "sshs_model_hash": sha, provenance.TENSORS: f"0x{sha}", **provenance.notes(data, plan)}
    lora_file.write(file, tensors, notes)
    yield Progress(what="read the file back")
    release()  # the proof is in float32: the model in its own dtype would be in memory beside it
    proof, readers = yield from prove(model, file, plan, trained, [lesson.learn.kept[0].captions[0], ""])
    told = [vars(r) for r in readers]
    lora_file.write(file, tensors, {**notes, "safelight.proof": canonical(told)})
    told_of = {"proof": {**vars(proof), "readers": told}, "licences": summary.origins(data.kept, "licence")}
    patch = finished(work, trained=trained, told=told_of, plan=plan, lesson=lesson)
    shutil.rmtree(work)
    return patch


@dataclass(frozen=True)
class Keeping:
    """A watcher that also writes the weights it looks at into a folder, as they would be saved: `step-000500.safetensors`."""

    inner: Watcher
    adapter: trainables.Trainable
    folder: Path

    def __call__(self, step: int, record: dict[str, Any]) -> Work[Reading | None]:
        """As the inner one's."""
        found = yield from self.inner(step, record)
        if step:
            self.folder.mkdir(exist_ok=True)
            weights = {name: p.detach() for name, p in self.adapter.parameters.items()}
            lora_file.write(self.folder / f"step-{step:06d}.safetensors", self.adapter.file(weights), {"ss_steps": str(step)})
        return found


def prove(
    model: Model, file: Path, plan: Plan, trained: Trained, prompts: Sequence[str],
) -> Work[tuple[lora_file.Proof, list[portable.Reading]]]:
    """Read the file back onto a fresh copy of the model in float32, here and through diffusers, and compare with the trained form.
    ValueError when they differ here; a warning when diffusers makes something else of it."""
    with lease(model, dtype=torch.float32, holder="train_lora") as family, trainables.adapter(family, plan.shape, plan.seed) as adapter:
        adapter.load(trained.weights)
        said, layers = (yield from portable.look(family, prompts)), len(adapter.layers)
    readers, matched = yield from portable.readings(model, file, prompts, said)
    proof = lora_file.checked(lora_file.Proof(readers[0].max_difference, matched, layers))
    for reader in readers:
        yield Note(text=f"train_lora: read back by {reader}", level="info" if reader.sound else "warning")
    return proof, readers


def finished(work: Path, *, trained: Trained, told: Mapping[str, Any], plan: Plan, lesson: Lesson) -> Patch:
    """The patch; everything that should outlive the run's folder is copied into the store, and what is `told` goes into the record."""
    files = shared.lasting(work / "samples", trained.record, **told, settings=plan)
    files |= {f"steps/{kept.name}": current().blob(kept) for kept in sorted((work / "steps").glob("*.safetensors"))}
    info = {"name": lesson.trigger or "lora", "trigger": lesson.trigger, "steps": trained.step, "rank": plan.shape.rank}
    return Patch("lora", current().blob(work / "lora.safetensors"), files=files, info=info)
