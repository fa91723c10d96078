"""Latents: empty ones, cut, turned, scaled, laid on each other, put into batches and taken out of them.

Sizes are in pixels, eight to a cell, as every large family has it.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from safelight.op import Knob, op
from safelight.values import Latent, Mask, Model

if TYPE_CHECKING:
    from torch import Tensor

CELL = 8
SIDE = Knob(0, 16384, step=8)
SMALLEST = 64
"""Pixels that a scaled latent has at least; ComfyUI's figure."""


def _rows(latent: Latent) -> tuple[int, ...]:
    return tuple(range(len(latent.samples))) if latent.rows is None else latent.rows


@op(group="latent", version=1)
def empty_latent(
    model: Model | None = None, *,
    width: Annotated[int, Knob(16, 16384, step=8)] = 512,
    height: Annotated[int, Knob(16, 16384, step=8)] = 512,
    count: Annotated[int, Knob(1, 4096)] = 1,
) -> Latent:
    """Empty latents, where a picture of text alone starts. Without a model they fit any; with one, sizes are cut to its cells.

    Args:
        model: for its number of channels; left out, sample sees to it
        width: in pixels
        height: in pixels
        count: how many; one seed draws different noise for each
    """
    import torch

    if model is None:
        return Latent(torch.zeros(count, 4, height // CELL, width // CELL))
    from safelight.runtime import lease

    with lease(model, holder="empty_latent") as family:
        h, w = max(1, height // family.factor), max(1, width // family.factor)
        return Latent(torch.zeros(count, family.channels, h, w), family.name)


@op(group="latent", version=1)
def scale_latent(
    latent: Latent, *,
    width: Annotated[int, SIDE] = 0,
    height: Annotated[int, SIDE] = 0,
    by: Annotated[float, Knob(0.01, 8, step=0.01)] = 1.0,
    method: Literal["nearest-exact", "bilinear", "area", "bicubic", "bislerp"] = "nearest-exact",
    crop: bool = False,
) -> Latent:
    """Scale latents, to draw them again in a larger size.

    Args:
        width: in pixels; 0 with a height: in proportion
        height: in pixels; 0 with a width: in proportion
        by: how many times larger, where neither width nor height is given
        method: bislerp keeps the latent's contrast between cells
        crop: cut the middle to the new shape; otherwise it is stretched
    """
    from safelight.sampling.resize import scaled

    h, w = latent.samples.shape[-2:]
    if width or height:
        # In proportion, a side in pixels comes out of cells times pixels over cells.
        wide = max(SMALLEST, width or round(w * max(SMALLEST, height) / h)) // CELL
        high = max(SMALLEST, height or round(h * max(SMALLEST, width) / w)) // CELL
    else:
        wide, high = round(w * by), round(h * by)
    return dataclasses.replace(latent, samples=scaled(latent.samples, wide, high, method=method, crop=crop))


@op(group="latent", version=1)
def crop_latent(
    latent: Latent, *, width: Annotated[int, Knob(64, 16384, step=8)] = 512, height: Annotated[int, Knob(64, 16384, step=8)] = 512,
    x: Annotated[int, SIDE] = 0, y: Annotated[int, SIDE] = 0,
) -> Latent:
    """Cut a rectangle out of latents, as much of it as there is.

    Args:
        width: in pixels
        height: in pixels
        x: its left edge; at least 64 pixels are left to its right
        y: its upper edge; at least 64 pixels are left below
    """
    h, w = latent.samples.shape[-2:]
    least = SMALLEST // CELL
    left, top = max(min(x // CELL, w - least), 0), max(min(y // CELL, h - least), 0)
    cut = latent.samples[..., top : top + height // CELL, left : left + width // CELL]
    return dataclasses.replace(latent, samples=cut.clone())


@op(group="latent", version=1)
def turn_latent(
    latent: Latent, *, degrees: Literal[0, 90, 180, 270] = 0, mirror: Literal["no", "upside-down", "left-right"] = "no",
) -> Latent:
    """Turn latents clockwise, or mirror them. What is drawn on from there looks turned; what is decoded at once may look odd.

    Args:
        degrees: how far to turn
        mirror: which way to mirror, after turning
    """
    from safelight.sampling.resize import turned

    return dataclasses.replace(latent, samples=turned(latent.samples, degrees, mirror))


@op(group="latent", version=1)
def paste_latent(
    latent: Latent, over: Latent, *,
    x: Annotated[int, SIDE] = 0,
    y: Annotated[int, SIDE] = 0,
    feather: Annotated[int, SIDE] = 0,
    mask: Mask | None = None,
    fit: bool = False,
) -> Latent:
    """Lay a latent on another.

    Args:
        latent: what lies below
        over: what is laid on it
        x: where its left edge goes, in pixels
        y: where its upper edge goes, in pixels
        feather: soft edges of so many pixels, where they are not the lower latent's edges
        mask: how much of each place of `over`; scaled to it
        fit: scale `over` to the lower latent first
    """
    from safelight.families.tiles import fading
    from safelight.sampling.resize import pasted, plane, repeated, scaled

    under, top = latent.samples, over.samples
    if fit:
        top = scaled(top, under.shape[-1], under.shape[-2])
    left, upper = x // CELL, y // CELL
    top = repeated(top, len(under))[..., : max(under.shape[-2] - upper, 0), : max(under.shape[-1] - left, 0)]
    h, w = top.shape[-2:]
    weight = None
    if mask is not None:
        full = scaled(plane(mask), *reversed(over.samples.shape[-2:] if not fit else under.shape[-2:]))
        weight = repeated(full, len(under))[..., :h, :w]
    elif feather // CELL:
        down = fading(h, feather // CELL, first=upper != 0, last=upper + h < under.shape[-2])
        weight = down[:, None] * fading(w, feather // CELL, first=left != 0, last=left + w < under.shape[-1])
    return dataclasses.replace(latent, samples=pasted(under, top, left=left, top=upper, weight=weight))


@op(group="latent", version=1)
def mix_latents(
    latent: Latent, other: Latent, *, how: Literal["blend", "add", "subtract", "turn"] = "blend",
    ratio: Annotated[float, Knob(0, 1, step=0.01)] = 0.5, scale: Annotated[float, Knob(-10, 10, step=0.01)] = 1.0,
) -> Latent:
    """Mix two latents number by number; the second is scaled to the first.

    Args:
        how: blend is the weighted mean; turn takes the mean of directions and of lengths apart
        ratio: for blend and turn, how much of the first
        scale: what the result is multiplied by
    """
    from safelight.sampling.resize import directions, repeated, scaled

    a, b = latent.samples, other.samples
    if a.shape[1:] != b.shape[1:]:
        b = scaled(b, a.shape[-1], a.shape[-2], method="bicubic" if how == "blend" else "bilinear", crop=True)
    b = repeated(b, len(a))
    if how == "blend":
        mixed = a * ratio + b * (1 - ratio)
    elif how == "turn":
        mixed = directions(a, b, ratio)
    else:
        mixed = a + b if how == "add" else a - b
    return dataclasses.replace(latent, samples=mixed * scale)


@op(group="latent", version=1)
def join_latents(latents: Sequence[Latent], *, along: Literal["batch", "x", "y"] = "batch") -> Latent:
    """Put latents into one batch, or side by side, or one below the other.

    Args:
        latents: into a batch, the others are scaled to the first one's size; the mask is the first one's
        along: x is side by side
    """
    import torch

    from safelight.sampling.resize import repeated, scaled

    if not latents:
        raise ValueError("join_latents: latents: got none, expected at least one")
    first = latents[0]
    if along != "batch":
        every = [repeated(z.samples, len(first.samples)) for z in latents]
        return dataclasses.replace(first, samples=torch.cat(every, dim=-1 if along == "x" else -2))
    h, w = first.samples.shape[-2:]
    every = [z.samples if z.samples.shape[-2:] == (h, w) else scaled(z.samples, w, h, crop=True) for z in latents]
    rows = tuple(row for z in latents for row in _rows(z))
    return dataclasses.replace(first, samples=torch.cat(every), rows=rows)


@op(group="latent", version=1)
def pick_latents(
    latent: Latent, *, start: Annotated[int, Knob(-4096, 4096)] = 0, count: Annotated[int, Knob(1, 4096)] = 1,
) -> Latent:
    """Take latents out of a batch; each keeps the noise it would have had there.

    Args:
        start: the first one's place, from 0; below 0 from the end
        count: how many, as far as there are
    """
    n = len(latent.samples)
    first = max(0, min(start + n if start < 0 else start, n - 1))
    part = slice(first, first + count)
    mask = _of_batch(latent.mask, n)
    if mask is not None and len(mask) > 1:
        mask = mask[part]
    return dataclasses.replace(latent, samples=latent.samples[part].clone(), mask=mask, rows=_rows(latent)[part])


@op(group="latent", version=1)
def repeat_latents(
    latent: Latent, *, count: Annotated[int, Knob(1, 64)] = 1, noise: Literal["own", "same", "new"] = "own",
) -> Latent:
    """Repeat a batch of latents.

    Args:
        count: how often
        noise: own: where noise was fixed for each, the repeats get the next; same: all get the first one's; new: each a new one
    """
    rows = latent.rows
    if rows is not None:
        step = max(rows) - min(rows) + 1
        rows = tuple(row + i * step for i in range(count) for row in rows)
    n = len(latent.samples)
    if noise != "own":
        rows = (_rows(latent)[0] if latent.rows else 0,) * (n * count) if noise == "same" else None
    mask = _of_batch(latent.mask, n)
    if mask is not None and len(mask) > 1:
        mask = mask.repeat(count, 1, 1, 1)
    return dataclasses.replace(latent, samples=latent.samples.repeat(count, 1, 1, 1), mask=mask, rows=rows)


def _of_batch(mask: Tensor | None, n: int) -> Tensor | None:
    from safelight.sampling.resize import repeated

    return mask if mask is None or len(mask) == 1 else repeated(mask, n)


@op(group="latent", version=1)
def set_noise_mask(latent: Latent, mask: Mask | Latent) -> Latent:
    """Say where latents may change when they are drawn on.

    Args:
        mask: 1 is drawn over; of any size; or a latent whose mask to take
    """
    from safelight.sampling.resize import plane

    found = mask.mask if isinstance(mask, Latent) else plane(mask)
    if found is None:
        raise ValueError("set_noise_mask: mask: got a latent without a mask, expected a mask or a latent that has one")
    return dataclasses.replace(latent, mask=found)


@op(group="latent", version=1)
def cut_latent(
    latent: Latent, *, along: Literal["x", "y"] = "x", start: Annotated[int, Knob(-16384, 16384)] = 0,
    count: Annotated[int, Knob(1, 16384)] = 1,
) -> Latent:
    """Take some columns or rows of cells out of latents, as many as there are.

    Args:
        along: x takes columns, y rows
        start: the first one's place, from 0; below 0 from the end
        count: how many
    """
    dim = -1 if along == "x" else -2
    n = latent.samples.shape[dim]
    first = min(start, n - 1) if start >= 0 else max(start + n, 0)
    return dataclasses.replace(latent, samples=latent.samples.narrow(dim, first, min(count, n - first)).clone(), mask=None)


@op(group="latent", version=1)
def sharpen_latent(
    latent: Latent, *, radius: Annotated[int, Knob(1, 31)] = 9, sigma: Annotated[float, Knob(0.1, 10, step=0.1)] = 1.0,
    amount: Annotated[float, Knob(0, 5, step=0.01)] = 0.1,
) -> Latent:
    """Sharpen the directions of latents' cells and leave their lengths.

    Args:
        radius: of the blur that is taken away, in cells
        sigma: of the blur, in radii
        amount: a tenth of how often it is taken away
    """
    from safelight.families.touch import sharpened

    return dataclasses.replace(latent, samples=sharpened(latent.samples, amount, radius, sigma))


@op(group="latent", version=1)
def tonemap_latent(latent: Latent, *, multiplier: Annotated[float, Knob(0, 100, step=0.01)] = 1.0) -> Latent:
    """Hold down the longest of latents' cells (Reinhard's curve): what high guidance burns out.

    Args:
        multiplier: of the length that is never passed, which is the mean plus five standard deviations
    """
    from safelight.families.touch import tonemapped

    return dataclasses.replace(latent, samples=tonemapped(latent.samples, multiplier))
