"""A weaker network to guide away from (PAG, arXiv:2403.17377). No weights, no training."""
from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from safelight.patches import kept, patch
from safelight.patches.rows import Rows, unet_of, watched

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch


@patch
def weak(family: Family, what: Patch) -> Iterator[None]:
    """In rows marked WEAK (see `rows`) each place of a U-Net's middle attends to itself alone. Other rows are as they were."""
    layers = [block.attn1 for one in unet_of(family, "weak").mid_block.attentions for block in one.transformer_blocks if what.strength]
    with kept(layers), watched(family) as rows:
        for layer in layers:
            vars(layer)["forward"] = partial(_attended, layer, layer.forward, rows)
        yield


def _attended(layer: Any, plain: Any, rows: Rows, x: Tensor, *given: Any, **named: Any) -> Tensor:
    out: Tensor = plain(x, *given, **named)
    if rows.weak is None or not bool(rows.weak.any()):
        return out
    alone: Tensor = layer.to_out[0](layer.to_v(x))
    return alone.where(rows.weak.to(x.device).view(-1, 1, 1), out)
