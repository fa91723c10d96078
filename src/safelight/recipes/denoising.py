"""What recipes share that train a denoiser on captioned pictures: the data made ready, the loss, and what is looked at on the way."""
from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from safelight.disk import put
from safelight.engine import finish
from safelight.events import Answer, Answered, Note, Progress
from safelight.families.joining import join, repeats
from safelight.limits import FAR
from safelight.patches.lora.names import DENOISERS
from safelight.recipes import shared
from safelight.sampling.draw import Shot, starts, walk
from safelight.sampling.settings import Guidance, Size
from safelight.spec import Work
from safelight.store import current
from safelight.train import cache, held_out, objectives, parallel, preflight
from safelight.train.captions import captioned, found_trigger, without
from safelight.train.lessons import Course, Lesson, Part, Slot
from safelight.train.loop import Reading, Trained, Training, Watcher, recomputing, train
from safelight.train.pictures import Ahead, Cut, Kept, Pictures
from safelight.train.settings import Objective
from safelight.train.tracking import Tracker
from safelight.values import Cond, Dataset, Model, canonical, digest

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.train.trainables import Trainable

OWN = 24
"""How many pictures of its own the model is held to, at most."""

TOGETHER = 8
"""How many of them are drawn at once."""


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


def prepare(op: str, family: Family, model: Model, data: Dataset, plan: Plan) -> Work[Lesson]:
    """Encode what is not yet encoded. ValueError when there is no picture."""
    side = yield from shared.check(op, family, data, plan.batches.size)
    rows, several = data.kept, plan.batches.several
    learn, held = held_out.split(rows, plan.watch.held_out, plan.seed)
    trigger = plan.objective.trigger or found_trigger([row.caption for row in rows])
    said = [captioned(row, trigger, several=several) for row in rows]
    calm = [without(captions[0], trigger) for captions in said]
    shelf, masked = cache.Shelf(current().folder("encoded")), plan.objective.unmasked < 1
    with parallel.first():
        pictures = yield from shared.kept(family, model, rows, said, plan.batches, side=side, shelf=shelf, masked=masked)
        texts = yield from shared.texts(family, model, {"", *calm, *(c for some in said for c in some)}, shelf)
    if not trigger and plan.objective.prior and plan.objective.prior_by == "answers":
        yield Note(text=f"{op}: the captions share no trigger, so what is learned may show everywhere; `caption` can add one")
    if plan.watch.patience and not held:
        yield Note(text=f"{op}: patience {plan.watch.patience} needs held-out pictures, and there are none", level="warning")
    own = [calm[i] for i in learn][: OWN if plan.objective.prior else 0]
    with parallel.first():
        drawn = yield from own_pictures(family, model, own, side, shelf)
    return Lesson(pictures.some(learn), drawn, pictures.some(held), texts, trigger, side)


def own_pictures(family: Family, model: Model, captions: Sequence[str], side: int, shelf: cache.Shelf) -> Work[Pictures]:
    """Latents of what the model draws of the captions, picture i with seed i. Drawn once, then kept; those drawn together are told apart
    by all their captions, since a picture's last bits depend on its company."""
    groups = [range(at, min(at + TOGETHER, len(captions))) for at in range(0, len(captions), TOGETHER)]
    how = (str(side), cache.arithmetic(family), canonical(shared.SAMPLE))
    keys = [digest("drawn", model.key, str(i), *how, *[captions[k] for k in some]) for some in groups for i in some]
    size = Cut(side, side).told(side, side)
    for some in (group for group in groups if not all(shelf.has(keys[i]) for i in group)):
        begun = starts(family, Size(side, side), len(some), None, None)
        shots = [Shot(captions[i], i, shared.SAMPLE, Guidance(), z) for i, (z, _) in zip(some, begun, strict=True)]
        for i, latent in zip(some, (yield from walk(family, shots, previews=False)), strict=True):
            shelf.put(keys[i], {"latent": latent[0], "size": size})
    shape = (side // family.factor, side // family.factor)
    return Pictures(shelf, [Kept(f"own {i}", (c,), (keys[i],), shape) for i, c in enumerate(captions)])


def nothing(slots: Sequence[Slot]) -> AbstractContextManager[None]:
    """Nothing around the network."""
    return nullcontext()


@dataclass(frozen=True)
class Net:
    """The model with what is trained in it, and what its loss is. `around` is entered with the slots that are shown whenever the network
    is asked, held-out ones too; it may hang a hint on it. It is also what evolves with the steps: the trainable, and `seen`, the sums of
    losses and how many there were, by picture to learn and by part of time (N, STRATA, 2). With several processes each has its own net, of
    its `rank`. `beside` are networks that are trained and no part of the family, `drawn` the slots that are drawn at
    looks with `around` them, instead of prompts."""

    family: Family
    trainable: Trainable
    lesson: Lesson
    plan: Plan
    around: Callable[[Sequence[Slot]], AbstractContextManager[None]] = nothing
    rank: int = field(default_factory=lambda: parallel.share().rank)
    world: int = field(default_factory=lambda: parallel.share().world)
    beside: Sequence[nn.Module] = ()
    drawn: Sequence[Slot] = ()

    @cached_property
    def course(self) -> Course:
        """The lesson in the order it is taken."""
        return Course(self.lesson, self.plan.batches, self.plan.objective, self.plan.seed, self.family.sigmas)

    @cached_property
    def seen(self) -> Tensor:
        """See above."""
        return torch.zeros(len(self.lesson.learn), held_out.STRATA, 2, device=self.family.device)

    @cached_property
    def fresh(self) -> Tensor:
        """What this process adds to `seen` in a step."""
        return torch.zeros_like(self.seen)

    @cached_property
    def parts(self) -> Ahead[list[Part]]:
        """This process's parts of a step, read ahead."""
        b = self.plan.batches
        mine = range(self.rank, b.batch, self.world)
        piece = b.at_once or b.batch
        shares = [mine[at : at + piece] for at in range(0, len(mine), piece)]
        return Ahead(lambda step: self.course.parts(step, shares))

    def cond(self, captions: Sequence[str], sizes: Tensor | None = None) -> Cond:
        """The captions as the model reads them now, of pictures of these sizes (B, 6)."""
        return told(self.family.encode_text(captions) if self.trainable.text else self._before(captions), sizes)

    def _before(self, captions: Sequence[str]) -> Cond:
        """The captions as the untouched model reads them."""
        known = {c: self.lesson.texts[c] for c in dict.fromkeys(captions) if c in self.lesson.texts}
        for c in dict.fromkeys(captions):
            if c not in known:
                with torch.no_grad(), self.trainable.off():
                    known[c] = self.family.encode_text([c])
        return join([known[c] for c in captions], repeated=repeats(self.family))

    def losses(self, step: int) -> Iterator[Tensor]:
        """This process's parts of the step's loss: `rank` of `world` has every `world`th slot. The mean over the processes of the sum of
        these is the batch's mean."""
        penalty = self.trainable.penalty()
        for part in self.parts(step):
            loss = self.part_loss(part)
            yield loss if penalty is None else loss + penalty
            penalty = None

    def part_loss(self, part: Part) -> Tensor:
        """The part of the batch's mean that these slots make."""
        o = self.plan.objective
        error = self.errors(part, answers=parallel.share().shards and o.prior_by == "answers" and len(self.lesson.own) > 0)
        with torch.no_grad():
            told = [(i, s.item) for i, s in enumerate(part.slots) if s.pictures is self.lesson.learn and not s.quiet]
            here, items = (torch.tensor([t[k] for t in told], dtype=torch.long, device=error.device) for k in (0, 1))
            band = (part.time.to(error.device)[here] * held_out.STRATA).long()
            self.fresh.index_put_((items, band), torch.stack([error[here], torch.ones_like(error[here])], dim=1), accumulate=True)
        counts = torch.tensor([o.prior_weight if s.quiet else 1.0 for s in part.slots], device=error.device)
        return (error * counts).sum() * self.world / self.plan.batches.batch

    def errors(self, part: Part, *, answers: bool = False) -> Tensor:
        """(B,) the slots' losses. The target of quiet ones is what the untouched model says, when it is held by its answers; `answers`: it
        is asked even where none is quiet, since the other processes ask it too."""
        f, o = self.family, self.plan.objective
        x0, noise, shown, time, sigma = (t.to(f.device) for t in (part.x0, part.noise, part.shown, part.time, part.sigma))
        x, target = f.noised(x0, shown, sigma), f.target(x0, noise, sigma)
        captions = [s.caption for s in part.slots]
        quiet = torch.tensor([s.quiet and o.prior_by == "answers" for s in part.slots])
        asked = quiet if quiet.any() else torch.arange(len(quiet)) < int(answers)
        if asked.any():
            some = [s for s, a in zip(part.slots, asked, strict=True) if a]
            cond = told(self._before([s.caption for s in some]), None if part.sizes is None else part.sizes[asked])
            with torch.no_grad(), self.trainable.off(), self.around(some):
                target[quiet] = f.predict(x[asked], sigma[asked], cond)[quiet[asked]]
        with self.around(part.slots):
            error = f.predict(x, sigma, self.cond(captions, part.sizes)) - target
        mask = None if part.mask is None else part.mask.to(f.device)
        return objectives.mean(o, objectives.distance(o, error, time, sigma), mask) * objectives.weight(o, f.prediction, sigma)

    def held_out_losses(self) -> Tensor:
        """(N, STRATA) of the held-out pictures, under their captions."""
        return self.fixed_losses(self.lesson.held)

    @torch.no_grad()
    def fixed_losses(self, held: Pictures, *, empty: bool = False) -> Tensor:
        """(N, STRATA) under fixed noise and their captions, or the empty one."""
        judge = held_out.HeldOut([(self.family.channels, *kept.shape) for kept in held.kept], self.family.sigmas, self.plan.seed)
        sigmas = judge.levels
        time = (torch.arange(len(sigmas)) + 0.5) / len(sigmas)

        def errors(i: int, noise: Tensor, sigma: Tensor) -> Tensor:
            read = {k: t.expand(len(sigma), *t.shape) for k, t in held.read(i).items()}
            slot = Slot(0, held, i, 0, "" if empty else held.kept[i].captions[0])
            part = Part([slot] * len(sigma), read["latent"], noise, noise, time, sigma, read.get("size"), read.get("mask"))
            return self.errors(part)

        return judge.losses(errors)

    def items(self, step: int) -> list[str]:
        """The names of the pictures of a step."""
        return [s.pictures.kept[s.item].name for s in self.course.slots(step)]

    def buffers(self) -> dict[str, Tensor]:
        """The trainable's, and `seen`."""
        return {**self.trainable.buffers(), "seen": self.seen}

    def formed(self, step: int, steps: int) -> bool:
        """The trainable's."""
        return self.trainable.formed(step, steps)

    def before_step(self, step: int, steps: int) -> None:
        """The trainable's turn."""
        self.trainable.before_step(step, steps)

    def after_step(self, step: int, steps: int) -> None:
        """The trainable's turn; all processes know what all have seen."""
        self.trainable.after_step(step, steps)
        parallel.mean([self.fresh.mul_(self.world)])
        self.seen.add_(self.fresh)
        self.fresh.zero_()


def told(cond: Cond, sizes: Tensor | None) -> Cond:
    """The condition of pictures of these sizes (B, 6), where the model is told of sizes at all."""
    if sizes is None or "pooled" not in cond.extras:
        return cond
    score = cond.extras.get("aesthetic")
    ids = sizes if score is None else torch.cat([sizes[:, :4], score.cpu()], dim=1)
    return replace(cond, extras={**cond.extras, "time_ids": ids})


class Watching:
    """What is looked at between steps: the held-out loss, pictures of a few prompts, and which pictures are hard to learn."""

    def __init__(self, net: Net, folder: Path) -> None:
        """Pictures go to `folder`."""
        self.net, self.folder = net, folder
        self.first: Tensor | None = None

    def __call__(self, step: int, record: dict[str, Any]) -> Work[Reading | None]:
        """A reading when pictures were held out. Into the record go `samples`, `bands` (step, sigma, loss, low, high) and `hard` (step,
        name, caption, how often its loss it has of what is usual, how often it was shown), and `doubtful` at the last step."""
        net = self.net
        with drawing(net) as prompts:
            record["samples"] = yield from shared.samples(net.family, prompts, self.folder, step)
        kept = net.lesson.learn.kept
        record["hard"] = [[step, kept[i].name, kept[i].captions[0], *told] for i, *told in held_out.hard(net.seen.cpu())]
        yield from self._doubt(step, record)
        if not len(net.lesson.held):
            return None
        if self.first is None:
            with net.trainable.off():
                self.first = net.held_out_losses()
        yield Progress(what="held-out loss")
        now = net.held_out_losses()
        found = held_out.reading(now, self.first, held_out.HeldOut((), net.family.sigmas, net.plan.seed).levels)
        record["bands"] = [[step, *band] for band in found.bands]
        return found

    def _doubt(self, step: int, record: dict[str, Any]) -> Work[None]:
        """Into the record at the last step: (step, name, caption, see `held_out.doubtful`) of the hardest pictures, as many as cost less
        than a third of the training; a note of the worst."""
        net = self.net
        hard = [i for i, *_ in held_out.hard(net.seen.cpu(), room(net))]
        if step < net.plan.batches.steps or len(hard) < held_out.FEW:
            return
        yield Progress(what="captions")
        some = net.lesson.learn.some(hard)
        found = held_out.doubtful(net.fixed_losses(some), net.fixed_losses(some, empty=True))
        record["doubtful"] = [[step, some.kept[i].name, some.kept[i].captions[0], far] for i, far in found]
        if wrong := [some.kept[i].name for i, far in found if far > FAR]:
            yield Note(text=f"train: captions that fit their pictures far less than the others': {', '.join(wrong)}", level="warning")


def room(net: Net) -> int:
    """How many pictures' captions may be doubted, for less than a third of what the steps take."""
    return net.plan.batches.steps * net.plan.batches.batch // (2 * held_out.STRATA)


@contextmanager
def drawing(net: Net) -> Iterator[list[str]]:
    """What is drawn at a look, for as long as the block lasts: the captions of `drawn`, or else the asked prompts, or held-out captions and
    then others; as many as there should be samples."""
    watch, slots = net.plan.watch, net.drawn[: net.plan.watch.samples]
    captions = (kept.captions[0] for kept in (*net.lesson.held.kept, *net.lesson.learn.kept))
    with net.around(slots) if slots else nullcontext():
        yield [s.caption for s in slots] or list(watch.prompts or dict.fromkeys(captions))[: watch.samples]


def learn(net: Net, work: Path, *, watcher: Watcher | None = None, rates: Mapping[str, float] | None = None) -> Work[Trained]:
    """Train it: preflight, the loop with its looks, metrics.jsonl and sample pictures in the run's own folder `work`. ValueError when it
    cannot fit into memory; Answered after the preflight when that is all that was asked for. `rates`: see `Training`."""
    plan, told = net.plan, work / "preflight.json"
    with parallel.sharded(_splitting(net)) as parts:
        net.trainable.split(parts)
        due = parallel.agreed(not told.exists())
        flight = expected(net) if due and (net.rank == 0 or parallel.share().shards) else None
        if plan.watch.preflight and net.rank:
            raise parallel.Finished
        if flight is not None and net.rank == 0:
            if plan.watch.preflight:
                raise Answered(Answer(text=flight.text(), values=flight.values()))
            yield Note(text=f"train: {flight.text()}")
            put(told, json.dumps(vars(flight)).encode())
        trained = yield from train(task(net, work, watcher=watcher, rates=rates))
    if not trained.step:
        yield Note(text="train: no look found a better held-out loss than before the first step, whose weights are kept", level="warning")
    return replace(trained, record={**trained.record, "preflight": json.loads(told.read_text(encoding="utf-8"))})


def _splitting(net: Net) -> list[nn.Module]:
    """What --shard splits: denoisers, and what is trained beside them. ValueError when the processes would not ask them equally often."""
    b, place = net.plan.batches, net.family.device
    networks = [network for part, network in net.family.trainable().items() if part in DENOISERS] + list(net.beside)
    if parallel.share().shards and b.at_once and b.batch % net.world:
        raise ValueError(f"train: --shard: batch {b.batch} in parts of {b.at_once} by {net.world} processes, of which some would take more "
                         f"parts than others; expected a batch that is a multiple of {net.world}")
    if parallel.share().shards and any(p.device.type != place.type for network in networks for p in network.parameters()):
        raise ValueError(f"train: --shard: the networks take turns on {place}, which is too small for all of them; expected a device that "
                         "holds the model until it is split")
    return networks


def task(net: Net, work: Path, *, watcher: Watcher | None = None, rates: Mapping[str, float] | None = None) -> Training:
    """What the loop is given."""
    watcher = watcher or Watching(net, work / "samples")
    given = shared.training(net.trainable.parameters, net.losses, watcher, plan=net.plan, work=work)
    track = Tracker(work, net.plan.watch.tensorboard) if net.rank == 0 else None
    networks = tuple(net.family.trainable().values())
    return replace(given, evolving=net, items=net.items, networks=networks, track=track, rates=rates or {}, dtype=str(net.family.dtype))


def expected(net: Net) -> preflight.Flight:
    """What the run will take; nothing changes."""
    plan, lesson, course = net.plan, net.lesson, net.course
    largest = max(range(len(lesson.learn)), key=lambda i: prod(lesson.learn.kept[i].shape))
    judged = lesson.held if len(lesson.held) else lesson.learn
    one = replace(net, lesson=replace(lesson, held=judged.some([0])))
    looks, doubted = -(-plan.batches.steps // plan.watch.every) + 1, min(len(lesson.learn), room(net))
    pictures = len(lesson.held) * (looks + 1)  # the first time also without what is trained
    pictures += 2 * doubted if doubted >= held_out.FEW else 0

    def few(n: int) -> Tensor:
        slots = [Slot(i, lesson.learn, largest, 0, lesson.learn.kept[largest].captions[0]) for i in range(n)]
        return net.part_loss(course.part(0, slots, course.times(0)))

    mine = -(-plan.batches.batch // net.world)
    at_once = min(plan.batches.at_once or mine, mine)
    with drawing(net) as prompts:
        shots = shared.shots(net.family, prompts, replace(shared.SAMPLE, steps=preflight.ANSWERS)) if prompts else []

    def walked() -> None:
        with drawing(net):
            finish(walk(net.family, shots, previews=False))

    probe = preflight.Probe(net.family.device, net.trainable.parameters, few, net.losses, one.held_out_losses, at_once,
                            lambda: {**net.buffers(), "fresh": net.fresh}, walked,
                            lambda: net.family.decode(torch.cat([shot.start for shot in shots])), shared.SAMPLE.steps if shots else 0)
    with recomputing(tuple(net.family.trainable().values()) if plan.optimizer.checkpointing else ()):
        return preflight.fly(probe, plan.optimizer, plan.batches.steps, judged=pictures, looks=looks)
