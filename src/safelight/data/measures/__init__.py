"""What can be measured of one picture: one function, one registry entry. Rules and recipes refer to measures by name.

A measure sees a `Picture`, which decodes its file at most once, at the smallest scale that serves every measure.
"""
from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from safelight.pictures import REFERENCE_SIDE, histogram, read
from safelight.values import Row

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Needs = Literal["header", "pixels"]


class Picture:
    """One picture while it is being measured. `row` has its size; `pixels` are (H, W, 3) uint8, shorter side at most REFERENCE_SIDE."""

    def __init__(self, row: Row) -> None:
        """Nothing is read before `pixels` is asked for."""
        self.row = row

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """Decoded and shrunk; raises safelight.pictures.Unreadable."""
        return read(self.row.picture.path, least=REFERENCE_SIDE, most=REFERENCE_SIDE)

    @cached_property
    def grey(self) -> NDArray[np.uint8]:
        """The luma alone, (H, W) uint8 of the same scale; a JPEG's colours are not decoded for it. Raises Unreadable."""
        return read(self.row.picture.path, least=REFERENCE_SIDE, most=REFERENCE_SIDE, grey=True)

    @cached_property
    def histogram(self) -> NDArray[np.int64]:
        """(256,) int64: pixels of each grey."""
        return histogram(self.grey)


@dataclass(frozen=True)
class Measure:
    """A registered measure: `label` and `unit` for people, `needs` says what it costs (header: nothing; pixels: one decode).

    `version` goes up when its values change, so that kept ones are taken anew.
    """

    name: str
    take: Callable[[Picture], float]
    needs: Needs
    label: str
    unit: str
    version: int = 1

    @property
    def question(self) -> str:
        """Under which name its values are kept."""
        return f"{self.name} {self.version}"

    @property
    def doc(self) -> str:
        """The function's docstring."""
        return inspect.getdoc(self.take) or ""


MEASURES: dict[str, Measure] = {}


def measure(
    *, needs: Needs, label: str, unit: str = "", version: int = 1,
) -> Callable[[Callable[[Picture], float]], Callable[[Picture], float]]:
    """Register a function of a Picture under its own name. The docstring states range and source."""

    def register(take: Callable[[Picture], float]) -> Callable[[Picture], float]:
        MEASURES[take.__name__] = Measure(take.__name__, take, needs, label, unit, version)
        return take

    return register


def find(name: str) -> Measure:
    """The measure of that name. ValueError lists the names there are."""
    if name not in MEASURES:
        raise ValueError(f"no measure {name!r}; expected one of {', '.join(sorted(MEASURES))}")
    return MEASURES[name]


from safelight.data.measures import pixels, shape  # noqa: E402  (they register themselves)

__all__ = ["MEASURES", "Measure", "Picture", "find", "measure", "pixels", "shape"]
