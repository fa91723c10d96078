"""From captioned pictures to a patch that is proven to do what was trained: the way that methods share which train what is in a model."""
from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from safelight import provenance
from safelight.events import Progress
from safelight.recipes import denoising, shared
from safelight.runtime import lease
from safelight.spec import Work
from safelight.store import current
from safelight.train import lora_file
from safelight.train.lessons import Lesson
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.values import Blob, Dataset, Model, Patch, canonical

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.train.trainables import Trainable


@dataclass(frozen=True)
class Plan:
    """All settings of a run; `shape` are those of the method."""

    shape: Any
    optimizer: Optimizer
    batches: Batches
    objective: Objective
    watch: Watch
    seed: int


class Prepare(Protocol):
    """How a dataset becomes a lesson: `denoising.prepare`, or that and more."""

    def __call__(self, op: str, family: Family, model: Model, data: Dataset, plan: Any) -> Work[Lesson]:
        """ValueError naming the op when there is nothing to learn from."""
        ...


@dataclass(frozen=True)
class Way:
    """A method: the kind of its patch and what that kind is told, what it puts into a model, and how its lesson is prepared."""

    op: str
    kind: str
    inside: Callable[[Family], AbstractContextManager[Trainable]]
    prepare: Prepare = denoising.prepare
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""


def teach(way: Way, model: Model, data: Dataset, plan: Plan, *, work: Path, lineage: str) -> Work[Patch]:
    """The patch, with its curves, samples and proof in `files`. `work` is the run's own folder: called again after it was stopped, in any
    way, it goes on there. `lineage` is written into the file."""
    with lease(model, dtype=shared.training_dtype(), train=True, holder=way.op) as family:
        lesson = yield from way.prepare(way.op, family, model, data, plan)
        with way.inside(family) as trainable:
            net = denoising.Net(family, trainable, lesson, plan)
            trained = yield from denoising.learn(net, work)
            tensors = trainable.file(trained.weights)
            size = sum(p.numel() for p in trainable.parameters.values())
        name = way.name or Path(model.source).name
        notes = lora_file.modelspec(family, f"{name} from {Path(model.source).name}", lesson.side, kind=way.kind)
    file = work / f"{way.kind}.safetensors"
    own = {"safelight.settings": canonical(plan), "safelight.lineage": lineage, "safelight.base": model.key, **provenance.notes(data, plan)}
    own[provenance.TENSORS] = f"0x{lora_file.tensor_hash(tensors)}"
    lora_file.write(file, tensors, notes | own)
    yield Progress(what="read the file back")
    patch = Patch(way.kind, Blob.of(file), options=way.options, info={"name": name, "steps": trained.step, "parameters": size})
    proof = prove(way, model, patch, tensors, lesson)
    files = shared.lasting(work / "samples", trained.record, proof=vars(proof), settings=plan, parameters=size)
    kept = replace(patch, weights=current().blob(file), files=files)
    shutil.rmtree(work)
    return kept


def prove(way: Way, model: Model, patch: Patch, tensors: Mapping[str, torch.Tensor], lesson: Lesson) -> lora_file.Proof:
    """Put the file on a fresh copy of the model in float32, and compare with what was trained, rounded as the file's numbers are.
    ValueError when they differ."""
    prompts = [lesson.learn.kept[0].captions[0], ""]
    with lease(model, dtype=torch.float32, holder=way.op) as family, way.inside(family) as trainable:
        trainable.load(tensors)
        said, layers = lora_file.probe(family, prompts), len(trainable.layers)
    with lease(model.with_patch(patch), dtype=torch.float32, holder=way.op) as family:
        return lora_file.compare(said, lora_file.probe(family, prompts), layers, len(tensors))
