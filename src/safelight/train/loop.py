"""The training loop: parameters, a loss and a number of steps go in; events come out; it can be closed, or killed, at any moment.

A step is a function of the state and its number alone, and a checkpoint holds the whole state: a run that was interrupted, however,
ends with the bits of one that was not (same machine, same number of threads).
"""
from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from safelight.events import Event, Progress
from safelight.train.checkpoints import Checkpoints
from safelight.train.settings import Optimizer

log = logging.getLogger(__name__)

READ_EVERY = 10
"""On an accelerator, losses are read back every so many steps: reading one waits for the queue to run dry."""


@dataclass(frozen=True)
class Reading:
    """A held-out loss and its 95 % confidence interval."""

    loss: float
    low: float
    high: float


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

    def before_step(self, step: int, steps: int) -> None:
        """Called with the clipped gradients in place."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Called when the parameters have moved."""
        ...


def _alone(grads: Sequence[Tensor]) -> None:
    """One process: nothing to average with."""


@dataclass(frozen=True)
class Training:
    """What a loop needs.

    `parameters` are float32, by the name they are saved under. `losses(step)` yields the parts of the step's loss, each with its own
    graph (one part, or one for each micro-batch); their sum is what is descended. `rates` multiply the learning rate by the beginning
    of the name. `average` > 0 keeps a moving average with that decay, which is what is watched and returned. `reduce` averages
    gradients over processes. `every` is the number of steps between looks, `seconds` the time between checkpoints. `evolving` is told of
    every step.
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
    average: float = 0.0
    reduce: Callable[[Sequence[Tensor]], None] = _alone
    evolving: Evolving | None = None


@dataclass(frozen=True)
class Trained:
    """The kept weights by name (float32 on the CPU), the step they are from, and the record: `loss`, `lr`, `held_out`, `seconds`, ..."""

    weights: Mapping[str, Tensor]
    step: int
    record: Mapping[str, Any]


def rate(o: Optimizer, step: int, steps: int) -> float:
    """The learning rate of a step: a linear rise over `warmup`, then constant, half a cosine, or a line to zero."""
    if step < o.warmup:
        return o.lr * (step + 1) / (o.warmup + 1)
    done = (step - o.warmup) / max(steps - o.warmup, 1)
    return o.lr * {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done}[o.decay]


def train(t: Training) -> Generator[Event, None, Trained]:
    """Run to the end from the newest checkpoint, or from the start. ValueError when the loss is no longer a number."""
    state = _State(t)
    try:
        while True:
            yield from state.look()
            state.save(force=state.step == t.steps)
            if state.step == t.steps:
                return state.kept()
            state.advance()
            yield Progress(step=state.step, total=t.steps, what="train", values=state.numbers())
    except GeneratorExit:
        state.save(force=True)
        raise


class _State:
    """Everything that changes while a loop runs."""

    def __init__(self, t: Training) -> None:
        if not t.parameters:
            raise ValueError("train: there are no parameters to train; choose other targets")
        self.t, self.step = t, 0
        self.record: dict[str, Any] = {"loss": [], "lr": [], "held_out": [], "watched": -1, "kept_step": 0, "seconds": 0.0}
        self.best: dict[str, Tensor] = {}
        self.unread: list[tuple[int, Tensor]] = []
        self.saved, self.clock = time.monotonic(), time.monotonic()
        self.device = next(iter(t.parameters.values())).device
        self.optimizer = self._optimizer()
        self.averages = {name: p.detach().clone() for name, p in t.parameters.items()} if t.average else {}
        if t.checkpoints is not None:
            self._resume(t.checkpoints)

    def _optimizer(self) -> torch.optim.AdamW:
        o = self.t.optimizer
        groups: dict[float, list[nn.Parameter]] = {}
        for name, p in self.t.parameters.items():
            groups.setdefault(self._factor(name), []).append(p)
        made = [{"params": params, "factor": factor} for factor, params in groups.items()]
        fused = self.device.type in ("cpu", "cuda")
        return torch.optim.AdamW(made, lr=o.lr, betas=(o.betas[0], o.betas[1]), weight_decay=o.weight_decay, fused=fused)

    def _factor(self, name: str) -> float:
        return next((f for start, f in self.t.rates.items() if name.startswith(start)), 1.0)

    def advance(self) -> None:
        """One optimizer step."""
        t, parameters = self.t, list(self.t.parameters.values())
        total = torch.zeros((), device=self.device)
        for part in t.losses(self.step):
            part.backward()
            total += part.detach()
        grads = [p.grad for p in parameters if p.grad is not None]
        t.reduce(grads)
        if t.optimizer.clip:
            torch.nn.utils.clip_grad_norm_(parameters, t.optimizer.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate(t.optimizer, self.step, t.steps) * group["factor"]
        if t.evolving is not None:
            t.evolving.before_step(self.step, t.steps)
        self.optimizer.step()
        if t.evolving is not None:
            t.evolving.after_step(self.step, t.steps)
        self.optimizer.zero_grad(set_to_none=True)
        self._move_averages()
        self.unread.append((self.step, total))
        self.step += 1
        if self.device.type == "cpu" or len(self.unread) >= READ_EVERY:
            self.read()

    def _move_averages(self) -> None:
        keep = min(self.t.average, (1 + self.step) / (10 + self.step))
        for name, mean in self.averages.items():
            mean.lerp_(self.t.parameters[name].detach(), 1 - keep)

    def read(self) -> None:
        """Bring the losses of the latest steps into the record."""
        for step, loss in self.unread:
            value = float(loss)
            if not math.isfinite(value):
                lr = self.t.optimizer.lr
                raise ValueError(f"train: the loss is {value} at step {step}; lower the learning rate ({lr:g}) or the clip")
            self.record["loss"].append([step, value])
            self.record["lr"].append([step, rate(self.t.optimizer, step, self.t.steps)])
        self.unread.clear()

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
        live = self._swap()
        try:
            draft: dict[str, Any] = {}
            reading = yield from self.t.watch(self.step, draft)
        finally:
            self._put(live)
            self.clock = time.monotonic()
        for name, rows in draft.items():
            self.record.setdefault(name, []).extend(rows)
        if reading is not None:
            self._judge(reading)
        self.record["watched"] = self.step

    def _judge(self, reading: Reading) -> None:
        if not self.best or reading.loss < min(loss for _, loss, _, _ in self.record["held_out"]):
            self.best = self._weights()
            self.record["kept_step"] = self.step
        self.record["held_out"].append([self.step, reading.loss, reading.low, reading.high])

    def _swap(self) -> dict[str, Tensor]:
        """Put the averages in place of the weights; returns the weights."""
        live = {name: self.t.parameters[name].detach().clone() for name in self.averages}
        self._put(self.averages)
        return live

    def _put(self, weights: Mapping[str, Tensor]) -> None:
        for name, value in weights.items():
            self.t.parameters[name].data.copy_(value)

    def _weights(self) -> dict[str, Tensor]:
        source: Mapping[str, Tensor] = self.averages or self.t.parameters
        return {name: value.detach().cpu().clone() for name, value in source.items()}

    def _stop_clock(self) -> None:
        now = time.monotonic()
        self.record["seconds"] += now - self.clock
        self.clock = now

    def kept(self) -> Trained:
        """The best weights, or the last ones when nothing was held out."""
        if not self.best:
            self.record["kept_step"] = self.step
        self.record["pictures_per_second"] = self.step * self.t.pictures / max(self.record["seconds"], 1e-9)
        return Trained(self.best or self._weights(), self.record["kept_step"], self.record)

    def save(self, *, force: bool = False) -> None:
        """A checkpoint, when it is time or must be."""
        if self.t.checkpoints is None or not (force or time.monotonic() - self.saved >= self.t.seconds):
            return
        self.read()
        self._stop_clock()
        tensors: dict[str, Tensor] = {f"weights/{name}": p for name, p in self.t.parameters.items()}
        for name, p in self.t.parameters.items():
            tensors |= {f"{kind}/{name}": value for kind, value in self.optimizer.state.get(p, {}).items()}
        if self.t.evolving is not None:
            tensors |= {f"buffer/{name}": value for name, value in self.t.evolving.buffers().items()}
        tensors |= {f"average/{name}": value for name, value in self.averages.items()}
        tensors |= {f"best/{name}": value for name, value in self.best.items()}
        self.t.checkpoints.save(self.step, tensors, self.record)
        self.saved = time.monotonic()

    def _resume(self, checkpoints: Checkpoints) -> None:
        found = checkpoints.load()
        if found is None:
            return
        log.info("going on from step %d", found.step)
        self.step, self.record = found.step, found.record
        parts: dict[str, dict[str, Tensor]] = {}
        for key, value in found.tensors.items():
            kind, _, name = key.partition("/")
            parts.setdefault(kind, {})[name] = value
        self._put(parts.pop("weights"))
        self.best = parts.pop("best", {})
        there = self.t.evolving.buffers() if self.t.evolving is not None else {}
        for name, value in parts.pop("buffer", {}).items():
            there[name].copy_(value)
        self.averages = {name: value.to(self.device) for name, value in parts.pop("average", {}).items()}
        for kind, values in parts.items():
            for name, value in values.items():
                place = torch.device("cpu") if kind == "step" and self.device.type == "cpu" else self.device
                self.optimizer.state[self.t.parameters[name]][kind] = value.to(place)
