"""Fine-tune a model's own weights. They are float32 while they learn, over a base in its own dtype; the result is a patch of whole weights,
which `save` writes as a model in the layout of its base."""
from __future__ import annotations

from pathlib import Path

from safelight.recipes import denoising, teaching
from safelight.spec import Work
from safelight.train.trainables.full import full
from safelight.values import Dataset, Model, Patch


def train_full(model: Model, data: Dataset, plan: teaching.Plan, work: Path, lineage: str, *,
               prepare: teaching.Prepare = denoising.prepare) -> Work[Patch]:
    """A patch of the kind `full`, as `teaching.teach` makes it. The plan's shape is a FullShape."""
    way = teaching.Way("train_full", "full", lambda family: full(family, plan.shape), prepare)
    return (yield from teaching.teach(way, model, data, plan, work=work, lineage=lineage))
