"""Weaker networks to guide away from. No weights, no training."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safelight.families.joining import some
from safelight.families.touch import bell, folded
from safelight.patches import kept, patch
from safelight.patches.rows import ALONE, BLURRED, SKIPPED, WEAK, Rows, Span, unet_of, watched
from safelight.values import Cond

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

REACH = 4
"""Cells around one that its blur is made of."""


@patch
def weak(family: Family, what: Patch) -> Iterator[None]:
    """In rows marked so (see `rows`), `how` is: alone, each place of a U-Net's middle attends to itself only (PAG, arXiv:2403.17377);
    blurred, a U-Net says what it says of its own x0 blurred by `sigma` where its middle looks most, with the same noise on it (SAG,
    arXiv:2210.00939); skipped, a transformer leaves out `layers`, with a `side` and a span in that side's rows instead of the marked
    ones. Other rows are as they were."""
    if not what.strength:
        yield
        return
    with WAYS[what.options.get("how", "alone")](family, what):
        yield


@contextmanager
def _alone(family: Family, what: Patch) -> Iterator[None]:
    layers = [block.attn1 for one in unet_of(family, "weak").mid_block.attentions for block in one.transformer_blocks]
    with kept(layers), watched(family) as rows:
        for layer in layers:
            vars(layer)["forward"] = partial(_attended, layer, layer.forward, rows)
        yield


def _attended(layer: Any, plain: Any, rows: Rows, x: Tensor, *given: Any, **named: Any) -> Tensor:
    out: Tensor = plain(x, *given, **named)
    if rows.weak is None or not bool((rows.weak == ALONE).any()):
        return out
    alone: Tensor = layer.to_out[0](layer.to_v(x))
    marked = (rows.weak == ALONE).to(x.device)
    return alone.where(marked.repeat_interleave(len(out) // len(marked)).view(-1, 1, 1), out)  # a row may come in tiles


@contextmanager
def _blurred(family: Family, what: Patch) -> Iterator[None]:
    unet, plain, seen = unet_of(family, "weak"), family.denoise, list[Tensor]()
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn1
    halved = sum(block.downsamplers is not None for block in unet.down_blocks)
    weights = bell(REACH, max(float(what.options.get("sigma", 2.0)), 1e-6) / REACH)

    def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        mark = cond.extras.get(WEAK)
        seen.clear()
        x0 = plain(x, sigma, cond)
        if mark is None or not bool((mark == BLURRED).any()) or min(x.shape[-2:]) <= REACH:
            return x0
        rows = (mark == BLURRED).expand(len(x)).nonzero()[:, 0]
        clean, h, w = x0[rows], *(-(-n // 2**halved) for n in x.shape[-2:])
        looked = torch.nn.functional.interpolate((seen[0][rows] > 1).to(clean).view(-1, 1, h, w), x.shape[-2:])
        soft = torch.lerp(clean, folded(clean, weights), looked)
        again = plain(x.to(clean)[rows] + soft - clean, sigma[rows], some(cond, rows))
        return x0.index_copy(0, rows.to(x0.device), clean - soft + again)

    def look(_: Any, given: tuple[Tensor, ...]) -> None:
        q, k = (layer.head_to_batch_dim(to(given[0])) for to in (layer.to_q, layer.to_k))
        seen.append(layer.get_attention_scores(q, k).view(len(given[0]), -1, q.shape[1], k.shape[1]).mean(1).sum(1))

    with kept([layer]):
        layer.register_forward_pre_hook(look)
        before, vars(family)["denoise"] = vars(family).get("denoise"), denoise
        try:
            yield
        finally:
            vars(family).pop("denoise") if before is None else vars(family).update(denoise=before)


@contextmanager
def _skipped(family: Family, what: Patch) -> Iterator[None]:
    networks = family.trainable()
    if "transformer" not in networks:
        raise ValueError(f"weak: how=skipped: needs a transformer, whose layers can be left out; this {family.name} model has a U-Net")
    blocks: Any = networks["transformer"].transformer_blocks
    layers, side = [blocks[i] for i in what.options["layers"] if i < len(blocks)], what.options.get("side")
    with kept(layers), watched(family) as rows:
        acts = partial(Span.of(what.options).on, family, rows) if side else lambda: None if rows.weak is None else rows.weak == SKIPPED
        for layer in layers:
            vars(layer)["forward"] = partial(_passed, layer.forward, acts)
        yield


def _passed(plain: Any, acts: Callable[[], Tensor | None], **given: Any) -> tuple[Tensor | None, Tensor]:
    on, (text, x), (said, seen) = acts(), (given[name] for name in ("encoder_hidden_states", "hidden_states")), plain(**given)
    out = torch.zeros(1, dtype=torch.bool) if on is None else on
    out = out.to(x.device).view(-1, 1, 1)
    return None if said is None else text.where(out, said), x.where(out, seen)


WAYS: dict[str, Callable[[Family, Patch], AbstractContextManager[None]]] = {"alone": _alone, "blurred": _blurred, "skipped": _skipped}
