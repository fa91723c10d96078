"""Fine-tune a model's own weights. They are float32 while they learn, over a base in its own dtype; the result is a patch of whole weights,
which `save` writes as a model in the layout of its base."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safelight.recipes import denoising, teaching
from safelight.spec import Work
from safelight.train.methods import FullShape
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.train.trainables.full import full
from safelight.values import Dataset, Model, Patch


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    shape: FullShape
    optimizer: Optimizer
    batches: Batches
    objective: Objective
    watch: Watch
    seed: int


def train_full(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str, *,
               prepare: teaching.Prepare = denoising.prepare) -> Work[Patch]:
    """A patch of the kind `full`, as `teaching.teach` makes it."""
    way = teaching.Way("train_full", "full", lambda family: full(family, plan.shape), prepare)
    return (yield from teaching.teach(way, model, data, plan, work=work, lineage=lineage))
