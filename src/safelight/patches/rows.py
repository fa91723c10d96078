"""What a patch may know of the rows of the forward pass it sits in; a network itself is told neither their sigma nor whose they are."""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Cond

PICTURE, NEGATIVE = "picture", "negative"
"""Extras of a condition, (B,) each: which picture of the call a row is for, counted from 0; whether its prompt is the negative one."""


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


@contextmanager
def watched(family: Family) -> Iterator[Rows]:
    """Rows that follow `family.predict` for as long as the `with` lasts."""
    rows, plain, own = Rows(), family.predict, vars(family)
    before = own.get("predict")

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        rows.sigma, rows.picture, rows.negative = sigma, cond.extras.get(PICTURE), cond.extras.get(NEGATIVE)
        try:
            return plain(x, sigma, cond)
        finally:
            rows.sigma = rows.picture = rows.negative = None

    own["predict"] = predict
    try:
        yield rows
    finally:
        if before is None:
            del own["predict"]
        else:
            own["predict"] = before
