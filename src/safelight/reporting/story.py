"""What a report tells, as plain data: gathered by the op, laid out by the page."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from safelight.values import Dataset, Image, Patch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Step:
    """One op on the way to the report: its settings, which inputs came from which earlier step, what came out, seconds when it ran."""

    op: str
    settings: Mapping[str, Any]
    inputs: tuple[str, ...]
    output: str
    key: str
    seconds: float


@dataclass(frozen=True)
class Sample:
    """A picture made during training: (H, W, 3) uint8."""

    step: int
    prompt: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class Compared:
    """One metric before and after: means, the 95 % interval of the difference, and how many of `pairs` pictures rose."""

    label: str
    before: float | None
    after: float
    low: float = 0.0
    high: float = 0.0
    wins: int = 0
    pairs: int = 0
    doc: str = ""


@dataclass(frozen=True)
class Story:
    """Everything a report may show; what is empty gets no section. `record` is a training's record.json."""

    title: str
    data: Dataset | None = None
    patch: Patch | None = None
    patch_bytes: int = 0
    record: Mapping[str, Any] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    before: Image | None = None
    after: Image | None = None
    compared: tuple[Compared, ...] = ()
    steps: tuple[Step, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
