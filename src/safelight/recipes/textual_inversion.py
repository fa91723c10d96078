"""Textual inversion (arXiv:2208.01618): a new word learns to mean what some pictures show; the model itself stays as it is.

Only the word's vectors are trained. A caption that has the word in it stays: what it says besides, such as the background, is not put into
the word. Other pictures are called by short phrases around the word, another one at each step, so that the word stands for what they have
in common and not for a sentence.
"""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from safelight.recipes import denoising, shared, teaching
from safelight.spec import Work
from safelight.train.lessons import Lesson
from safelight.train.trainables.embedding import embedding
from safelight.values import Caption, Dataset, Model, Patch

if TYPE_CHECKING:
    from safelight.families import Family

PHRASES = ("{}", "a picture of {}", "a picture with {} in it", "{}, seen close", "one {}", "a drawing of {}", "this is {}", "look at {}")


def train_embedding(model: Model, data: Dataset, plan: teaching.Plan, work: Path, lineage: str) -> Work[Patch]:
    """A patch of the kind `embedding`: prompts call it by the token and by `embedding:NAME`, its letters and digits. The plan's shape is a
    Token."""
    token = plan.shape.token
    name = "".join(c for c in token if c.isalnum() or c in "-_") or "new"
    way = teaching.Way("train_embedding", "embedding", lambda family: embedding(family, plan.shape), prepare,
                       options={"words": [f"embedding:{name}", token]}, name=name)
    return (yield from teaching.teach(way, model, data, plan, work=work, lineage=lineage))


def prepare(op: str, family: Family, model: Model, data: Dataset, plan: teaching.Plan) -> Work[Lesson]:
    """The lesson with the word in every caption. ValueError before anything is encoded when the model cannot learn a word."""
    with embedding(family, plan.shape):
        pass
    word = plan.shape.token
    called = Dataset(tuple(shared.called(row, word, Caption("token", word)) for row in data.kept))
    lesson = yield from denoising.prepare(op, family, model, called, plan)
    phrases = tuple(phrase.format(word) for phrase in PHRASES)
    learn = [replace(k, captions=phrases) if word in k.captions else k for k in shared.naming(lesson.learn, word).kept]
    return replace(lesson, learn=replace(lesson.learn, kept=learn))
