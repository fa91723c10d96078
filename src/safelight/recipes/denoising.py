"""What recipes share that train a denoiser on captioned pictures: the data made ready, the loss, and what is looked at on the way."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from safelight.events import Note, Progress
from safelight.families.joining import join, repeats
from safelight.recipes import shared
from safelight.sampling.draw import Shot, starts, walk
from safelight.sampling.settings import Guidance, Size
from safelight.spec import Work
from safelight.train import batches, cache, held_out, objectives
from safelight.train.captions import captioned, found_trigger, without
from safelight.train.loop import Reading
from safelight.train.settings import Objective
from safelight.values import Cond, Dataset, Model, canonical, digest

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.train.trainables import Trainable

OWN = 24
"""How many pictures of its own the model is held to, at most."""


class Plan(shared.Plan, Protocol):
    """The settings that the loss asks for."""

    @property
    def objective(self) -> Objective:
        """What counts as good."""
        ...

    @property
    def seed(self) -> int:
        """Of order, noise and start."""
        ...


@dataclass(frozen=True)
class Lesson:
    """The data, ready: latents (N, C, h, w) and captions of the pictures to learn, the same of those held out and of what the untouched
    model draws without the trigger; texts encoded by the untouched model; the trigger."""

    latents: Tensor
    captions: Sequence[str]
    own_latents: Tensor
    own_captions: Sequence[str]
    held_latents: Tensor
    held_captions: Sequence[str]
    texts: dict[str, Cond]
    trigger: str
    side: int


def prepare(family: Family, model: Model, data: Dataset, plan: Plan) -> Work[Lesson]:
    """Encode what is not yet encoded. ValueError when there is no picture."""
    side = yield from shared.check("train_lora", family, data, plan.batches.size)
    rows = data.kept
    trigger = plan.objective.trigger or found_trigger([row.caption for row in rows])
    captions = [captioned(row, trigger) for row in rows]
    quiet = {without(c, trigger) for c in captions}
    found = yield from shared.encoded(family, model, rows, captions, quiet, side=side, part=plan.watch.held_out, seed=plan.seed)
    if not trigger and plan.objective.prior:
        yield Note(text="train_lora: the captions share no trigger, so what is learned may show everywhere; `caption` can add one")
    own_captions = [without(captions[i], trigger) for i in found.learn][: OWN if plan.objective.prior else 0]
    own = yield from own_pictures(family, model, own_captions, side, found.shelf)
    shown, judged = ([captions[i] for i in some] for some in (found.learn, found.held))
    return Lesson(found.latents[found.learn], shown, own, own_captions, found.latents[found.held], judged, found.texts, trigger, side)


def own_pictures(family: Family, model: Model, captions: Sequence[str], side: int, shelf: cache.Shelf) -> Work[Tensor]:
    """(N, C, h, w): latents of what the model draws of the captions, picture i with seed i. Drawn once, then kept."""
    keys = [digest("drawn", model.key, c, str(i), str(side), str(family.dtype), canonical(shared.SAMPLE)) for i, c in enumerate(captions)]
    missing = [i for i, key in enumerate(keys) if shelf.get(key) is None]
    begun = starts(family, Size(side, side), len(captions), None, None) if missing else []
    shots = [Shot(captions[i], i, shared.SAMPLE, Guidance(), begun[i][0]) for i in missing]
    for i, latent in zip(missing, (yield from walk(family, shots, previews=False)), strict=True):
        shelf.put(keys[i], {"latent": latent})
    side //= family.factor
    return torch.cat([cache.there(shelf, key)["latent"] for key in keys]) if keys else torch.zeros(0, family.channels, side, side)


@dataclass(frozen=True)
class Net:
    """The model with the LoRA in it, and what its loss is."""

    family: Family
    adapter: Trainable
    lesson: Lesson
    plan: Plan

    def cond(self, captions: Sequence[str]) -> Cond:
        """The captions as the model reads them now."""
        if self.adapter.text:
            return self.family.encode_text(captions)
        return self.cond_before(captions)

    def cond_before(self, captions: Sequence[str]) -> Cond:
        """The captions as the untouched model reads them."""
        return join([self.lesson.texts[c] for c in captions], repeated=repeats(self.family))

    def losses(self, step: int) -> Iterator[Tensor]:
        """One part: the batch's mean loss. The captions of a batch's last slots have no trigger, and their target is what the untouched
        model says."""
        f, plan, b = self.family, self.plan, self.plan.batches.batch
        quiet = batches.share(step, b, plan.objective.prior)
        x0, captions = self.shown(step, b, quiet)
        x0 = x0.to(f.device)  # (B, C, h, w)
        noise = batches.noise(plan.seed, step, b, tuple(x0.shape[1:])).to(f.device)
        sigma = batches.levels(f.sigmas, batches.times(plan.seed, step, b, plan.objective.towards_noise)).to(f.device)
        x, target = f.noised(x0, noise, sigma), f.target(x0, noise, sigma)
        if quiet:
            with torch.no_grad(), self.adapter.off():
                target[-quiet:] = f.predict(x[-quiet:], sigma[-quiet:], self.cond_before(captions[-quiet:]))
        error = objectives.squared_error(f, x, sigma, self.cond(captions), target)
        yield (error * objectives.min_snr(f.prediction, sigma, plan.objective.min_snr)).mean()

    def shown(self, step: int, batch: int, quiet: int) -> tuple[Tensor, list[str]]:
        """Latents and captions of a step, some captions left empty. Half of the last `quiet` are pictures to learn, which teach what the
        trigger means, and half the model's own, which keep those as they are: with either kind alone more of the style leaks."""
        plan, lesson = self.plan, self.lesson
        own = batches.share(step, quiet, 0.5) if quiet else 0
        learn = batches.items(plan.seed, step, batch, len(lesson.latents))[: batch - own]
        kept = batches.items(plan.seed + 1, step, batch, len(lesson.own_latents))[:own] if own else []
        said = [lesson.captions[i] for i in learn[: batch - quiet]]
        said += [without(lesson.captions[i], lesson.trigger) for i in learn[batch - quiet :]] + [lesson.own_captions[i] for i in kept]
        empty = (torch.rand(batch, generator=batches.generator("drop", plan.seed, step)) < plan.batches.drop).tolist()
        return torch.cat([lesson.latents[learn], lesson.own_latents[kept]]), ["" if e else c for c, e in zip(said, empty, strict=True)]

    @torch.no_grad()
    def held_out_losses(self) -> Tensor:
        """(N,) of the held-out pictures, under their captions."""
        f, gamma = self.family, self.plan.objective.min_snr

        def errors(i: int, noise: Tensor, sigma: Tensor) -> Tensor:
            cond = self.cond([self.lesson.held_captions[i]] * len(sigma))
            x0, noise, sigma = self.lesson.held_latents[i].to(f.device).expand(noise.shape), noise.to(f.device), sigma.to(f.device)
            error = objectives.squared_error(f, f.noised(x0, noise, sigma), sigma, cond, f.target(x0, noise, sigma))
            return error * objectives.min_snr(f.prediction, sigma, gamma)

        return held_out.HeldOut(self.lesson.held_latents, f.sigmas, self.plan.seed).losses(errors)


class Watching:
    """What is looked at between steps: the held-out loss, and pictures of a few prompts."""

    def __init__(self, net: Net, folder: Path) -> None:
        """Pictures go to `folder`."""
        self.net, self.folder = net, folder
        self.first: Tensor | None = None

    def __call__(self, step: int, record: dict[str, Any]) -> Work[Reading | None]:
        """A reading when pictures were held out; `samples` go into the record."""
        record["samples"] = yield from shared.samples(self.net.family, self.prompts(), self.folder, step)
        if not len(self.net.lesson.held_latents):
            return None
        if self.first is None:
            with self.net.adapter.off():
                self.first = self.net.held_out_losses()
        yield Progress(what="held-out loss")
        return held_out.reading(self.net.held_out_losses(), self.first)

    def prompts(self) -> list[str]:
        """The asked ones, or held-out captions and then others; as many as there should be samples."""
        watch, lesson = self.net.plan.watch, self.net.lesson
        return list(watch.prompts or dict.fromkeys((*lesson.held_captions, *lesson.captions)))[: watch.samples]
