"""Prompts as conditions, and what can be done with conditions: put side by side, blended, held to places and to parts of the way."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from safelight.op import Knob, OneOf, op
from safelight.sampling.settings import CANVAS, Canvas, emphases
from safelight.values import Cond, Mask, Model, Region

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.families import Family


@op(group="text", version=2)
def encode_text(
    model: Model, text: Annotated[str, Knob(multiline=True)], *,
    first: Annotated[str | None, Knob(multiline=True)] = None,
    skip: Annotated[int, Knob(-1, 24)] = 0,
    emphasis: Annotated[str, OneOf(emphases)] = "comfy",
    negative: bool = False,
    canvas: Canvas = CANVAS,
) -> Cond:
    """Encode a prompt; of any length, `(word:1.2)` makes a word count more.

    Args:
        text: the prompt
        first: another prompt for the first of two text encoders (SDXL); nothing: the same
        skip: how many last layers of the text encoder to leave out, beyond those the model always does (clip skip less one); SDXL takes -1
        emphasis: who reads the brackets: comfy, where the innermost weight counts, or a1111, where they multiply and `[word]` makes less
        negative: the prompt says what pictures should not be like; a refiner is then told of a lower score
    """
    import torch

    from safelight.families.prompt import in_comfy
    from safelight.runtime import lease

    with lease(model, holder="encode_text") as family, torch.no_grad():

        def read(prompt: str) -> Cond:
            return family.encode_text([in_comfy(prompt, emphasis)], skip=skip, negative=negative)

        made = read(text)
        if first is not None:
            made = _beside(family, read, first, made)
    return dataclasses.replace(made, extras={**made.extras, **_told(canvas, made)})


def _beside(family: Family, read: Callable[[str], Cond], first: str, second: Cond) -> Cond:
    """The first tower's numbers from one prompt, the second's from another; the shorter one is lengthened by empty prompts."""
    import torch

    towers: dict[str, Any] = dict(family.trainable())
    widths = [int(towers[name].config.hidden_size) for name in ("text_encoder", "text_encoder_2") if name in towers]
    if len(widths) != 2 or sum(widths) != second.tokens.shape[-1]:
        raise ValueError(f"encode_text: first: {family.name} has no two text encoders side by side, expected SDXL; leave it out")
    width = widths[0]
    a, b, empty = read(first).tokens, second.tokens, read("").tokens
    while a.shape[1] < b.shape[1]:
        a = torch.cat([a, empty], dim=1)
    while b.shape[1] < a.shape[1]:
        b = torch.cat([b, empty], dim=1)
    return dataclasses.replace(second, tokens=torch.cat([a[..., :width], b[..., width:]], dim=-1))


def _told(canvas: Canvas, cond: Cond) -> dict[str, Tensor]:
    """The extras that say a size; none for a model that is not told one, nor where none was said."""
    import torch

    out: dict[str, Tensor] = {}
    if canvas.score is not None and "aesthetic" in cond.extras:
        out["aesthetic"] = torch.full_like(cond.extras["aesthetic"], canvas.score)
    if "pooled" in cond.extras and canvas.width and canvas.height:
        start = [canvas.height, canvas.width, canvas.crop_y, canvas.crop_x]
        score = out.get("aesthetic", cond.extras.get("aesthetic"))
        rest = [canvas.target_height or canvas.height, canvas.target_width or canvas.width] if score is None else [float(score[0, 0])]
        out["time_ids"] = torch.tensor([[float(n) for n in (*start, *rest)]])
    return out


def _each(cond: Cond, change: Callable[[Cond], Cond]) -> Cond:
    """Every part of the condition changed."""
    return _together([change(part) for part in cond.parts])


def _together(parts: Sequence[Cond]) -> Cond:
    return dataclasses.replace(parts[0], others=tuple(parts[1:]))


Pixels = Annotated[int, Knob(0, 16384, step=8)]


@op(group="text", version=1)
def add_box(cond: Cond, model: Model, *, text: str, width: Pixels, height: Pixels, x: Pixels = 0, y: Pixels = 0) -> Cond:
    """Say what is to be in a rectangle of the picture, for a model with GLIGEN (see `with_network`); the negative prompt is given the same.

    Args:
        text: what is there; the model's text encoder reads it
        width: of the rectangle, in pixels
        height: of the rectangle
        x: its left edge
        y: its upper edge
    """
    import torch

    from safelight.patches import gligen, rows
    from safelight.runtime import lease

    with lease(model, holder="add_box") as family:
        new = gligen.box(family, text, (x, y, x + width, y + height))
    return _each(cond, lambda part: dataclasses.replace(
        part, extras={**part.extras, rows.BOXES: torch.cat([part.extras.get(rows.BOXES, new[:, :0]), new], dim=1)}))


@op(group="text", version=1)
def combine_conds(conds: Sequence[Cond]) -> Cond:
    """Let several conditions count together: each denoises the picture, or its part of it, and the results are averaged.

    Args:
        conds: the conditions
    """
    parts = [part for cond in conds for part in cond.parts]
    if not parts:
        raise ValueError("combine_conds: conds: got none, expected at least one condition")
    return _together(parts)


@op(group="text", version=1)
def concat_conds(cond: Cond, other: Cond) -> Cond:
    """Put one condition's text after another's, as if the prompt went on.

    Args:
        cond: what comes first; each of its parts
        other: what comes after it; the first of its parts
    """
    import torch

    return _each(cond, lambda part: dataclasses.replace(part, tokens=torch.cat([part.tokens, other.tokens], dim=1)))


@op(group="text", version=1)
def average_conds(cond: Cond, other: Cond, *, strength: Annotated[float, Knob(0, 1, step=0.01)] = 1.0) -> Cond:
    """Blend two conditions.

    Args:
        cond: where the places and ranges come from; each of its parts is blended
        other: blended in; the first of its parts, cut or filled with zeros to the same length
        strength: how much of `cond`; 0 is `other` alone
    """
    import torch

    def blend(part: Cond) -> Cond:
        length = part.tokens.shape[1]
        tokens = torch.nn.functional.pad(other.tokens[:, :length], (0, 0, 0, max(length - other.tokens.shape[1], 0)))
        extras = dict(part.extras)
        if "pooled" in other.extras:
            extras["pooled"] = part.extras.get("pooled", other.extras["pooled"]) * strength + other.extras["pooled"] * (1.0 - strength)
        return dataclasses.replace(part, tokens=part.tokens * strength + tokens * (1.0 - strength), extras=extras)

    return _each(cond, blend)


@op(group="text", version=1)
def scale_cond(cond: Cond, *, by: Annotated[float, Knob(-100, 100, step=0.01)] = 0.0) -> Cond:
    """Multiply a condition's numbers.

    Args:
        by: 0 leaves nothing of the text, which some models take for no prompt at all
    """

    def change(part: Cond) -> Cond:
        pooled = {"pooled": part.extras["pooled"] * by} if "pooled" in part.extras else {}
        return dataclasses.replace(part, tokens=part.tokens * by, extras={**part.extras, **pooled})

    return _each(cond, change)


def _placed(cond: Cond, **changes: object) -> Cond:
    def change(part: Cond) -> Cond:
        region: Region = dataclasses.replace(part.region, **changes)  # type: ignore[arg-type]
        return dataclasses.replace(part, region=region)

    return _each(cond, change)


@op(group="text", version=1)
def set_area(
    cond: Cond, *,
    width: Annotated[float, Knob(0, 16384, step=8)],
    height: Annotated[float, Knob(0, 16384, step=8)],
    x: Annotated[float, Knob(0, 16384, step=8)] = 0,
    y: Annotated[float, Knob(0, 16384, step=8)] = 0,
    shares: bool = False,
    strength: Annotated[float, Knob(0, 10, step=0.01)] = 1.0,
) -> Cond:
    """Hold a condition to a rectangle of the picture; its inner edges are soft.

    Args:
        width: of the rectangle
        height: of the rectangle
        x: its left edge
        y: its upper edge
        shares: the four are shares of the picture, from 0 to 1; otherwise pixels
        strength: how much it counts where others count too
    """
    return _placed(cond, area=(width, height, x, y), shares=shares, strength=strength, bounds=False)


@op(group="text", version=1)
def set_mask(
    cond: Cond, mask: Mask, *, strength: Annotated[float, Knob(0, 10, step=0.01)] = 1.0, bounds: bool = False,
) -> Cond:
    """Let a condition count only where a mask is, as much as the mask says.

    Args:
        mask: scaled to the picture
        strength: how much it counts where others count too
        bounds: draw only the mask's bounding box for it, which is faster; otherwise the whole picture is drawn and the mask taken of it
    """
    return _placed(cond, mask=mask, mask_strength=strength, bounds=bounds)


@op(group="text", version=1)
def set_range(
    cond: Cond, *,
    start: Annotated[float | None, Knob(0, 1, step=0.001)] = None,
    end: Annotated[float | None, Knob(0, 1, step=0.001)] = None,
    strength: Annotated[float | None, Knob(0, 10, step=0.01)] = None,
) -> Cond:
    """Hold a condition to a part of the way from noise to picture, or change how much it counts.

    Args:
        start: from which share of the way on; nothing: as before
        end: up to which share of the way; nothing: as before
        strength: how much it counts where others count too; nothing: as before
    """
    told = {"start": start, "end": end, "strength": strength}
    return _placed(cond, **{name: value for name, value in told.items() if value is not None})
