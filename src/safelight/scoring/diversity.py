"""How different pictures of one prompt are: a model that has learnt its few pictures by heart draws them again and again."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def diversity(seen: NDArray[np.float32]) -> float:
    """Mean of 1 - cosine similarity over all pairs of embeddings (N, D), rows of length 1; 0: all the same. ValueError for one or none."""
    n = len(seen)
    if n < 2:
        raise ValueError(f"diversity: got {n} pictures, expected two or more")
    together = seen.astype(np.float64) @ seen.astype(np.float64).T
    return float(1 - (together.sum() - np.trace(together)) / (n * (n - 1)))
