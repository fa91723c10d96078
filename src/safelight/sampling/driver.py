"""Many trajectories through one network: their asks go into shared forward passes, every row with its own sigma.

Three layers, each usable by itself: `asking` walks requests and lets their asks bubble up, `answer` answers the asks of any number of jobs
at once, `drive` does both for one.
"""
from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from safelight.events import Ask, Event, Preview, Progress, Query
from safelight.families import Family
from safelight.families.joining import join, repeats, some
from safelight.sampling.preview import jpeg
from safelight.sampling.request import Request, Trajectory, Turn, trajectory
from safelight.values import Cond

ROWS = 16
"""Rows of a forward pass: pictures times conditions."""

LONGEST = 4
"""Token sequences are repeated to a common length only when that makes none more than this many times longer."""


_wanted: ContextVar[bool] = ContextVar("asks wanted", default=False)


@contextmanager
def asks_wanted() -> Iterator[None]:
    """For as long as the `with` lasts, `drive` lets its asks go up to whoever runs the work; one that nothing is sent for it answers."""
    before = _wanted.set(True)
    try:
        yield
    finally:
        _wanted.reset(before)


def drive(family: Family, requests: Sequence[Request], *, rows: int = ROWS) -> Generator[Event, Any, list[Tensor]]:
    """Walk the requests together: yields Progress and Preview, returns one latent (B, C, h, w) a request, on the CPU, in their order.

    At most `rows` rows go into one forward pass, and as many requests are under way as fill it; the others start as those end. The results
    are those of each request alone up to the rounding of the network's batched arithmetic.
    """
    work = asking(family, requests, rows=rows)
    reply: Sequence[Tensor] | None = None
    try:
        while True:
            try:
                event = work.send(reply)
            except StopIteration as end:
                latents: list[Tensor] = end.value
                return latents
            reply = None
            if isinstance(event, Ask):
                reply = (yield event) if _wanted.get() else None
                reply = answer([event], rows=rows)[0] if reply is None else reply
            else:
                yield event
    finally:
        work.close()


def asking(family: Family, requests: Sequence[Request], *, rows: int = ROWS) -> Generator[Event, Sequence[Tensor] | None, list[Tensor]]:
    """As `drive`, but yields each round's Ask instead of answering it: send one x0 a query."""
    everyone = [_Walk(family, request) for request in requests]
    first = [sum(len(r.latent) for r in requests[:i]) for i in range(len(requests))]
    total, done = sum(r.steps for r in requests), -1
    try:
        while running := _admit(everyone, rows):
            queries = tuple(q for w in running for q in w.queries)
            answers = yield Ask(family=family, queries=queries)
            if answers is None or len(answers) != len(queries):
                raise TypeError(f"asking: an Ask of {len(queries)} queries must be answered by send() with as many x0")
            _tell(running, answers)
            for walk, index in zip(everyone, first, strict=True):
                yield from walk.previews(family, index)
            if (now := sum(w.step for w in everyone)) > done:
                done = now
                yield Progress(step=done, total=total, what="sampling")
        return [w.result() for w in everyone]
    finally:
        for walk in everyone:
            walk.close()


def _admit(walks: Sequence[_Walk], rows: int) -> list[_Walk]:
    """Those under way, after starting as many of the others, in order, as fit into `rows` rows; at least one while any is left."""
    running = [w for w in walks if w.begun and w.queries]
    used = sum(w.request.asked_rows for w in running)
    for walk in walks:
        if walk.begun:
            continue
        if running and used + walk.request.asked_rows > rows:
            break
        walk.begin()
        if walk.queries:
            running.append(walk)
            used += walk.request.asked_rows
    return running


class _Walk:
    """A trajectory under way, and where it is."""

    def __init__(self, family: Family, request: Request) -> None:
        self.request = request
        self.coroutine: Trajectory = trajectory(family, request)
        self.turn: Turn | None = None
        self.latent: Tensor | None = None
        self.step = self.shown = 0
        self.begun = False

    @property
    def queries(self) -> tuple[Query, ...]:
        """What it asks now; nothing before its start and after its end."""
        return self.turn.queries if self.turn is not None else ()

    def begin(self) -> None:
        """Run up to the first ask."""
        self.begun = True
        self._resume(None)

    def tell(self, answers: Sequence[Tensor]) -> None:
        """Run up to the next ask."""
        self._resume(answers)

    def _resume(self, answers: Sequence[Tensor] | None) -> None:
        try:
            self.turn = next(self.coroutine) if answers is None else self.coroutine.send(answers)
            self.step = max(self.step, self.turn.step)
        except StopIteration as end:
            self.turn, self.latent, self.step = None, end.value.cpu(), self.request.steps

    def previews(self, family: Family, first: int) -> Iterator[Preview]:
        """The last x0 once every `preview` steps, a picture each; the result itself needs none."""
        every = self.request.preview
        if self.turn is None or self.turn.x0 is None or not every or self.step // every <= self.shown:
            return
        self.shown = self.step // every
        for i, data in enumerate(jpeg(family, self.turn.x0)):
            yield Preview(data=data, index=first + i)

    def result(self) -> Tensor:
        """The finished latent."""
        assert self.latent is not None
        return self.latent

    def close(self) -> None:
        """Drop the trajectory wherever it is."""
        self.coroutine.close()
        self.turn = None


def _tell(walks: Sequence[_Walk], answers: Sequence[Tensor]) -> None:
    at = 0
    for walk in walks:
        n = len(walk.queries)
        walk.tell(answers[at : at + n])
        at += n


@torch.no_grad()
def answer(asks: Sequence[Ask], *, rows: int = ROWS) -> list[list[Tensor]]:
    """The x0 of every query, ask by ask. What has family, latent shape and kind of condition in common shares passes of <= `rows` rows."""
    flat = [(ask.family, q) for ask in asks for q in ask.queries]
    alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for i, (family, q) in enumerate(flat):
        alike[id(family), *_form(q)].append(i)
    found: dict[int, Tensor] = {}
    for members in alike.values():
        family = flat[members[0]][0]
        assert family is not None
        for group in _by_length(family, {i: flat[i][1] for i in members}):
            found.update(zip(group, _forward(family, list(group.values()), rows), strict=True))
    answers = iter([found[i] for i in range(len(flat))])
    return [[next(answers) for _ in ask.queries] for ask in asks]


def _form(q: Query) -> tuple[object, ...]:
    """What rows of one forward pass must share, but for the number of tokens."""
    extras = tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in sorted(q.cond.extras.items()))
    return tuple(q.x.shape[1:]), q.x.dtype, q.cond.tokens.shape[-1], q.cond.tokens.dtype, extras


def _by_length(family: Family, queries: dict[int, Query]) -> list[dict[int, Query]]:
    """Groups whose token sequences can be made equally long."""
    lengths = {q.cond.tokens.shape[1] for q in queries.values()}
    if repeats(family) and math.lcm(*lengths) <= LONGEST * min(lengths):
        return [queries]
    return [{i: q for i, q in queries.items() if q.cond.tokens.shape[1] == n} for n in sorted(lengths)]


def _forward(family: Family, queries: Sequence[Query], rows: int) -> list[Tensor]:
    """x0 of each query; all rows one after another, `rows` at a time."""
    sizes = [len(q.x) for q in queries]
    x = torch.cat([q.x for q in queries])
    at = torch.tensor([q.sigma for q in queries], dtype=torch.promote_types(x.dtype, torch.float32))
    sigma = at.repeat_interleave(torch.tensor(sizes)).to(x.device)
    cond = _stacked([q.cond for q in queries], sizes)
    out = [family.denoise(x[part], sigma[part], some(cond, part)) for part in _slices(len(x), rows)]
    return list(torch.cat(out).split(sizes))


def _slices(n: int, size: int) -> list[slice]:
    return [slice(i, i + size) for i in range(0, n, max(size, 1))]


def _stacked(conds: Sequence[Cond], sizes: Sequence[int]) -> Cond:
    """One condition a row."""
    rows = [
        Cond(_to_batch(c.tokens, n), {name: _to_batch(t, n) for name, t in c.extras.items()}) for c, n in zip(conds, sizes, strict=True)
    ]
    return join(rows, repeated=len({c.tokens.shape[1] for c in conds}) > 1)


def _to_batch(t: Tensor, n: int) -> Tensor:
    return t if len(t) == n else t.expand(n, *t.shape[1:])
