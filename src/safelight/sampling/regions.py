"""Several conditions for one side of the guidance: each denoises its part of the picture, and x0 is their weighted mean.

What ComfyUI computes for combined, area, masked and time-ranged conditioning.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, permutations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safelight.events import Query
from safelight.families.tiles import fading
from safelight.patches.rows import BOXES, NEGATIVE, PICTURE, WEAK
from safelight.sampling.process import Exploding
from safelight.sampling.resize import plane, repeated, scaled
from safelight.values import Cond, Region

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.sampling.process import Process

SOFT = 8
"""Cells over which an area's weight rises from its edges, where these are not the picture's; at most a quarter of the area's side."""

SMALLEST = 8
"""Cells a side that the bounding box of a mask has at least."""

NOTHING = 1e-37
"""What the weights start from, so that a place no condition speaks of gets an x0 of 0."""

Box = tuple[int, int, int, int]
"""Height, width, top and left, in cells of the latent."""


@dataclass(frozen=True, eq=False)
class Place:
    """A condition where it counts: inside `area` (nothing: everywhere), while end <= sigma <= begin, with `weight` (1 or B, 1, h, w) of the
    area's size (nothing: 1)."""

    cond: Cond
    begin: float = math.inf
    end: float = 0.0
    area: Box | None = None
    weight: Tensor | None = None

    def at(self, sigma: float) -> bool:
        """Whether it is asked at sigma."""
        return self.end <= sigma <= self.begin

    def cut(self, x: Tensor) -> Tensor:
        """The area of x (B, C, h, w), a view."""
        if self.area is None:
            return x
        h, w, top, left = self.area
        return x[..., top : top + h, left : left + w]


Side = Sequence[Place]


def sides(cond: Cond, negative: Cond | None, family: Family, shape: Sequence[int], way: Process, *more: Cond) -> Sequence[Side]:
    """The places of both sides, and of what `more` a guidance asks, for latents of this shape (B, C, h, w).

    An area of one side that the other has not is asked of the other too, under its condition with the smallest area around it: guidance
    would else compare an area with the whole picture.
    """
    given = (cond, negative, *more)
    made = [[] if c is None else _places(_marked(c, shape[0], i == 1), family, shape, way) for i, c in enumerate(given)]
    for one, other in permutations(made, 2):
        for place in one:
            other += _counterpart(place, other)
    for side in made[1:]:
        _boxed(side, made[0])
    return made


def _boxed(side: list[Place], first: Side) -> None:
    """Give a side that has no boxes (GLIGEN) those of the first one, as ComfyUI does: they are no part of what the prompts differ in."""
    told = [p.cond for p in first if p.area is None and BOXES in p.cond.extras]
    free = [i for i, p in enumerate(side) if p.area is None]
    for i, cond in zip(cycle(free), [] if any(BOXES in side[i].cond.extras for i in free) else told, strict=False):
        side[i] = replace(side[i], cond=_with_boxes(side[i].cond, cond))


def _with_boxes(cond: Cond, other: Cond) -> Cond:
    return replace(cond, extras={n: t for n, t in {**cond.extras, BOXES: other.extras.get(BOXES)}.items() if t is not None})


def ask(side: Side, x: Tensor, sigma: float) -> list[Query]:
    """What to ask at sigma; nothing where no condition counts then."""
    return [Query(p.cut(x), sigma, Cond(p.cond.tokens, _extras(p))) for p in side if p.at(sigma)]


def gather(side: Side, x: Tensor, sigma: float, answers: Sequence[Tensor]) -> Tensor:
    """x0 (B, C, h, w) from the answers to `ask`: their mean by weight; 0 where nothing counts."""
    asked = [p for p in side if p.at(sigma)]
    if len(asked) == 1 and asked[0].area is None and asked[0].weight is None:
        return answers[0]
    total, weights = torch.zeros_like(x), torch.full_like(x, NOTHING)
    for place, x0 in zip(asked, answers, strict=True):
        w = 1.0 if place.weight is None else place.weight.to(x)
        place.cut(total).add_(x0 * w)
        place.cut(weights).add_(w)
    return total / weights


def level(way: Process, share: float) -> float:
    """Sigma at a share of the way from noise to picture, even in the time of the training table: infinite at 0, zero at 1."""
    if not 0 < share < 1:
        return math.inf if share <= 0 else 0.0
    if isinstance(way, Exploding):
        way = replace(way, angular=False)
    return way.at(torch.tensor((1 - share) * way.span[0]))


def _marked(cond: Cond, pictures: int, negative: bool) -> Cond:
    """With what patches may know of the rows (see `patches.rows`), where the condition does not say it itself."""
    marks = {PICTURE: torch.arange(pictures), NEGATIVE: torch.tensor([negative]), WEAK: torch.tensor([0])}
    return replace(cond, extras=marks | dict(cond.extras), others=tuple(replace(o, extras=marks | dict(o.extras)) for o in cond.others))


def _places(cond: Cond, family: Family, shape: Sequence[int], way: Process) -> list[Place]:
    out = []
    for part in cond.parts:
        region = part.region
        area, mask = _box(region, family.factor, shape), None
        if region.mask is not None:
            mask = _mask(region, shape)
            area = _bounds(mask) if region.bounds else area
        begin, end = level(way, region.start), level(way, region.end)
        out.append(Place(_told(part, family, shape), begin, end, area, _weight(region, area, mask, shape)))
    return [_inside(p, shape) for p in out]


def _box(region: Region, factor: int, shape: Sequence[int]) -> Box | None:
    if region.area is None:
        return None
    width, height, x, y = region.area
    h, w = shape[-2:]
    if region.shares:
        return max(1, round(height * h)), max(1, round(width * w)), round(y * h), round(x * w)
    return int(height) // factor, int(width) // factor, int(y) // factor, int(x) // factor


def _mask(region: Region, shape: Sequence[int]) -> Tensor:
    """(1 or B, h, w)."""
    assert region.mask is not None
    mask = plane(region.mask)
    if mask.shape[-2:] != tuple(shape[-2:]):
        mask = scaled(mask, shape[-1], shape[-2])
    return (mask if len(mask) == 1 else repeated(mask, shape[0]))[:, 0]


def _bounds(mask: Tensor) -> Box:
    rows, columns = torch.where(mask.abs().amax(dim=0) > 0)
    if not len(rows):
        return SMALLEST, SMALLEST, 0, 0
    top, left = int(rows.min()), int(columns.min())
    return max(SMALLEST, int(rows.max()) - top + 1), max(SMALLEST, int(columns.max()) - left + 1), top, left


def _weight(region: Region, area: Box | None, mask: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    high, wide = shape[-2:]
    h, w, top, left = area or (high, wide, 0, 0)
    h, w = min(h, high - top), min(w, wide - left)
    if mask is not None:
        return (mask[:, top : top + h, left : left + w] * region.mask_strength * region.strength)[:, None]
    if area is None or min(h, w) < 1:
        return None if region.strength == 1 else torch.full((1, 1, 1, 1), region.strength)
    down = fading(h, min(SOFT, h // 4), first=top != 0, last=top + h < high)
    across = fading(w, min(SOFT, w // 4), first=left != 0, last=left + w < wide)
    return (region.strength * down[:, None] * across)[None, None]


def _inside(place: Place, shape: Sequence[int]) -> Place:
    """The area as much of it as lies in the picture. The weight has that size already."""
    if place.area is None:
        return place
    (high, wide), (h, w, top, left) = shape[-2:], place.area
    if min(h, w, high - top, wide - left) < 1:
        raise ValueError(f"sampling: a condition's area of {w} x {h} at {left}, {top} has nothing of the latent of {wide} x {high} cells")
    return place


def _counterpart(place: Place, side: Side) -> list[Place]:
    if place.area is None:
        return []
    around = [p for p in side if p.area is None or _within(place.area, p.area)]
    if not around:
        return []
    smallest = next((p for p in around if p.area is None), around[0])
    if boxed := [p for p in around if p.area is not None]:
        smallest = min(boxed, key=_cells)
    return [] if smallest.area == place.area else [replace(place, cond=_with_boxes(smallest.cond, place.cond))]


def _cells(place: Place) -> int:
    return place.area[0] * place.area[1] if place.area else 0


def _within(inner: Box, outer: Box) -> bool:
    starts = inner[2] >= outer[2] and inner[3] >= outer[3]
    return starts and inner[0] + inner[2] <= outer[0] + outer[2] and inner[1] + inner[3] <= outer[1] + outer[3]


def _told(part: Cond, family: Family, shape: Sequence[int]) -> Cond:
    """The condition without its region. In an area the network is still told the whole picture's size (`time_ids`, see `families.unet`)."""
    extras = {name: fit(t, shape, masked=name == "inpaint") if t.ndim == 4 else t for name, t in part.extras.items()}
    if "pooled" in extras and "time_ids" not in extras:
        size = [n * family.factor for n in shape[-2:]]
        ids = torch.tensor([[*map(float, size), 0.0, 0.0]])
        rest = extras.get("aesthetic", torch.tensor([list(map(float, size))]))
        extras["time_ids"] = torch.cat([ids.expand(len(rest), -1), rest.to(ids)], dim=1)
    return Cond(part.tokens, extras)


def fit(shown: Tensor, shape: Sequence[int], *, masked: bool) -> Tensor:
    """(B, C, h, w), or (B, 1 + C, h, w) with a mask before it, for latents of this shape: scaled over its middle, the mask rounded."""
    if shown.shape[-2:] != tuple(shape[-2:]):
        shown = scaled(shown, shape[-1], shape[-2], crop=True)
        shown = torch.cat([shown[:, :1].round(), shown[:, 1:]], dim=1) if masked else shown
    return shown if len(shown) == 1 else repeated(shown, shape[0])


def _extras(place: Place) -> dict[str, Tensor]:
    return {name: place.cut(t) if t.ndim == 4 else t for name, t in place.cond.extras.items()}
