"""Teaching a model something new."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

from safelight.op import Knob, OneOf, Work, op
from safelight.ops.control import hint_names
from safelight.train.settings import (
    BATCHES,
    OBJECTIVE,
    OPTIMIZER,
    SHAPE,
    STEER,
    STEERED,
    WATCH,
    Batches,
    LoraShape,
    Objective,
    Optimizer,
    Watch,
)
from safelight.values import Dataset, Model, Patch, canonical, digest


@op(group="train", version=3)
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
    from safelight.recipes.lora import Plan
    from safelight.recipes.lora import train_lora as run

    plan = Plan(shape, optimizer, batches, objective, watch, seed)
    return (yield from run(model, data, plan, *_place("train_lora", model, data, plan)))


@op(group="train", version=2)
def train_control(
    model: Model, data: Dataset, *,
    by: Annotated[str, OneOf(hint_names)] = "canny",
    attention: bool = True,
    optimizer: Optimizer = STEER,
    batches: Batches = STEERED,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Train a ControlNet: a network beside the model that makes it follow a picture, such as its edges.

    The pictures to follow are made of the dataset's own. The best step by the held-out pictures is kept, the file is proven by reading it
    back, and a training that was stopped goes on where it was, all as in train_lora. Use it by with_control.

    Args:
        model: what to steer
        data: pictures with captions; thousands of them
        by: what is followed, as in hint
        attention: let it read the prompt too; without, the file is about half as large
        seed: order, noise and start of the training; -1 draws one
    """
    from safelight.recipes.controlnet import Plan
    from safelight.recipes.controlnet import train_control as run

    plan = Plan(by, attention, optimizer, batches, watch, seed)
    return (yield from run(model, data, plan, *_place("train_control", model, data, plan)))


def _place(name: str, model: Model, data: Dataset, plan: object) -> tuple[Path, str]:
    """The run's own folder, the same for the same run, and the lineage that goes into its file."""
    from safelight.lineage import here
    from safelight.store import current, making

    made = making()
    folder = made.recipe if made is not None else digest(name, model.key, data.key, canonical(plan))
    return current().folder(folder), json.dumps(here().data, ensure_ascii=False, sort_keys=True) if made is not None else "{}"
