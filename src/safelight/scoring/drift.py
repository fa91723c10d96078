"""How far a model's pictures of a prompt have moved from another model's at equal seeds."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from safelight.scoring.diversity import diversity

if TYPE_CHECKING:
    from numpy.typing import NDArray


def drift(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """Mean of 1 - cosine similarity between embeddings (N, D) of the same seeds, in units of the spread between the seeds of `before`.

    0: nothing has moved; 1: as far as another seed. ValueError when the numbers differ, or are below two.
    """
    if before.shape != after.shape:
        raise ValueError(f"drift: got {before.shape} before and {after.shape} after; expected the same prompts and seeds")
    moved = 1 - (before.astype(np.float64) * after.astype(np.float64)).sum(axis=1).mean()
    return float(max(moved, 0.0) / max(diversity(before), 1e-9))
