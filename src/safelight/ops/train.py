"""Teaching a model something new."""
from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ParamSpec

from safelight.computing import chosen
from safelight.op import Knob, OneOf, Work, op
from safelight.ops.control import hint_names
from safelight.train.methods import FREE, FULL, GENTLE, HELD, QUICK, SLOW, SPOKEN, SUBJECT, TOKEN, FullShape, Subject, Token
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
from safelight.values import Dataset, Knobs, Model, Patch, canonical, digest

P = ParamSpec("P")


@op(group="train", version=5)
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
    return (yield from _begin(run, model, data, plan, *_place("train_lora", model, data, plan)))


@dataclass(frozen=True)
class Follow(Knobs):
    """What a ControlNet learns to follow."""

    by: Annotated[str, OneOf(hint_names, help="what is followed, as in hint, when no hints are given")] = "canny"
    attention: Annotated[bool, "let it read the prompt too; without, the file is about half as large"] = True


FOLLOW = Follow()


@op(group="train", version=3)
def train_control(
    model: Model, data: Dataset, *,
    hints: Dataset | None = None,
    follow: Follow = FOLLOW,
    optimizer: Optimizer = STEER,
    batches: Batches = STEERED,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Train a ControlNet: a network beside the model that makes it follow a picture, such as its edges.

    The pictures to follow are made of the dataset's own, or given. The best step by the held-out pictures is kept, the file is proven by
    reading it back, and a training that was stopped goes on where it was, all as in train_lora. Use it by with_control.

    Args:
        model: what to steer
        data: pictures with captions; thousands of them
        hints: what is followed for each picture, under the same name; without, it is made of the picture
        seed: order, noise and start of the training; -1 draws one
    """
    from safelight.recipes.controlnet import Plan
    from safelight.recipes.controlnet import train_control as run

    plan = Plan(follow.by, follow.attention, optimizer, batches, watch, seed)
    place = _place("train_control", model, data, (plan, hints.key if hints else ""))
    return (yield from _begin(run, model, data, plan, *place, given=hints))


def _judge(given: Mapping[str, Any]) -> str:
    """The files of the CLIP that is given to measure in."""
    from safelight.data.networks import content, find

    return content(find("train_dreambooth", given["subject"].judge)) if given["subject"].judge else ""


@op(group="train", version=2, fingerprint=_judge)
def train_dreambooth(
    model: Model, data: Dataset, *,
    subject: Subject = SUBJECT,
    optimizer: Optimizer = OPTIMIZER,
    batches: Batches = BATCHES,
    objective: Objective = HELD,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Teach a model one subject from a handful of pictures: a rare word before the word for its class will mean it.

    The class is held where it was by pictures that the model draws of it first (`prior` 0: not). How much of the pictures' diversity is
    lost, and how far the class's bare word has drifted, is measured at the end and written into the record.

    Args:
        model: what to teach
        data: three to twenty pictures of the subject; captions that have the rare word are kept, all others become the instance's prompt
        seed: order, noise and start of the training; -1 draws one
    """
    from safelight.recipes.dreambooth import train_dreambooth as run
    from safelight.recipes.teaching import Plan

    plan = Plan(subject, optimizer, batches, objective, watch, seed)
    return (yield from _begin(run, model, data, plan, *_place("train_dreambooth", model, data, plan)))


@op(group="train", version=1)
def train_full(
    model: Model, data: Dataset, *,
    shape: FullShape = FULL,
    optimizer: Optimizer = GENTLE,
    batches: Batches = SLOW,
    objective: Objective = FREE,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Train the model's own weights: for hundreds of pictures and more, where a LoRA is too narrow.

    They are float32 while they learn, 16 bytes a weight beside the model itself. The file is proven by reading it back. Use it by
    with_full; the model that gives can be saved whole, in the layout of its base.

    Args:
        model: what to teach
        data: pictures with captions
        seed: order and noise of the training; -1 draws one
    """
    from safelight.recipes.full import train_full as run
    from safelight.recipes.teaching import Plan

    plan = Plan(shape, optimizer, batches, objective, watch, seed)
    return (yield from _begin(run, model, data, plan, *_place("train_full", model, data, plan)))


@op(group="train", version=2)
def train_embedding(
    model: Model, data: Dataset, *,
    word: Token = TOKEN,
    optimizer: Optimizer = QUICK,
    batches: Batches = SPOKEN,
    objective: Objective = FREE,
    watch: Watch = WATCH,
    seed: Annotated[int, Knob(0, 2**53, draw=True)] = 0,
) -> Work[Patch]:
    """Teach a model a new word, and nothing else: a file of a few kilobytes (textual inversion). Use it by with_embedding.

    A caption that has the word in it says what else is in its picture, such as `<new>, blue background`, and that is then not learned as a
    part of the word. Captions without it are not read.

    Args:
        model: what reads the word; it must have a CLIP or BERT text encoder
        data: a handful of pictures of what the word should mean
        seed: order and noise of the training; -1 draws one
    """
    from safelight.recipes.teaching import Plan
    from safelight.recipes.textual_inversion import train_embedding as run

    plan = Plan(word, optimizer, batches, objective, watch, seed)
    return (yield from _begin(run, model, data, plan, *_place("train_embedding", model, data, plan)))


@op(group="model", store=False, exact=True)
def with_full(model: Model, weights: Patch, *, strength: Annotated[float, Knob(-10, 10, step=0.05)] = 1.0) -> Model:
    """Put trained weights in place of a model's own.

    Args:
        weights: from `train_full`, or from `train_dreambooth` with `whole`
        strength: 1 is as trained, 0.5 half way from the model's own
    """
    if weights.kind != "full":
        raise ValueError(f"with_full: weights: got a patch of the kind {weights.kind!r}, expected one from train_full")
    return model.with_patch(dataclasses.replace(weights, strength=strength))


def _place(name: str, model: Model, data: Dataset, plan: object) -> tuple[Path, str]:
    """The run's own folder, the same for the same run, and the lineage that goes into its file."""
    from safelight.lineage import here
    from safelight.store import current, making

    made = making()
    folder = made.recipe if made is not None else digest(name, model.key, data.key, canonical(plan), str(chosen()))
    return current().folder(folder), json.dumps(here().data, ensure_ascii=False, sort_keys=True) if made is not None else "{}"


def _begin(run: Callable[P, Work[Patch]], *args: P.args, **kwargs: P.kwargs) -> Work[Patch]:
    """The recipe's work, in all processes when there are several."""
    from safelight.train.parallel import together

    return together(run, *args, **kwargs)
