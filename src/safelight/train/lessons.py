"""What is shown at a step: which pictures, cut how, called what, under which noise. All of it is a function of (seed, step, slot)."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safelight.train import batches, objectives
from safelight.train.batches import Order, generator, number, share
from safelight.train.captions import varied, without
from safelight.train.pictures import Pictures

if TYPE_CHECKING:
    from safelight.train.settings import Batches, Objective
    from safelight.values import Cond


@dataclass(frozen=True)
class Lesson:
    """The data, ready: pictures to learn, pictures of what the untouched model draws without the trigger (or of the class), pictures held
    out; texts as the untouched model reads them (those missing are read when they are shown); the trigger; the side that was asked for."""

    learn: Pictures
    own: Pictures
    held: Pictures
    texts: Mapping[str, Cond]
    trigger: str
    side: int


@dataclass(frozen=True)
class Slot:
    """One place of a batch: picture `item` of `pictures`, which of its cuts, its caption now. `quiet`: without the trigger, so that the
    model is held to what it was. `number` counts over the whole batch, of all processes."""

    number: int
    pictures: Pictures
    item: int
    cut: int
    caption: str
    quiet: bool = False


@dataclass(frozen=True)
class Part:
    """Slots of one latent shape, ready: x0, noise, and the noise that is shown instead of it (B, C, h, w), time and sigma (B,), `sizes`
    (B, 6) and `mask` (B, 1, h, w) where there are any."""

    slots: Sequence[Slot]
    x0: Tensor
    noise: Tensor
    shown: Tensor
    time: Tensor
    sigma: Tensor
    sizes: Tensor | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Course:
    """A lesson in the order it is taken, by the settings."""

    lesson: Lesson
    batches: Batches
    objective: Objective
    seed: int
    sigmas: Tensor

    @cached_property
    def order(self) -> Order:
        """Of the pictures to learn."""
        return Order(self.lesson.learn.groups(), self.batches.batch, self.seed)

    @cached_property
    def own_order(self) -> Order:
        """Of the others."""
        return Order(self.lesson.own.groups(), self.batches.batch, self.seed + 1)

    def slots(self, step: int) -> list[Slot]:
        """The whole batch, some captions left empty. The last, quiet slots: half are pictures to learn, which teach what the trigger means,
        and half the model's own, which keep those as they are: with either kind alone more of the style leaks. Held by pictures, all of
        them are the own ones."""
        b, o, lesson = self.batches.batch, self.objective, self.lesson
        quiet = share(step, b, o.prior) if len(lesson.own) or o.prior_by == "answers" else 0
        own = (quiet if o.prior_by == "pictures" else share(step, quiet, 0.5)) if quiet and len(lesson.own) else 0
        learn = self.order(step)[: b - own]
        chosen = [(lesson.learn, i) for i in learn] + [(lesson.own, i) for i in (self.own_order(step)[:own] if own else [])]
        empty = (torch.rand(b, generator=generator("drop", self.seed, step)) < self.batches.drop).tolist()
        return [self._slot(step, n, *chosen[n], quiet=n >= b - quiet, empty=empty[n]) for n in range(b)]

    def _slot(self, step: int, n: int, pictures: Pictures, item: int, *, quiet: bool, empty: bool) -> Slot:
        kept, s = pictures.kept[item], self.batches
        caption = kept.captions[number("caption", self.seed, step, n) % len(kept.captions)]
        if s.shuffle or s.drop_parts:
            source = generator("parts", self.seed, step, n)
            caption = varied(caption, self.lesson.trigger, source, keep=s.keep, shuffle=s.shuffle, drop=s.drop_parts)
        if quiet and pictures is self.lesson.learn:
            caption = without(caption, self.lesson.trigger)
        cut = number("cut", self.seed, step, n) % len(kept.keys)
        return Slot(n, pictures, item, cut, "" if empty else caption, quiet)

    def times(self, step: int) -> Tensor:
        """(batch,) in [0, 1)."""
        return objectives.times(self.objective, batches.times(self.seed, step, self.batches.batch))

    def parts(self, step: int, shares: Sequence[Sequence[int]]) -> list[Part]:
        """The slots of each share (numbers), apart by shape."""
        slots, times = self.slots(step), self.times(step)
        return [self.part(step, some, times) for numbers in shares for some in _of_one_shape([slots[n] for n in numbers])]

    def part(self, step: int, slots: Sequence[Slot], times: Tensor) -> Part:
        """Slots of one shape, of times (batch,)."""
        read = [s.pictures.read(s.item, s.cut) for s in slots]
        x0, time = torch.stack([r["latent"] for r in read]), times[[s.number for s in slots]]
        noise, shown = self._noise(step, [s.number for s in slots], (x0.shape[1], x0.shape[2], x0.shape[3]))
        sizes = torch.stack([r["size"] for r in read]) if all("size" in r for r in read) else None
        blank = x0.new_ones(1, *x0.shape[2:])
        mask = torch.stack([r.get("mask", blank) for r in read]) if any("mask" in r for r in read) else None
        return Part(slots, x0, noise, shown, time, batches.levels(self.sigmas.cpu(), time), sizes, mask)

    def _noise(self, step: int, numbers: Sequence[int], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        o, seed = self.objective, self.seed
        noise = batches.pyramid(seed, step, numbers, shape, o.pyramid) if o.pyramid else batches.noise(seed, step, numbers, shape)
        if o.noise_offset:
            noise = noise + o.noise_offset * batches.noise(seed, step, numbers, (shape[0], 1, 1), "offset")
        return noise, noise + o.perturb * batches.noise(seed, step, numbers, shape, "perturb") if o.perturb else noise


def _of_one_shape(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    shapes: dict[tuple[int, int], list[Slot]] = {}
    for slot in slots:
        shapes.setdefault(slot.pictures.kept[slot.item].shape, []).append(slot)
    return iter(shapes.values())
