"""LoRA (arXiv:2106.09685): two narrow matrices beside a layer; with convolutions among the layers it is what others call LoCon."""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from safelight.train.batches import generator
from safelight.train.settings import LoraShape
from safelight.train.trainables.adapter import DOWN, UP, Adapter, Spot, Weights, pair, scale

ANCHOR_DOWN, ANCHOR_UP = "anchor_down", "anchor_up"


def method(spots: Sequence[Spot], shape: LoraShape, seed: int) -> Adapter:
    """Both matrices are trained."""
    return scaled(spots, shape, seed, by=scale(shape))


def scaled(spots: Sequence[Spot], shape: LoraShape, seed: int, *, by: float, frozen: bool = False) -> Adapter:
    """up @ down times `by`; with `frozen`, down stays what it is."""
    form = pair(lambda w: anchored(w, by) if ANCHOR_UP in w else (w[DOWN], w[UP], by))
    start = principal if shape.init == "pissa" else narrow
    return Adapter.of({s.name: s.change(form, start(s, shape, seed, by=by, frozen=frozen)) for s in spots}, shape)


def narrow(spot: Spot, shape: LoraShape, seed: int, *, by: float = 1.0, frozen: bool = False) -> dict[str, nn.Parameter]:
    """Down drawn, up zero. Up is (out, r), or (out, r, 1, 1) for a convolution."""
    rows, *inner = spot.shape
    start = spot.drawn((shape.rank, *inner), seed, "down")
    if shape.init == "gaussian":
        start = torch.randn(start.shape, generator=generator("adapter", seed, spot.name, "normal")) / shape.rank
    up = torch.zeros(rows, shape.rank, *[1] * (len(inner) - 1))
    return {DOWN: spot.parameter(start, trained=not frozen), UP: spot.parameter(up)}


def principal(spot: Spot, shape: LoraShape, seed: int, *, by: float, frozen: bool = False) -> dict[str, nn.Parameter]:
    """PiSSA (arXiv:2404.02948): the weight's largest singular directions are trained. What they were is taken off again by anchors, so the
    frozen weight stays as it is, and the file is an exact LoRA of twice the rank."""
    rows, *inner = spot.shape
    u, s, v = torch.linalg.svd(spot.plain, full_matrices=False)
    root = (s[: shape.rank] / by).sqrt()
    down = (root[:, None] * v[: shape.rank]).view(-1, *inner)
    up = (u[:, : shape.rank] * root).view(rows, -1, *[1] * (len(inner) - 1))
    own = {DOWN: spot.parameter(down, trained=not frozen), UP: spot.parameter(up)}
    return own | {ANCHOR_DOWN: spot.parameter(down, trained=False), ANCHOR_UP: spot.parameter(up, trained=False)}


def anchored(w: Weights, by: float, more: float = 0.0) -> tuple[Tensor, Tensor, float]:
    """by * ((1 + more) * up @ down - back * anchor_up @ anchor_down), with back = `more`, or 1 when that is 0. The gradients of up and down
    are those of by * up @ down alone."""
    share = 1 / (1 + more)
    down, up = ((t * share + (t * (1 - share)).detach()) if more else t for t in (w[DOWN], w[UP]))
    return torch.cat([down, w[ANCHOR_DOWN]]), torch.cat([up * (1 + more), w[ANCHOR_UP] * -(more or 1.0)], dim=1), by
