"""What a ControlNet can follow, made from a picture without any network: one function, one registry entry a preprocessor."""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

REFERENCE = 512
"""Sizes are given in pixels of a picture whose shorter side is this long."""


@dataclass(frozen=True)
class Asked:
    """What a preprocessor is asked for: `size` in pixels of a REFERENCE picture (nothing: its own), thresholds `low` and `high`."""

    size: float | None = None
    low: float = 0.4
    high: float = 0.8


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture to work on: `pixels` (H, W, 3) float32 in [0, 1], and what is asked."""

    pixels: NDArray[np.float32]
    asked: Asked

    def size(self, usual: float) -> float:
        """The size asked for, or the usual one, in pixels of this picture."""
        side: int = min(self.pixels.shape[:2])
        return (usual if self.asked.size is None else self.asked.size) * side / REFERENCE


Hint = Callable[[Picture], "NDArray[np.float32]"]
"""A picture -> (H, W, 3), or (H, W) for a grey one, in [0, 1]."""

HINTS: dict[str, Hint] = {}


def hint(make: Hint) -> Hint:
    """Register under the function's name."""
    HINTS[make.__name__] = make
    return make


def make(pixels: NDArray[np.float32], by: str, asked: Asked) -> NDArray[np.float32]:
    """(B, H, W, 3) in [0, 1] -> the hint pictures, as large. ValueError when there is no preprocessor `by`."""
    if by not in HINTS:
        raise ValueError(f"hint: by: got {by!r}, expected one of {', '.join(sorted(HINTS))}")
    made = [HINTS[by](Picture(p, asked)) for p in pixels]
    full = [m if m.ndim == 3 else np.repeat(m[..., None], 3, axis=2) for m in made]
    return np.clip(np.stack(full), 0, 1).astype(np.float32)


def told(by: str) -> str:
    """What a preprocessor says of itself."""
    return inspect.getdoc(HINTS[by]) or ""


from safelight.data.hints import lines, tones  # noqa: E402  (they register themselves)

__all__ = ["HINTS", "REFERENCE", "Asked", "Hint", "Picture", "hint", "lines", "make", "told", "tones"]
