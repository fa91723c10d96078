"""Conditions of several prompts as one batch, though their token sequences are not equally long."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from safelight.families import Family, RepeatsTokens
from safelight.values import Cond

LENGTH = "length"
"""The extra (B, 1) that says how many of a row's tokens are its own; without it all are."""


def repeats(family: Family) -> bool:
    """Whether the family's token sequences may be repeated."""
    return isinstance(family, RepeatsTokens) and family.repeats_tokens


def join(conds: Sequence[Cond], *, repeated: bool) -> Cond:
    """One batch of all rows, in order; `extras` must have the same names in all, but for LENGTH.

    `repeated`: shorter rows are repeated up to the common multiple of the lengths; attention over repeated keys gives what it gives over
    one of each, where the tokens are keys alone. Otherwise shorter rows are filled up with zeros, and LENGTH says so.
    """
    lengths = torch.cat([c.extras.get(LENGTH, torch.full((len(c.tokens), 1), c.tokens.shape[1])).cpu() for c in conds])
    longest = (math.lcm if repeated else max)(*[c.tokens.shape[1] for c in conds], 1)
    tokens = torch.cat([_grown(c.tokens, longest, repeated) for c in conds])
    extras = {name: torch.cat([c.extras[name] for c in conds]) for name in conds[0].extras if name != LENGTH}
    if not repeated and int(lengths.min()) < longest:
        extras[LENGTH] = lengths
    return Cond(tokens, extras)


def _grown(tokens: Tensor, longest: int, repeated: bool) -> Tensor:
    if repeated:
        return tokens.repeat(1, longest // tokens.shape[1], 1)
    return torch.nn.functional.pad(tokens, (0, 0, 0, longest - tokens.shape[1]))


def groups(cond: Cond) -> list[tuple[Tensor, Cond]]:
    """The rows (N,) of each length, with their condition cut to it."""
    lengths = cond.extras.get(LENGTH)
    if lengths is None:
        return [(torch.arange(len(cond.tokens)), cond)]
    rest = {name: t for name, t in cond.extras.items() if name != LENGTH}
    out = []
    for n in lengths.unique().tolist():
        rows = (lengths[:, 0] == n).nonzero()[:, 0].cpu()
        out.append((rows, Cond(cond.tokens[rows, : int(n)], {name: t[rows] for name, t in rest.items()})))
    return out


def apart(ask: Callable[[Tensor, Tensor, Cond], Tensor], x: Tensor, sigma: Tensor, parts: Sequence[tuple[Tensor, Cond]]) -> Tensor:
    """What is answered to each of `groups` by itself, in the rows' order."""
    return torch.cat([ask(x[rows], sigma[rows], part) for rows, part in parts])[torch.cat([rows for rows, _ in parts]).argsort()]


def some(cond: Cond, rows: Tensor | slice) -> Cond:
    """Some rows of a condition; what counts for all of them stays."""
    n = len(cond.tokens)
    return Cond(cond.tokens[rows], {name: t[rows] if len(t) == n else t for name, t in cond.extras.items()})
