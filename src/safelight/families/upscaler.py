"""Networks that make pictures larger, read from files as people share them: ESRGAN (arXiv:1809.00219), a chain of densely joined
convolutions; Real-ESRGAN (arXiv:2107.10833), the same with pixels folded into channels for factors below 4; and its compact form."""
from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, leaky_relu, pad, pixel_shuffle, pixel_unshuffle, prelu

from safelight.families.tiles import tiled
from safelight.families.weight_file import WeightFile

NAMES = (
    (r"^(params_ema|params|module)\.", ""), (r"^RRDB_trunk\.(\d+)\.RDB", r"body.\1.rdb"), (r"^trunk_conv", "conv_body"),
    (r"^upconv", "conv_up"), (r"^HRconv", "conv_hr"), (r"^model\.0\.", "conv_first."),
    (r"^model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.", r"body.\1.rdb\2.conv\3."), (r"^model\.1\.sub\.\d+\.(weight|bias)", r"conv_body.\1"),
)
"""What the names of older files become: Real-ESRGAN's."""


class Upscaler:
    """A network by its tensors. `scale` is its factor; `folded` how many pixels a side become one place."""

    def __init__(self, path: str | Path, *, device: torch.device, dtype: torch.dtype) -> None:
        """Read a safetensors file, whose tensors say widths, depth and factor. ValueError, naming it, when it is no network of these."""
        file = WeightFile(path)
        self.weights = held = _named({name: file.read_as(name, dtype).to(device, dtype) for name in file.shapes})
        self.device, self.dtype = device, dtype
        convs = [int(n.split(".")[1]) for n, t in held.items() if re.fullmatch(r"body\.\d+\.weight", n) and t.ndim == 4]
        self.depth = max(convs, default=0)  # of the compact form
        self.blocks, self.ups = (len({n.split(".")[at] for n in held if n.startswith(head)}) for head, at in (("body.", 1), ("conv_up", 0)))
        ends = [held.get(f"{n}.weight") for n in (("body.0", f"body.{self.depth}") if self.depth else ("conv_first", "conv_last"))]
        taken, given = (0 if t is None else t.shape[side] for t, side in zip(ends, (1, 0), strict=True))
        self.folded = 1 if self.depth else math.isqrt(taken // 3)
        self.scale = math.isqrt(given // 3) if self.depth else 2**self.ups // max(self.folded, 1)
        whole = 3 * (self.depth // 2) + 2 if self.depth else 2 * (15 * self.blocks + self.ups + 4)
        if len(held) != whole or not self.scale or (taken, given) != (3 * self.folded**2, 3 * self.scale**2 if self.depth else 3):
            raise ValueError(f"{path}: {file.summary()}; expected an upscaler of colours: ESRGAN, Real-ESRGAN or its compact form")

    def __call__(self, pixels: Tensor, *, tile: int, overlap: int) -> Tensor:
        """(B, 3, H, W) in [0, 1] as (B, 3, H * scale, W * scale), float32 on the CPU; tiles fade over what they share."""
        return tiled(pixels, self._tile, tile=(tile, tile), overlap=overlap, scale=self.scale).clamp(0, 1)

    @torch.inference_mode()
    def _tile(self, pixels: Tensor) -> Tensor:
        x = pixels.to(self.device, self.dtype)
        return (self._compact(x) if self.depth else self._dense(x)).float().cpu()

    def _conv(self, name: str, x: Tensor) -> Tensor:
        return conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=1)

    def _compact(self, x: Tensor) -> Tensor:
        h = x
        for i in range(self.depth + 1):
            h = self._conv(f"body.{i}", h) if i % 2 == 0 else prelu(h, self.weights[f"body.{i}.weight"])
        return pixel_shuffle(h, self.scale) + interpolate(x, scale_factor=self.scale, mode="nearest")

    def _dense(self, x: Tensor) -> Tensor:
        (high, wide), whole = x.shape[-2:], 4 if self.folded > 1 else 1  # ComfyUI fills up to four pixels
        x = pad(x, (0, -wide % whole, 0, -high % whole), "reflect")
        first = h = self._conv("conv_first", pixel_unshuffle(x, self.folded))
        for block in range(self.blocks):
            came = h
            for group in (f"body.{block}.rdb{n}" for n in (1, 2, 3)):
                seen = h
                for conv in (f"{group}.conv{n}" for n in (1, 2, 3, 4)):
                    seen = torch.cat([seen, leaky_relu(self._conv(conv, seen), 0.2)], dim=1)
                h = h + self._conv(f"{group}.conv5", seen) * 0.2
            h = came + h * 0.2
        h = first + self._conv("conv_body", h)
        for i in range(1, self.ups + 1):
            h = leaky_relu(self._conv(f"conv_up{i}", interpolate(h, scale_factor=2, mode="nearest")), 0.2)
        h = self._conv("conv_last", leaky_relu(self._conv("conv_hr", h), 0.2))
        return h[..., : high * self.scale, : wide * self.scale]


def _named(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By Real-ESRGAN's names; of a file with averaged weights too (`params_ema`), those."""
    found = {}
    for name, tensor in sorted(tensors.items(), key=lambda item: item[0].startswith("params_ema.")):
        for old, new in NAMES:
            name = re.sub(old, new, name)
        found[name] = tensor
    late = sorted({int(n.split(".")[1]) for n in found if re.fullmatch(r"model\.\d+\.weight", n)})  # 3, 6, ..., then two more
    ends = dict(zip(late, [*(f"conv_up{i + 1}" for i in range(len(late) - 2)), "conv_hr", "conv_last"], strict=False))
    return {re.sub(r"^model\.(\d+)", lambda m: ends.get(int(m[1]), m[0]), name): tensor for name, tensor in found.items()}
