"""How a network works inside, changed without weights: weaker forms to guide away from, attention, features, noise levels."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from safelight.op import Knob, op
from safelight.values import NO_FILE, Model, Patch

Share = Annotated[float, Knob(0, 1, step=0.001)]


@op(group="model", store=False)
def with_weak(
    model: Model, *, how: Literal["alone", "blurred", "skipped"] = "alone",
    sigma: Annotated[float, Knob(0, 10, step=0.1)] = 2.0, layers: Sequence[int] = (7, 8, 9),
    side: Literal["asked", "positive", "negative", "both"] = "asked", start: Share = 0.0, end: Share = 1.0,
) -> Model:
    """Let a model be asked in a weaker form too, to be guided away from by the sampler's change weak=3, blur=0.5 or skip=3.

    Args:
        how: alone, each place of a U-Net's middle attends to itself (PAG, arXiv:2403.17377); blurred, what a U-Net looks at is blurred
            (SAG, arXiv:2210.00939); skipped, a transformer (SD 3) leaves layers out
        sigma: of the blur, in cells of the latent
        layers: which are left out, counted from 0
        side: leave layers out for that side of the guidance, instead of where the sampler asks for it
        start: for a side: from which share of the way on
        end: for a side: up to which share of the way
    """
    told: Mapping[str, Any] = {"alone": {}, "blurred": {"sigma": sigma}, "skipped": {"layers": list(layers)}}[how]
    sided = {"side": side, "start": start, "end": end} if how == "skipped" and side != "asked" else {}
    return model.with_patch(Patch("weak", NO_FILE, options={"how": how, **told, **sided}))
