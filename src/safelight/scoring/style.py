"""How much pictures are drawn like a set of pictures, whatever they show."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from safelight.pictures import floats, read, square
from safelight.scoring import Subject, metric

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST = 256  # pictures of the set that are compared with, evenly spread over it
LEAST = 4  # fewer do not say what varies within the set
SIDES = (128, 64, 32)
LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def strokes(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(H, W, 3) -> (66,): how edges run, how strong they are and how fine, at three scales. Blind to where things are and to hue."""
    out: list[float] = []
    for side in SIDES:
        y = floats(square(pixels, side)) @ LUMA
        right, down = np.diff(y, axis=1)[:-1], np.diff(y, axis=0)[:, :-1]
        strength, angle = np.hypot(right, down), np.arctan2(down, right) % np.pi
        out.extend(8 * np.histogram(angle, bins=8, range=(0, np.pi), weights=strength)[0] / strength.size)
        out.extend(np.histogram(np.log10(strength + 1e-3), bins=10, range=(-3, 0.2))[0] / strength.size)
        fine = np.abs(y[:-2, 1:-1] + y[2:, 1:-1] + y[1:-1, :-2] + y[1:-1, 2:] - 4 * y[1:-1, 1:-1])
        out.extend(np.log10(np.quantile(fine, [0.5, 0.75, 0.9, 0.97]) + 1e-3))
    return np.array(out)


def _far(some: NDArray[np.float64], from_set: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, F) and (M, F) -> (N, M): root mean square difference in units of what varies within the set."""
    return np.asarray(np.sqrt((((some[:, None] - from_set[None]) / spread) ** 2).mean(axis=2)))


@metric("style", label="style")
def style(subject: Subject) -> list[float]:
    """Likeness in drawing to the dataset's pictures, at most 100. 100: as near to them as they are to each other; 50: twice as far.

    Compares statistics of edges at three scales, not what is shown and not colours. ValueError with fewer than four pictures in the set.
    """
    rows = subject.against.kept if subject.against is not None else ()
    if len(rows) < LEAST:
        raise ValueError(f"score: data: the metric 'style' needs a dataset of {LEAST} pictures or more, got {len(rows)}; give data=")
    chosen = [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(MOST, len(rows))).astype(int))]
    known = np.stack([strokes(read(r.picture.path, least=SIDES[0])) for r in chosen])
    deviation = known.std(axis=0)
    spread = deviation + deviation.mean() / 2 + 1e-3  # a statistic that hardly varies in a small set may do so in a larger one
    among = _far(known, known, spread).sum() / (len(known) * (len(known) - 1))
    apart = _far(np.stack([strokes(p) for p in subject.image.bytes8()]), known, spread).mean(axis=1)
    return [float(x) for x in 100 * np.minimum(1.0, (among + 1e-6) / (apart + 1e-6))]
