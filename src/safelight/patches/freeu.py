"""FreeU (arXiv:2309.11497): the decoder's own features count more, the low frequencies of the skips less. No weights, no training."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from safelight.patches import kept, patch
from safelight.patches.rows import unet_of

if TYPE_CHECKING:
    from safelight.families import Family
    from safelight.values import Patch

USUAL: Mapping[int, Mapping[str, float]] = {
    1: {"b1": 1.1, "b2": 1.2, "s1": 0.9, "s2": 0.2},
    2: {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2},
}
"""The scales of either version, as ComfyUI has them."""


@patch
def freeu(family: Family, what: Patch) -> Iterator[None]:
    """Options: `version` (1: half of the channels times b; 2: by as much as their mean stands out at a place), `b1`, `s1` for the deepest
    stage, `b2`, `s2` for the next, told apart by their number of channels as in ComfyUI. A strength between 0 and 1 goes part way."""
    version = int(what.options.get("version", 2))
    scales = {name: 1 + (float(what.options.get(name, usual)) - 1) * what.strength for name, usual in USUAL[version].items()}
    unet = unet_of(family, "freeu")
    stages = sorted(set(unet.config.block_out_channels), reverse=True)[:2]
    by_width = {width: (scales[f"b{i}"], scales[f"s{i}"]) for i, width in enumerate(stages, 1)}
    joins = [(resnet, width) for resnet, width in _joins(unet) if width in by_width and what.strength]
    with kept(resnet for resnet, _ in joins):
        for resnet, width in joins:
            resnet.register_forward_pre_hook(_Join(width, *by_width[width], version))
        yield


def _joins(unet: Any) -> Iterator[tuple[Any, int]]:
    """The decoder's resnets, each with how many of its input's channels come from below; the others are the skip's."""
    below = int(unet.config.block_out_channels[-1])
    for block in unet.up_blocks:
        for resnet in block.resnets:
            yield resnet, below
            below = int(resnet.out_channels)


class _Join:
    """Changes what goes into a resnet: (B, width + skip, h, w)."""

    def __init__(self, width: int, backbone: float, skip: float, version: int) -> None:
        self.width, self.backbone, self.skip, self.version = width, backbone, skip, version

    def __call__(self, _: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
        h, skip = given[0].split([self.width, given[0].shape[1] - self.width], dim=1)
        half = self.width // 2
        scale: float | Tensor = self.backbone
        if self.version == 2:
            mean = h.mean(1, keepdim=True)
            low, high = mean.amin((2, 3), keepdim=True), mean.amax((2, 3), keepdim=True)
            scale = (self.backbone - 1) * ((mean - low) / (high - low).clamp(min=torch.finfo(h.dtype).tiny)) + 1
        return torch.cat([h[:, :half] * scale, h[:, half:], quieter(skip, self.skip)], dim=1), *given[1:]


def quieter(x: Tensor, scale: float, *, high: float = 1.0, reach: int = 1) -> Tensor:
    """(B, C, h, w) with the mean and the lowest `reach` frequencies of either axis times `scale`, the others times `high`."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(x.float(), dim=(-2, -1)), dim=(-2, -1))
    rows, columns = (slice(n // 2 - min(reach, n // 2), n // 2 + min(reach, n // 2)) for n in x.shape[-2:])
    scales = torch.full(x.shape[-2:], high, device=x.device)
    scales[rows, columns] = scale
    out: Tensor = torch.fft.ifftn(torch.fft.ifftshift(spectrum * scales, dim=(-2, -1)), dim=(-2, -1)).real
    return out.to(x.dtype)
