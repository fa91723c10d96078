"""How a network works inside, changed without weights: weaker forms to guide away from, and attention."""
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
    told: dict[str, Any] = {"sigma": sigma} if how == "blurred" else {"layers": list(layers)} if how == "skipped" else {}
    sided = {"side": side, "start": start, "end": end} if how == "skipped" and side != "asked" else {}
    return model.with_patch(Patch("weak", NO_FILE, options={"how": how, **told, **sided}))


TWEAKS: Mapping[str, Mapping[str, Any]] = {
    "scaled": {"where": "self", "q": 1.0, "k": 1.0, "v": 1.0, "out": 1.0},
    "tiled": {"tile": 256, "swap": 2, "depth": 0, "grow": 0},
    "merged": {"ratio": 0.3},
}


@op(group="model", store=False)
def with_tweak(model: Model, *, how: Literal["scaled", "tiled", "merged"], options: Sequence[str] = ()) -> Model:
    """Let attention work otherwise than it was trained to.

    Args:
        how: scaled, its parts count more or less; tiled, a U-Net's places ask in tiles (HyperTile); merged, alike places ask once
            (ToMe, arXiv:2303.17604)
        options: its settings where they are not the usual. scaled: where=self (or cross, text) q=1 k=1 v=1 out=1; tiled: tile=256 swap=2
            depth=0 grow=0; merged: ratio=0.3
    """
    usual, told = TWEAKS[how], dict(one.partition("=")[::2] for one in options)
    if unknown := told.keys() - usual.keys():
        raise ValueError(f"with_tweak: options: {how} has no setting {min(unknown)!r}; it has {', '.join(usual)}")
    try:
        found = {name: type(value)(told.get(name, value)) for name, value in usual.items()}
    except ValueError as e:
        raise ValueError(f"with_tweak: options: {e}; expected numbers as in the usual {dict(usual)}") from e
    if found.get("where", "self") not in (known := ("self", "cross", "text")):
        raise ValueError(f"with_tweak: options: where: got {found['where']}; expected one of {', '.join(known)}")
    return model.with_patch(Patch("attention", NO_FILE, options={"how": how, **found}))
