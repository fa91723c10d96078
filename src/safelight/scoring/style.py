"""How much pictures are drawn like a set of pictures, whatever they show."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.ndimage import gaussian_filter

from safelight.pictures import floats, read, square
from safelight.scoring import Subject, metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 256  # pictures of the set that are compared with, evenly spread over it
LEAST = 4  # fewer do not say what varies within the set
SIDE, SOFT = 128, 3.0
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def strokes(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 3) -> (18,): how edges run, and how unevenly they are strong. Blind to where things are, to contrast, to hue and to what is
    finer than a fortieth of the side: there, drawn pictures are soft and their models sharp, whatever the style."""
    y = gaussian_filter(floats(square(pixels, SIDE)) @ LUMA, SOFT)[::2, ::2].astype(np.float64)
    right, down = np.diff(y, axis=1)[:-1], np.diff(y, axis=0)[:, :-1]
    strength = np.hypot(right, down)
    angle = (np.arctan2(down, right) + np.pi / 24) % np.pi  # the first of twelve bins is centred on upright edges
    ways = np.histogram(angle, bins=12, range=(0, np.pi), weights=strength)[0]
    uneven = np.quantile(strength, [0.25, 0.5, 0.7, 0.8, 0.9, 0.97]) / (strength.mean() + 1e-6)
    return np.concatenate([4 * ways / (ways.sum() + 1e-6), 0.7 * np.log10(uneven + 0.05)])


def _far(some: NDArray[np.float64], from_set: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, F) and (M, F) -> (N, M): root mean square difference in units of what varies within the set."""
    return np.asarray(np.sqrt((((some[:, None] - from_set[None]) / spread) ** 2).mean(axis=2)))


@metric("style", label="style")
def style(subject: Subject) -> list[float]:
    """Likeness in drawing to the dataset's pictures, at most 100. 100: as near to them as they are to each other; 50: twice as far.

    Compares how edges run and how unevenly they are strong, not what is shown and not colours. ValueError with fewer than four pictures
    in the set.
    """
    rows = subject.against.kept if subject.against is not None else ()
    if len(rows) < LEAST:
        raise ValueError(f"score: data: the metric 'style' needs a dataset of {LEAST} pictures or more, got {len(rows)}; give data=")
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))]
    known = np.stack([strokes(read(r.picture.path, least=SIDE)) for r in chosen])
    deviation = known.std(axis=0)
    spread = deviation + deviation.mean() / 2 + 1e-3  # a statistic that hardly varies in a small set may do so in a larger one
    among = _far(known, known, spread).sum() / (len(known) * (len(known) - 1))
    apart = _far(np.stack([strokes(p) for p in subject.image.bytes8()]), known, spread).mean(axis=1)
    return [float(x) for x in 100 * np.minimum(1.0, (among + 1e-6) / (apart + 1e-6))]
