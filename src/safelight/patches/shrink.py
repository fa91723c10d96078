"""Smaller features inside a U-Net at the start of the way, so that large pictures are laid out as small ones are. No weights."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from safelight.families.joining import some
from safelight.families.touch import bislerp
from safelight.patches import kept, patch
from safelight.patches.rows import Span, unet_of, watched
from safelight.values import Cond

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch


@patch
def shrink(family: Family, what: Patch) -> Iterator[None]:
    """Deep shrink. Options: behind the encoder's module `block`, as its file counts them from 0, features are scaled by 1 / `factor` in the
    way `down`, and where they meet a skip of another size, to that in the way `up` (torch's, or bislerp), while the way is in the span
    from `start` to `end`; with `after` the module's own skip stays large."""
    unet, plain, own = unet_of(family, "shrink"), family.predict, vars(family)
    span, sizes, modules = Span.of(what.options), _Sizes(what.options), _encoder(unet)
    starts = [*(first for first, _ in modules[1:]), unet.mid_block]

    def predict(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        acts, out = span.on(family, rows), torch.zeros_like(x, device=family.device, dtype=torch.float32)
        on = torch.ones(len(x), dtype=torch.bool) if acts is None else acts.cpu()
        for sizes.on in on.unique().tolist():
            part = (on == sizes.on).nonzero()[:, 0]
            with sizes if sizes.on else nullcontext():
                out[part] = plain(x[part], sigma[part], some(cond, part))
        return out

    own["predict"] = predict
    try:
        with kept([unet.conv_in, *unet.down_blocks, *unet.up_blocks, *starts, *(m for _, m in modules)]), watched(family) as rows:
            if (block := int(what.options.get("block", 3))) < len(modules) and what.strength:
                sizes.put(unet, starts[block] if what.options["after"] else modules[block][1])
            yield
    finally:
        own["predict"] = plain


def _encoder(unet: Any) -> list[tuple[Any, Any]]:
    """The first and the last network of each module of the encoder that leaves a skip."""
    found = [(unet.conv_in, unet.conv_in)]
    for stage in unet.down_blocks:
        found += zip(stage.resnets, getattr(stage, "attentions", stage.resnets), strict=True)
        found += [(d, d) for d in stage.downsamplers or ()]
    return found


class _Sizes(TorchFunctionMode):
    """What makes features smaller and fits them to the skips that they are put beside, while it is on; the sizes of those left."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        super().__init__()
        self.options, self.on, self.left = options, False, list[Any]()

    def put(self, unet: Any, at: Any) -> None:
        """On a U-Net whose features become smaller where `at` begins, or ends."""
        if self.options["after"]:
            at.register_forward_pre_hook(lambda _, given: (self.smaller(given[0]), *given[1:]))
        else:
            at.register_forward_hook(lambda _, given, out: (self.smaller(out[0]),) if isinstance(out, tuple) else self.smaller(out))
        unet.conv_in.register_forward_hook(lambda _, given, out: self.left.__setitem__(slice(None), [out.shape[-2:]]))
        for stage in unet.down_blocks:
            stage.register_forward_hook(lambda _, given, out: self.left.extend(t.shape[-2:] for t in out[1]))
        for stage in unet.up_blocks:
            stage.register_forward_pre_hook(self.enter, with_kwargs=True)

    def smaller(self, x: Tensor) -> Tensor:
        """As the options say."""
        size = [max(1, round(n * (1.0 / float(self.options["factor"])))) for n in x.shape[-2:]]
        return _fitted(x, size, self.options["down"]) if self.on else x

    def enter(self, _: Any, given: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """A stage of the decoder grows to the skips of the next one."""
        del self.left[-len(named["res_hidden_states_tuple"]) :]
        return given, {**named, "upsample_size": tuple(self.left[-1]) if self.left and self.on else named.get("upsample_size")}

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func is torch.cat and len(args[0]) == 2 and args[0][0].ndim == 4 and args[0][0].shape[-2:] != args[0][1].shape[-2:]:
            x, skip = args[0]
            args = ([_fitted(x, skip.shape[-2:], self.options["up"]), skip], *args[1:])
        return func(*args, **(kwargs or {}))


def _fitted(x: Tensor, size: Sequence[int], way: str) -> Tensor:
    return bislerp(x, size[1], size[0]) if way == "bislerp" else torch.nn.functional.interpolate(x, tuple(size), mode=way)
