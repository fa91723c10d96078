"""Before the first step: how much memory a training will take, and how long. Real steps are run and thrown away; no state changes."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor, nn

from safelight.families import memory
from safelight.train import parallel
from safelight.train.settings import Optimizer
from safelight.train.stepping import Stepper

STEPS = 3
"""How many steps are timed, after one that warms up, or some where they are short."""

ANSWERS = 2
"""How many steps of a sampler are walked."""

LONG = 1.0
"""What takes as many seconds is not done again to see it warm."""

SPARE = 0.95
"""How much of what is free a training may take."""

ENDLESS = 2**62
"""Bytes of what ran out of memory."""

clock = time.monotonic
"""What tells seconds."""

Losses = Callable[[int], Iterable[Tensor]]


@dataclass(frozen=True)
class Flight:
    """What to expect: bytes at most and bytes held before, of this process or on the device (None where nobody says); bytes that were
    free; seconds a step, a held-out picture, the pictures drawn at a look, and in all."""

    peak: int | None
    before: int | None
    free: int | None
    step: float
    look: float
    drawn: float
    seconds: float

    def text(self) -> str:
        """In one line, with the time it will end."""
        peak = "" if self.peak is None else f"{self.peak / 1e9:.2f} GB at most, "
        end = datetime.now() + timedelta(seconds=self.seconds)
        return f"about {peak}{self.step:.3g} s a step, {timedelta(seconds=round(self.seconds))} in all, until {end:%a %H:%M}"

    def values(self) -> tuple[tuple[str, float], ...]:
        """The numbers by name, with the time it will end in seconds since 1970."""
        peak = () if self.peak is None else (("peak", float(self.peak)),)
        return (*peak, ("step", self.step), ("seconds", self.seconds), ("end", time.time() + self.seconds))


class Meter:
    """How much memory is taken: on an accelerator by torch's own count, else by this process as Linux tells it."""

    STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def held(self) -> int | None:
        """Bytes now."""
        return torch.cuda.memory_reserved(self.device) if self.device.type == "cuda" else self._told("VmRSS:")

    def peak(self) -> int | None:
        """The most bytes since `reset`."""
        return torch.cuda.max_memory_reserved(self.device) if self.device.type == "cuda" else self._told("VmHWM:")

    def reset(self) -> None:
        """Begin to count anew, after giving back what nobody holds."""
        memory.collect()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        elif self.CLEAR.exists():
            self.CLEAR.write_text("5")  # proc(5): the most there was is what there is

    def _told(self, name: str) -> int | None:
        if not self.STATUS.exists():
            return None
        return next(int(line.split()[1]) * 1024 for line in self.STATUS.read_text().splitlines() if line.startswith(name))


@dataclass(frozen=True)
class Probe:
    """What is tried: `few(n)`, the loss of n pictures of the largest size; `losses(step)`, all parts of a step; `look`, one picture looked
    at. `at_once` pictures are in memory together; `state` is what the steps change besides the parameters. `walk` is ANSWERS of the
    `answers` that the pictures drawn at a look take (0: none is drawn), `decode` makes them pictures."""

    device: torch.device
    parameters: Mapping[str, nn.Parameter]
    few: Callable[[int], Tensor]
    losses: Losses
    look: Callable[[], object]
    at_once: int
    state: Callable[[], Mapping[str, Tensor]]
    walk: Callable[[], object]
    decode: Callable[[], object]
    answers: int


def fly(p: Probe, o: Optimizer, steps: int, *, judged: int, looks: int, free: int | None = None) -> Flight:
    """The estimate, for a run that looks at held-out pictures `judged` times and draws at `looks` looks. ValueError with advice when it
    cannot fit into memory, which one picture and two show before more are tried: into `free` bytes, or what the device has left."""
    meter, free = Meter(p.device), free or memory.free(p.device)
    with _unchanged(p):
        meter.reset()
        before = meter.held()
        moved, state = _optimizer(p, o)
        _refuse([_tried(p, meter, n) for n in range(1, min(p.at_once, 2) + 1)], state, before=before, free=free, at_once=p.at_once)
        meter.reset()
        first = _timed(p.device, lambda: _backward(p.losses(0)))
        count = STEPS if _long(first) else 2 * STEPS  # short ones become shorter for a while
        seconds = [_timed(p.device, lambda s=s: _backward(p.losses(s + 1))) for s in range(count)]  # type: ignore[misc]
        look, drawn = _warm(p.device, p.look), _drawn(p)
        most = meter.peak()
    step = fmean(seconds[-STEPS:]) + moved
    kept = sum(w.nbytes for w in p.parameters.values()) if p.device.type == "cpu" else 0  # the best weights, beside those in work
    peak = None if most is None else most + state + kept
    return Flight(peak, before, free, step, look, drawn, step * steps + look * judged + drawn * looks)


def _refuse(taken: Sequence[int | None], state: int, *, before: int | None, free: int | None, at_once: int) -> None:
    """By what one picture takes, and two."""
    told = [t for t in taken if t is not None]
    if free is None or before is None or len(told) < len(taken):
        return
    each, first, room = max(told[-1] - told[0], 1), told[0] - before + state, SPARE * free
    needs = first + each * (at_once - 1)
    if needs <= room:
        return
    fitting = int((room - first) / each) + 1
    less = f"at_once {fitting}" if 0 < fitting < at_once else "a smaller size, fewer or narrower layers, or another optimizer"
    much = "more memory than there is" if needs >= ENDLESS else f"about {needs / 1e9:.2f} GB"
    raise ValueError(f"train: this takes {much}, and {free / 1e9:.2f} GB are free; try {less}, or checkpointing")


def _tried(p: Probe, meter: Meter, n: int) -> int | None:
    """Bytes at most with n pictures."""
    meter.reset()
    try:
        p.few(n).backward()
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        return ENDLESS
    return meter.peak()


def _backward(losses: Iterable[Tensor]) -> None:
    for loss in losses:
        loss.backward()


def _timed(device: torch.device, work: Callable[[], object]) -> float:
    begun = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - begun


def _warm(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds that it takes once it has been done before; or takes, where that makes no difference."""
    seconds = _timed(device, work)
    return seconds if _long(seconds) else median(_timed(device, work) for _ in range(3))


def _long(seconds: float) -> bool:
    """Whether work takes too long to be done more often; processes that measure together agree."""
    return (parallel.agreed(seconds) if parallel.share().shards else seconds) >= LONG


def _drawn(p: Probe) -> float:
    """Seconds for the pictures of one look. ValueError when they do not fit into memory."""
    try:
        return p.answers / ANSWERS * _warm(p.device, p.walk) + _warm(p.device, p.decode) if p.answers else 0.0
    except (RuntimeError, MemoryError) as error:
        if not memory.ran_out(error):
            raise
        raise ValueError("train: drawing the samples of a look takes more memory than there is; try fewer samples, or 0") from error


def _optimizer(p: Probe, o: Optimizer) -> tuple[float, int]:
    """Seconds of a step, and bytes of what it keeps; of copies."""
    copies = {name: nn.Parameter(parallel.local(w.detach()).clone()) for name, w in p.parameters.items()}
    stepper = Stepper(copies, o, {})

    def step() -> None:
        for copy in (c for c in copies.values() if c.grad is None):
            copy.grad = torch.zeros_like(copy)
        stepper.ready(torch.zeros((), device=p.device), lambda _: None)
        stepper.step(0.0, 0)

    seconds = _warm(p.device, step)  # the first one makes the state
    state = [t for s in stepper.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
    return seconds, sum(t.nbytes for t in (*state, *stepper.averages))


@contextmanager
def _unchanged(p: Probe) -> Iterator[None]:
    """Random numbers, gradients and state are afterwards what they were."""
    kept = {name: t.clone() for name, t in p.state().items()}
    with torch.random.fork_rng([p.device] if p.device.type == "cuda" else []):
        try:
            yield
        finally:
            for w in p.parameters.values():
                w.grad = None
            for name, t in p.state().items():
                t.copy_(kept[name])
            memory.collect()
