"""Attention otherwise than it was learned: its parts scaled, or each place asking for fewer, which is faster. No weights."""
from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safelight.patches import kept, patch
from safelight.patches.rows import unet_of

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

UNET, TEXT = {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}, {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"}
NAMES = {"self": ("attn1", UNET), "cross": ("attn2", UNET), "text": ("self_attn", TEXT)}


@patch
def attention(family: Family, what: Patch) -> Iterator[None]:
    """Option `how`. scaled: in the layers `where` (self, cross, text) what q, k, v and out say, so many times. merged: a U-Net's first
    level asks for its places without the share `ratio` that is most like another, whose answer these take (ToMe, arXiv:2303.17604).
    tiled: its levels down to `depth` ask in tiles of `tile` pixels or more, twice that at each level if `grow`, by one of the `swap`
    smallest sides; tile i asks the i-th of as many runs of places, its sides counted as each other's (ComfyUI). Chance is alike at every
    step."""
    how, o = str(what.options.get("how", "scaled")), what.options
    if how == "scaled":
        found = list(_parts(family, what))
        with kept(layer for layer, _ in found):
            for layer, scale in found:
                layer.register_forward_hook(partial(lambda scale, _layer, _given, out: out * scale, scale))
            yield
        return
    unet, grid = unet_of(family, "attention"), dict[str, Any]()
    layers = [m for name, m in unet.named_modules() if name.endswith("attn1") and what.strength]
    with kept([unet, *layers]):
        unet.register_forward_pre_hook(lambda _, given: grid.update(size=given[0].shape[-2:], chance=torch.Generator().manual_seed(0)))
        for layer in layers:
            vars(layer)["forward"] = partial({"tiled": _tiled, "merged": _merged}[how], grid, o, layer.forward)
        yield


def _parts(family: Family, what: Patch) -> Iterator[tuple[Any, float]]:
    """Layers that are to be scaled. ValueError when there is none of the kind."""
    where = str(what.options.get("where", "self"))
    name, parts = NAMES[where]
    networks = [net for part, net in family.trainable().items() if part.startswith("text_encoder") == (where == "text")]
    layers = [m for net in networks for path, m in net.named_modules() if path.endswith(name)]
    if not layers:
        raise ValueError(f"attention: where: got {where}; this {family.name} model has no such attention")
    for part, path in parts.items():
        scale = 1 + (float(what.options.get(part, 1.0)) - 1) * what.strength
        yield from ((layer.get_submodule(path), scale) for layer in layers if scale != 1)


def _tiled(grid: Mapping[str, Any], o: Mapping[str, Any], plain: Any, x: Tensor, *given: Any, **named: Any) -> Tensor:
    (b, n, c), (h, w) = x.shape, grid["size"]
    depth = next((i for i in range(int(o["depth"]) + 1) if n * 4**i == h * w), None)
    sides, cuts = (round(math.sqrt(n * w / h)), round(math.sqrt(n * h / w))), []
    if depth is None or math.prod(sides) != n:
        return plain(x, *given, **named)  # type: ignore[no-any-return]
    for side in sides:
        least = min(max(32, int(o["tile"])) // 8 * (2**depth if o["grow"] else 1), side)
        able = [side // i for i in range(least, side + 1) if side % i == 0][: max(1, int(o["swap"]))]
        cuts.append(able[int(torch.randint(len(able) - 1, (1,), generator=grid["chance"]))] if len(able) > 1 else able[0])
    (high, wide), (p, q) = cuts, (side // cut for side, cut in zip(sides, cuts, strict=True))
    tiles = x.view(b, high, p, wide, q, c).transpose(2, 3).reshape(b * high * wide, p * q, c)
    out: Tensor = plain(tiles, **{**named, "encoder_hidden_states": x.reshape(tiles.shape)})
    return out.view(b, high, wide, p, q, c).transpose(2, 3).reshape(b, n, c)


def _merged(grid: Mapping[str, Any], o: Mapping[str, Any], plain: Any, x: Tensor, *given: Any, **named: Any) -> Tensor:
    (b, n, c), (h, w) = x.shape, grid["size"]
    if n != h * w or min(h, w) < 2 or n * float(o["ratio"]) < 1:
        return plain(x, *given, **named)  # type: ignore[no-any-return]
    places = _places(grid, x, int(n * float(o["ratio"])))
    at = places[..., None].expand(-1, -1, c)
    few = x.new_zeros(b, int(places.max()) + 1, c).scatter_reduce(1, at, x, "mean", include_self=False)
    out: Tensor = plain(few, **{**named, "encoder_hidden_states": x})
    return out.gather(1, at)


def _places(grid: Mapping[str, Any], x: Tensor, count: int) -> Tensor:
    """(B, N): for each place of x the one among the fewer that stands for it. One of every two by two, drawn by chance, is kept, and
    `count` of the others go to the kept one most like them."""
    (h, w), places = grid["size"], torch.zeros(x.shape[:2], dtype=torch.long, device=x.device)
    squares = torch.arange(h * w).view(h, w)[: h // 2 * 2, : w // 2 * 2].reshape(h // 2, 2, w // 2, 2).transpose(1, 2).reshape(-1, 4)
    stay = squares.gather(1, torch.randint(4, (len(squares), 1), generator=grid["chance"]))[:, 0].to(x.device)
    go = torch.ones(h * w, device=x.device).index_fill(0, stay, 0).nonzero()[:, 0]
    unit, count = torch.nn.functional.normalize(x, dim=-1), min(count, len(go))
    alike, nearest = (unit[:, go] @ unit[:, stay].mT).max(dim=-1)
    order = alike.argsort(dim=-1, descending=True)
    places[:, stay] = torch.arange(len(stay), device=x.device)
    left = torch.arange(len(stay), len(stay) + len(go) - count, device=x.device).expand(len(x), -1)
    return places.scatter(1, go[order], torch.cat([nearest.gather(1, order[:, :count]), left], dim=1))
