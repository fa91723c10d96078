"""Where captions come from: one file, one registry entry a captioner. A captioner is a generator of events that returns one text a row."""
from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from safelight.data.asking import LOOKING, TAGGING, Looking, Tagging
from safelight.events import Event
from safelight.values import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Vocabulary = Mapping[str, Mapping[str, tuple[str, str]]]
"""attribute -> value -> (English phrase, Chinese phrase)."""


class Towers(Protocol):
    """A loaded pair of encoders into one space (safelight.scoring.clip.ClipTowers is one)."""

    size: int
    scale: float

    def text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D), rows of length 1."""
        ...

    def image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, H, W, 3) in [0, 1] -> (B, D), rows of length 1."""
        ...


@dataclass(frozen=True)
class Asked:
    """What a captioner is asked for. `towers` and `vocabulary` are called only by the tagger; `looking` and `tagging` are for others."""

    template: str = "{caption}"
    language: str = "en"
    confidence: float = 0.5
    towers: Callable[[], Towers] | None = None
    vocabulary: Callable[[], Vocabulary] | None = None
    looking: Looking = LOOKING
    tagging: Tagging = TAGGING


Captioner = Callable[[Sequence[Row], Asked], Generator[Event, None, list[str]]]
CAPTIONERS: dict[str, Captioner] = {}


def captioner(name: str) -> Callable[[Captioner], Captioner]:
    """Register a captioner. It returns one text a row, in order; the empty string where it has nothing to say."""

    def register(fn: Captioner) -> Captioner:
        CAPTIONERS[name] = fn
        return fn

    return register


from safelight.data.captioners import blip, file, tagger, template, vlm, wd14  # noqa: E402  (they register themselves)

__all__ = ["CAPTIONERS", "Asked", "Captioner", "Towers", "Vocabulary", "blip", "captioner", "file", "tagger", "template", "vlm", "wd14"]
