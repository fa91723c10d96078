"""Teaching a model something new."""
from __future__ import annotations

import json
from typing import Annotated

from safelight.op import Knob, Work, op
from safelight.train.settings import BATCHES, OBJECTIVE, OPTIMIZER, SHAPE, WATCH, Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Dataset, Model, Patch, canonical, digest


@op(group="train", version=2)
def train_lora(
    model: Model, data: Dataset, *,
    shape: LoraShape = SHAPE,
    optimizer: Optimizer = OPTIMIZER,
    batches: Batches = BATCHES,
    objective: Objective = OBJECTIVE,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Train a LoRA: a small file that teaches the model a style or a thing from captioned pictures.

    The best step by the held-out pictures is kept. The file is in kohya's layout and is proven by reading it back. A training that was
    stopped, or whose process was killed, goes on where it was when it is started again, and ends with the same file, bit for bit.

    Args:
        model: what to teach
        data: pictures with captions; a trigger in the captions keeps what is learned where it is called
        seed: order, noise and start of the training; -1 draws one
    """
    from safelight.lineage import here
    from safelight.recipes.lora import Plan
    from safelight.recipes.lora import train_lora as run
    from safelight.store import current, making

    plan = Plan(shape, optimizer, batches, objective, watch, seed)
    made = making()
    name = made.recipe if made is not None else digest("train_lora", model.key, data.key, canonical(plan))
    lineage = json.dumps(here().data, ensure_ascii=False, sort_keys=True) if made is not None else "{}"
    return (yield from run(model, data, plan, current().folder(name), lineage))
