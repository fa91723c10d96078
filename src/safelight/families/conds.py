"""Putting text conditions of different lengths into one batch."""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from safelight.values import Cond


def join(conds: Sequence[Cond]) -> Cond:
    """One batch of all rows, in order. Shorter ones are repeated up to the common multiple of the lengths: attention over repeated keys
    gives what it gives over one of each, so a row means the same alone and in the batch. `extras` must be the same names in all."""
    length = math.lcm(*[c.tokens.shape[1] for c in conds])
    tokens = torch.cat([c.tokens.repeat(1, length // c.tokens.shape[1], 1) for c in conds])
    return Cond(tokens, {name: torch.cat([c.extras[name] for c in conds]) for name in conds[0].extras})
