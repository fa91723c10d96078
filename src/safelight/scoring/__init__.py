"""Numbers for pictures: one metric a file, one registry entry each; larger is better in all of them."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safelight.values import Dataset, Image, Scores


@dataclass(frozen=True)
class Subject:
    """What is judged: a batch of pictures, the prompt of each (may be empty), and the pictures whose style they should have."""

    image: Image
    prompts: tuple[str, ...] = ()
    against: Dataset | None = None


@dataclass(frozen=True)
class Metric:
    """A registered metric: `take` gives one float a picture; `label` and `unit` are for people."""

    name: str
    take: Callable[[Subject], list[float]]
    label: str
    unit: str

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.take) or ""


METRICS: dict[str, Metric] = {}


def metric(name: str, *, label: str = "", unit: str = "") -> Callable[[Callable[[Subject], list[float]]], Callable[[Subject], list[float]]]:
    """Register a metric: one finite float for every picture of the subject, larger is better."""

    def register(take: Callable[[Subject], list[float]]) -> Callable[[Subject], list[float]]:
        METRICS[name] = Metric(name, take, label or name, unit)
        return take

    return register


def prompts_of(image: Image, given: Sequence[str]) -> tuple[str, ...]:
    """The given prompts, one for all or one each; without any, what each picture's info says; empty where nothing is known."""
    if given:
        if len(given) not in (1, len(image)):
            raise ValueError(f"score: prompts: got {len(given)} for {len(image)} pictures, expected one for all or one for each")
        return tuple(given) * (len(image) if len(given) == 1 else 1)
    return tuple(str(i.get("prompt", "")) for i in image.info) if image.info else ("",) * len(image)


def score(image: Image, by: Sequence[str], *, prompts: Sequence[str] = (), against: Dataset | None = None) -> Scores:
    """Every metric of `by` for every picture. ValueError for an unknown metric, or one that lacks its prompt or dataset."""
    if not by:
        raise ValueError(f"score: by: got no metric, expected some of {', '.join(sorted(METRICS))}")
    subject = Subject(image, prompts_of(image, prompts), against)
    values: dict[str, list[float]] = {}
    for name in by:
        if name not in METRICS:
            raise ValueError(f"score: by: got {name!r}, expected some of {', '.join(sorted(METRICS))}")
        values[name] = METRICS[name].take(subject)
    return Scores(values, image)


from safelight.scoring import clip, colourfulness, sharpness, style  # noqa: E402  (they register themselves)

__all__ = ["METRICS", "Metric", "Subject", "clip", "colourfulness", "metric", "prompts_of", "score", "sharpness", "style"]
