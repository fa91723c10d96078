"""Textual inversion (arXiv:2208.01618): a new word learns to mean what some pictures show; the model itself stays as it is.

Only the word's vectors are trained. The pictures are called by short phrases around the word, another one at each step, so that the word
stands for what they have in common and not for a sentence.
"""
from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.recipes import denoising, teaching
from safelight.spec import Work
from safelight.train.lessons import Lesson
from safelight.train.methods import Token
from safelight.train.pictures import Pictures
from safelight.train.settings import Batches, Objective, Optimizer, Watch
from safelight.train.trainables.embedding import embedding
from safelight.values import Caption, Dataset, Model, Patch

if TYPE_CHECKING:
    from safelight.families import Family

PHRASES = ("{}", "a picture of {}", "a picture with {} in it", "{}, seen close", "one {}", "a drawing of {}", "this is {}", "look at {}")


@dataclass(frozen=True)
class Plan:
    """All settings of a run."""

    token: Token
    optimizer: Optimizer
    batches: Batches
    objective: Objective
    watch: Watch
    seed: int


def train_embedding(model: Model, data: Dataset, plan: Plan, work: Path, lineage: str) -> Work[Patch]:
    """A patch of the kind `embedding`: prompts call it by the token and by `embedding:NAME`, its letters and digits."""
    token = plan.token.token
    name = "".join(c for c in token if c.isalnum() or c in "-_") or "new"
    way = teaching.Way("train_embedding", "embedding", lambda family: embedding(family, plan.token), prepare,
                       options={"words": [f"embedding:{name}", token]}, name=name)
    return (yield from teaching.teach(way, model, data, plan, work=work, lineage=lineage))


def prepare(op: str, family: Family, model: Model, data: Dataset, plan: Plan) -> Work[Lesson]:
    """The lesson with the word in every caption. ValueError before anything is encoded when the model cannot learn a word."""
    with embedding(family, plan.token):
        pass
    called = [replace(row, captions=(Caption("token", _with(row.caption, plan.token)),)) for row in data.kept]
    lesson = yield from denoising.prepare(op, family, model, Dataset(tuple(called)), plan)
    return lesson if plan.token.own_captions else replace(lesson, learn=_phrased(lesson.learn, plan.token.token))


def _with(caption: str, token: Token) -> str:
    own = token.own_captions and caption
    return caption if own and token.token in caption else f"{token.token}, {caption}" if own else token.token


def _phrased(pictures: Pictures, token: str) -> Pictures:
    phrases = tuple(phrase.format(token) for phrase in PHRASES)
    return replace(pictures, kept=[replace(kept, captions=phrases) for kept in pictures.kept])
