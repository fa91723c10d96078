"""What a patch may know of the rows of the forward pass it sits in; a network itself is told neither their sigma nor whose they are."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safelight.families.joining import apart, groups

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Cond

PICTURE, NEGATIVE, WEAK = "picture", "negative", "weak"
"""Extras of a condition, (B,) each: which picture of the call a row is for, counted from 0; whether its prompt is the negative one; how
the network is weakened for it, one of the following or 0 (see `weak`)."""

ALONE, BLURRED, SKIPPED = 1, 2, 3

BOXES = "boxes"
"""An extra (B, N, 4 + D): left, top, right and bottom of places in the picture, in pixels, and what is there (see `gligen`)."""

SIDES = ("both", "positive", "negative")
"""Sides of the guidance that a patch may act on."""


def unet_of(family: Family, kind: str) -> Any:
    """The U-Net that a patch changes. ValueError for a model that has none."""
    networks = family.trainable()
    if "unet" not in networks:
        raise ValueError(f"{kind}: needs a U-Net; this {family.name} model has {', '.join(networks)}")
    return networks["unet"]


class Rows:
    """The rows under way. Outside of `Family.predict`, and where nobody said it, an attribute is None."""

    sigma: Tensor | None = None
    picture: Tensor | None = None
    negative: Tensor | None = None
    weak: Tensor | None = None
    boxes: Tensor | None = None


@contextmanager
def watched(family: Family) -> Iterator[Rows]:
    """Rows that follow `family.predict` for as long as the `with` lasts."""
    rows, plain, own = Rows(), family.predict, vars(family)
    before = own.get("predict")

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        if len(parts := groups(cond)) > 1:  # as a transformer will be asked
            return apart(predict, x, sigma, parts)
        rows.sigma, rows.picture, rows.negative, rows.weak, rows.boxes = sigma, *map(cond.extras.get, (PICTURE, NEGATIVE, WEAK, BOXES))
        try:
            return plain(x, sigma, cond)
        finally:
            rows.sigma = rows.picture = rows.negative = rows.weak = rows.boxes = None

    own["predict"] = predict
    try:
        yield rows
    finally:
        if before is None:
            del own["predict"]
        else:
            own["predict"] = before


@dataclass(frozen=True)
class Span:
    """The rows on which a patch acts: a part of the way from noise (0) to picture (1), and a side of the guidance. ValueError when `end` is
    before `start`, or for another side."""

    start: float = 0.0
    end: float = 1.0
    side: str = "both"

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.end <= 1:
            raise ValueError(f"patch: got start={self.start:g}, end={self.end:g}; expected 0 <= start <= end <= 1")
        if self.side not in SIDES:
            raise ValueError(f"patch: got side={self.side!r}; expected one of {', '.join(SIDES)}")

    @staticmethod
    def of(options: Mapping[str, Any]) -> Span:
        """As a patch's options say."""
        return Span(float(options.get("start", 0)), float(options.get("end", 1)), str(options.get("side", "both")))

    def on(self, family: Family, rows: Rows) -> Tensor | None:
        """(B,) bool, the rows that it acts on; None for all of them. ValueError when nobody said what it goes by."""
        acts: Tensor | None = None
        if (self.start, self.end) != (0, 1):
            if rows.sigma is None:
                raise ValueError("patch: start and end need the rows' sigma; call the family's predict, not its network")
            acts = (rows.sigma <= level(family, self.start)) & (rows.sigma >= level(family, self.end))
        if self.side != "both":
            if rows.negative is None:
                raise ValueError(f"patch: side={self.side} needs to know whose a row is; say it in the extra {NEGATIVE!r}")
            whose = rows.negative if self.side == "negative" else ~rows.negative
            acts = whose if acts is None else acts & whose.to(acts.device)
        return acts


EVERY = Span()


def level(family: Family, share: float) -> float:
    """Sigma at a share of the way, as ComfyUI counts: even in the training table's time, log sigma linear between its entries (a flow's
    sigma itself); infinity at 0 and zero at 1."""
    if not 0 < share < 1:
        return math.inf if share <= 0 else 0.0
    flow = family.prediction == "flow"
    table = (family.sigmas if flow else family.log_sigmas).detach().cpu()
    at = torch.tensor((1 - share) * len(table) - 1 if flow else (1 - share) * (len(table) - 1)).clamp(min=0)
    below, above = table[int(at.floor())], table[int(at.ceil())]
    between = (1 - at.frac()) * below + at.frac() * above
    return float(between if flow else between.exp())
