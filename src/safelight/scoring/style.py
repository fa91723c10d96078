"""How much pictures look like a set of pictures."""
from __future__ import annotations

import numpy as np

from safelight.pictures import floats, read, square
from safelight.scoring import Subject, metric
from safelight.scoring.clip import ClipTowers

MOST = 256  # pictures of the set that are compared with, evenly spread over it


@metric("style", label="style")
def style(subject: Subject) -> list[float]:
    """100 x mean cosine similarity of a picture's CLIP embedding to those of the dataset's kept pictures; at most 100.

    ValueError without a dataset. The embedding also sees what is shown, so compare only sheets made from the same prompts.
    """
    if subject.against is None or not len(subject.against):
        raise ValueError("score: data: the metric 'style' compares with a dataset, and none was given; give data=")
    towers = ClipTowers.load()
    rows = subject.against.kept
    some = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))]
    target = np.concatenate([towers.image(floats(square(read(r.picture.path, least=towers.size), towers.size))[None]) for r in some])
    return [float(x) for x in 100 * (towers.image(subject.image.pixels) @ target.mean(axis=0))]
