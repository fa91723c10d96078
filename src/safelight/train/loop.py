"""The training loop: parameters, a loss and a number of steps go in; events come out; it can be closed, or killed, at any moment.

A step is a function of the state and its number alone, and a checkpoint holds the whole state: a run that was interrupted, however,
ends with the bits of one that was not (same machine, same number of threads and processes).
"""
from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from safelight.events import Event, Progress
from safelight.train import parallel
from safelight.train.checkpoints import Checkpoints, Saved
from safelight.train.schedules import rate
from safelight.train.settings import Optimizer
from safelight.train.stepping import Reduce, Stepper

log = logging.getLogger(__name__)

READ_EVERY = 10
"""On an accelerator, losses are read back every so many steps: reading one waits for the queue to run dry."""

SAVING = 0.01
"""Share of the time that checkpoints may take: they come less often than asked for when they take more."""

SPAN, BURST = 10, 100.0
"""A loss explodes when the mean of SPAN steps is so many times the median of ten times as many before, and beyond all it began with."""


@dataclass(frozen=True)
class Reading:
    """A held-out loss and its 95 % confidence interval; `bands` are (sigma, loss, low, high) by noise level."""

    loss: float
    low: float
    high: float
    bands: tuple[tuple[float, float, float, float], ...] = ()


class Watcher(Protocol):
    """Looks at the networks between two steps."""

    def __call__(self, step: int, record: dict[str, Any]) -> Generator[Event, None, Reading | None]:
        """May yield events and write JSON data into `record`. The step with the lowest reading is the one whose weights are kept."""
        ...


class Evolving(Protocol):
    """What changes with the steps beside the parameters, and is part of the state."""

    def buffers(self) -> Mapping[str, Tensor]:
        """Tensors that checkpoints hold and resuming copies into."""
        ...

    def formed(self, step: int, steps: int) -> bool:
        """Whether the weights after so many steps may be those that are kept."""
        ...

    def before_step(self, step: int, steps: int) -> None:
        """Called with the clipped gradients in place."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Called when the parameters have moved."""
        ...


@runtime_checkable
class Recomputing(Protocol):
    """A network of diffusers', which can forget activations and compute them anew in the backward pass (arXiv:1604.06174)."""

    def enable_gradient_checkpointing(self) -> None:
        """Begin."""
        ...

    def disable_gradient_checkpointing(self) -> None:
        """End."""
        ...


@dataclass(frozen=True)
class Training:
    """What a loop needs.

    `parameters` are float32, by the name they are saved under. `losses(step)` yields the parts of the step's loss, each with its own
    graph (one part, or one for each micro-batch); their sum, averaged over the processes, is what is descended. `rates` multiply the
    learning rate by the beginning of the name. `reduce` averages over processes. `every` is the number of steps between looks, of which
    `patience` without a better reading end the training (0: none do); `seconds` the least time between checkpoints, 0: at every step.
    `evolving` is told of every step, `track` gets the record whenever it has grown. `items` names a step's pictures for error messages.
    `networks` are those that gradients pass through, `dtype` their precision, in which a run must go on.
    """

    parameters: Mapping[str, nn.Parameter]
    losses: Callable[[int], Iterable[Tensor]]
    steps: int
    optimizer: Optimizer
    pictures: int = 1
    checkpoints: Checkpoints | None = None
    watch: Watcher | None = None
    every: int = 50
    seconds: float = 15.0
    rates: Mapping[str, float] = field(default_factory=dict)
    reduce: Reduce = parallel.mean
    evolving: Evolving | None = None
    patience: int = 0
    track: Callable[[Mapping[str, Any]], None] | None = None
    items: Callable[[int], Sequence[str]] | None = None
    networks: Sequence[nn.Module] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Trained:
    """The kept weights by name (float32 on the CPU), the step they are from, and the record: `loss`, `lr`, `norm` (of the gradient, before
    it is clipped), `held_out`, `seconds`, ..."""

    weights: Mapping[str, Tensor]
    step: int
    record: Mapping[str, Any]


def train(t: Training) -> Generator[Event, None, Trained]:
    """Run to the end from the newest checkpoint, or from the start. ValueError when the loss is no longer a number, or explodes; OSError
    when there is no room for a checkpoint. What runs along (see `parallel`) ends with parallel.Finished."""
    with recomputing(t.networks if t.optimizer.checkpointing else ()):
        state = _State(t)
        if parallel.share().rank:
            state.follow()
        try:
            yield from state.run()
        except GeneratorExit:
            if not (state.looking and state.shards):  # the others are in the middle of that look
                state.save(force=True)
                parallel.agreed(parallel.STOP)
            raise
        kept = state.kept()
        parallel.agreed(parallel.STOP)
        return kept


@contextmanager
def recomputing(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Gradient checkpointing, in those networks that can, for as long as the block lasts."""
    able = [n for n in networks if isinstance(n, Recomputing)]
    for n in able:
        n.enable_gradient_checkpointing()
    try:
        yield
    finally:
        for n in able:
            n.disable_gradient_checkpointing()


class _State:
    """Everything that changes while a loop runs."""

    def __init__(self, t: Training) -> None:
        if not t.parameters:
            raise ValueError("train: there are no parameters to train; choose other targets")
        if t.pictures < parallel.share().world:
            raise ValueError(f"train: a batch of {t.pictures} for {parallel.share().world} processes; expected a picture for each at least")
        self.t, self.step, self.looking = t, 0, False
        self.record: dict[str, Any] = {"loss": [], "lr": [], "norm": [], "held_out": [], "watched": -1, "kept_step": 0, "seconds": 0.0}
        self.best: dict[str, Tensor] = {}
        self.unread: list[tuple[int, Tensor]] = []
        self.saved, self.clock, self.cost = time.monotonic(), time.monotonic(), 0.0
        self.device = next(iter(t.parameters.values())).device
        self.stepper, self.shards = Stepper(t.parameters, t.optimizer, t.rates), parallel.share().shards
        self._resume()
        self._tell()

    @property
    def done(self) -> bool:
        """Whether all steps are, or several looks brought nothing better."""
        latest = self.record["held_out"][-self.t.patience :] if self.t.patience else []
        tired = 0 < len(latest) == self.t.patience and bool(self.best) and latest[0][0] > self.record["kept_step"]
        return self.step == self.t.steps or tired

    def run(self) -> Generator[Event, None, None]:
        """To the end."""
        while True:
            yield from self.look()
            self.save(force=self.done)
            if self.done:
                return
            parallel.agreed(parallel.STEP)
            self.advance()
            yield Progress(step=self.step, total=self.t.steps, what="train", values=self.numbers())

    def advance(self) -> None:
        """One optimizer step."""
        t = self.t
        loss = torch.zeros((), device=self.device)
        for part in t.losses(self.step):
            part.backward()
            loss += part.detach()
        norm = self.stepper.ready(loss, t.reduce)
        if t.evolving is not None:
            t.evolving.before_step(self.step, t.steps)
        self.stepper.step(rate(t.optimizer, self.step, t.steps), self.step)
        if t.evolving is not None:
            t.evolving.after_step(self.step, t.steps)
        self.unread.append((self.step, torch.stack([loss, norm])))
        self.step += 1
        if self.device.type == "cpu" or len(self.unread) >= READ_EVERY:
            self.read()

    def read(self) -> None:
        """Bring the losses of the latest steps into the record. ValueError when they are no numbers, or explode."""
        unread, self.unread = self.unread, []
        for step, held in unread:
            loss, norm = held.tolist()
            if not isfinite(loss) or not isfinite(norm):
                raise self._broken(step, f"the loss is {loss}" if not isfinite(loss) else f"the gradient's length is {norm}")
            for name, value in (("loss", loss), ("lr", rate(self.t.optimizer, step, self.t.steps)), ("norm", norm)):
                self.record[name].append([step, value])
            if not (step + 1) % SPAN:
                self._check_burst(step)
        if unread:
            self._tell()

    def _check_burst(self, step: int) -> None:
        losses = [value for _, value in self.record["loss"][-11 * SPAN :]]
        began = [value for _, value in self.record["loss"][:SPAN]]
        now = fmean(losses[-SPAN:])
        if len(losses) >= 3 * SPAN and now > BURST * median(losses[:-SPAN]) and now > SPAN * fmean(began):
            raise self._broken(step, f"the loss explodes, from {median(losses[:-SPAN]):.3g} to {now:.3g}")

    def _broken(self, step: int, what: str) -> ValueError:
        t, o = self.t, self.t.optimizer
        seen = ", ".join(t.items(step)) if t.items is not None else ""
        last = t.checkpoints.load() if t.checkpoints is not None else None
        kept = f" The last checkpoint, of step {last.step}, is from before." if last is not None else ""
        where = f"step {step} (batch: {seen})" if seen else f"step {step}"
        return ValueError(f"train: {what} at {where}.{kept} Try a lower learning rate ({o.lr:g}), a longer warm-up ({o.warmup}), a smaller "
                          f"clip ({o.clip:g}; 0 is none) or --dtype float32, and look at these pictures")

    def _tell(self) -> None:
        if self.t.track is not None and not parallel.share().rank:
            self.t.track(self.record)

    def numbers(self) -> tuple[tuple[str, float], ...]:
        """What progress shows: the latest loss read, the learning rate, pictures a second."""
        spent = self.record["seconds"] + time.monotonic() - self.clock
        last = self.record["loss"][-1:]
        loss = [("loss", last[0][1])] if last else []
        speed = self.step * self.t.pictures / max(spent, 1e-9)
        return (*loss, ("lr", rate(self.t.optimizer, self.step, self.t.steps)), ("pictures/s", speed))

    def look(self) -> Generator[Event, None, None]:
        """Let the watcher look, when it is time and it has not yet; keep these weights when they are the best so far."""
        due = self.step % self.t.every == 0 or self.step == self.t.steps
        if self.t.watch is None or not due or self.record["watched"] >= self.step:
            return
        self.read()
        self._stop_clock()
        draft: dict[str, Any] = {}
        if self.shards:
            parallel.agreed(parallel.LOOK)
        reading, weights = yield from self._seen(self.t.watch, draft)
        for name, rows in draft.items():
            self.record.setdefault(name, []).extend(rows)
        if reading is not None:
            before = [loss for step, loss, _, _ in self.record["held_out"] if self._formed(step)]
            if self._formed(self.step) and (not self.best or reading.loss < min(before)):
                self.best, self.record["kept_step"] = weights or self.stepper.weights(), self.step
            self.record["held_out"].append([self.step, reading.loss, reading.low, reading.high])
        self.record["watched"] = self.step
        self._tell()
        if reading is not None:
            held = (("held-out", reading.loss), ("low", reading.low), ("high", reading.high))
            yield Progress(step=self.step, total=self.t.steps, what="held-out loss", values=held)

    def _formed(self, step: int) -> bool:
        return self.t.evolving is None or self.t.evolving.formed(step, self.t.steps)

    def _seen(self, watch: Watcher, draft: dict[str, Any]) -> Generator[Event, None, tuple[Reading | None, dict[str, Tensor]]]:
        """What the watcher says, and the weights where putting them together takes all processes."""
        live, self.looking = self.stepper.show(), True
        try:
            reading = yield from watch(self.step, draft)
        finally:
            self.stepper.put(live)
            self.clock = time.monotonic()
        self.looking = False
        return reading, self.stepper.weights() if self.shards else {}

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.record["seconds"] += now - self.clock
        self.clock = now

    def kept(self) -> Trained:
        """The best weights, or the last ones when nothing was held out."""
        if not self.best:
            self.record["kept_step"] = self.step
            if self.shards:
                parallel.agreed(parallel.WEIGH)
        self.record["pictures_per_second"] = self.step * self.t.pictures / max(self.record["seconds"], 1e-9)
        return Trained(self.best or self.stepper.weights(), self.record["kept_step"], self.record)

    def save(self, *, force: bool = False) -> None:
        """A checkpoint, when it is time or must be. ValueError rather than one that is broken."""
        wait = max(self.t.seconds, self.cost / SAVING) if self.t.seconds else 0.0
        if self.t.checkpoints is None or not (force or time.monotonic() - self.saved >= wait):
            return
        self.read()
        self._stop_clock()
        if not self.stepper.finite():
            raise self._broken(self.step, "parameters are no longer numbers")
        begun = time.monotonic()
        if self.shards:
            parallel.agreed(parallel.SAVE)
        tensors = self.stepper.tensors()
        if self.t.evolving is not None:
            tensors |= {f"buffer/{name}": value for name, value in self.t.evolving.buffers().items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        self.t.checkpoints.save(self.step, tensors, self.record, self._settings())
        self.saved = time.monotonic()
        self.cost = self.saved - begun

    def _settings(self) -> dict[str, Any]:
        t = self.t
        found = {**asdict(t.optimizer), "steps": t.steps, "every": t.every, "parameters": len(t.parameters), "dtype": t.dtype}
        known: dict[str, Any] = json.loads(json.dumps(found))
        return known

    def _resume(self) -> None:
        checkpoints = self.t.checkpoints
        found = checkpoints.load() if checkpoints is not None else None
        if parallel.share().world > 1:  # the others read what the first one found
            folder = parallel.agreed(str(checkpoints.folder) if checkpoints is not None and found is not None else "")
            found = found if not parallel.share().rank else Checkpoints(Path(folder)).load() if folder else None
        if found is None:
            return
        self._check(found)
        log.info("going on from step %d", found.step)
        self.step, self.record = found.step, found.record
        self.stepper.load(found.tensors)
        self.best = {k.removeprefix("best/"): t for k, t in found.tensors.items() if k.startswith("best/")}
        there = self.t.evolving.buffers() if self.t.evolving is not None else {}
        for name, held in there.items():
            held.copy_(found.tensors[f"buffer/{name}"])

    def _check(self, found: Saved) -> None:
        now = self._settings()
        other = [f"{k} {was!r}, now {now.get(k)!r}" for k, was in found.settings.items() if was != now.get(k)]
        if other:
            place = self.t.checkpoints.folder if self.t.checkpoints is not None else ""
            raise ValueError(f"train: the checkpoint of step {found.step} in {place} is of other settings ({'; '.join(other)}); "
                             "go on with those, or remove it to begin anew")

    def follow(self) -> None:
        """Do what the first process says, until it stops."""
        acts: dict[int, Callable[[], object]] = {
            parallel.STEP: self.advance, parallel.LOOK: self._look_along, parallel.SAVE: self.stepper.tensors,
            parallel.WEIGH: self.stepper.weights,
        }
        while what := parallel.agreed(parallel.STOP):
            acts[what]()
        raise parallel.Finished

    def _look_along(self) -> None:
        """A look whose events nobody sees: the networks' parts are here."""
        if self.t.watch is not None:
            for _ in self._seen(self.t.watch, {}):
                pass
