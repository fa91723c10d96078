"""Pictures to latents and back: a KL autoencoder in the model's own scaled units."""
from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from safelight.families import attention, memory
from safelight.families.sources import Parts
from safelight.families.tiles import three_ways, whole_cells

TILES = (512, 256, 128)
"""Sides in pixels of the tiles that are tried where a whole picture takes too much memory."""

HELD = 6
"""How many outputs of the widest layer at full resolution are in memory at once; on a CPU SD's autoencoder was measured to hold 5."""


class Autoencoder:
    """An `AutoencoderKL` (arXiv:1312.6114, arXiv:2112.10752): latents are (mean - shift) * scale.

    `channels` is how many a latent has, `factor` how many pixels a side one of its cells covers.
    """

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Read the part `vae`. In float16 a VAE that says it overflows there (`force_upcast`; SDXL's own, not its fp16-fix) is float32."""
        if dtype == torch.float16 and parts.config("vae").get("force_upcast", True):
            dtype = torch.float32
        self.device, self.dtype = device, dtype
        self.net: Any = parts.build("vae", AutoencoderKL, device=device, dtype=dtype)
        self.net.to(memory_format=torch.channels_last)
        if self.net.decoder.conv_out.weight.dtype != torch.float32:
            # The last layer in float32: bfloat16 has fewer levels than a picture of 8 bits, and smooth areas would show bands.
            self.net.decoder.conv_out.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        config = self.net.config
        self.scale, self.shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)
        self.tile = 0
        """The side in pixels of the tiles in which the latest pictures were encoded or decoded; 0: whole."""

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, tile: int = 0, overlap: int = 0, free: int | None = None) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> (B, C, H/f, W/f) float32. ValueError when H or W is no multiple of f.

        With `tile`, in tiles of that many pixels a side that share `overlap`; without, as many pictures at once as `free` bytes allow (what
        the device has left, unless given), and a large one in tiles.
        """
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[1] % self.factor or pixels.shape[2] % self.factor:
            raise ValueError(f"encode_image: got {tuple(pixels.shape)}; expected (B, H, W, 3) with H and W multiples of {self.factor}")

        def mean(x: Tensor) -> Tensor:
            with attention.fast(self.device, self.dtype):
                found: Tensor = self.net.encode(x.to(self.device, self.dtype) * 2 - 1).latent_dist.mean
            return found.float()

        made = self._made(mean, pixels.permute(0, 3, 1, 2), 1 / self.factor, tile=tile, overlap=overlap, free=free)
        return (made - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latent: Tensor, *, tile: int = 0, overlap: int = 0, free: int | None = None) -> Tensor:
        """(B, C, h, w) -> (B, h*f, w*f, 3) float32 in [0, 1]; `tile`, `overlap` and `free` as in `encode`.

        Tiles are blended before anything is cut off at 0 and 1.
        """

        def picture(z: Tensor) -> Tensor:
            with attention.fast(self.device, self.dtype):
                found: Tensor = self.net.decode(z.to(self.dtype)).sample
            return found.float()

        z = latent.to(self.device) / self.scale + self.shift
        made = self._made(picture, z, self.factor, tile=tile, overlap=overlap, free=free)
        return (made / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    def _made(
        self, work: Callable[[Tensor], Tensor], x: Tensor, grows: float, *, tile: int, overlap: int, free: int | None
    ) -> Tensor:
        """`work`'s answers, `grows` times as large, to x (B, C, ., .); in tiles where they are asked for or memory is short."""
        cell = self.factor if grows > 1 else 1

        def made(rows: int, tile: int, overlap: int) -> Tensor:
            self.tile = tile
            if not tile:
                return torch.cat([work(part) for part in x.split(rows)])
            side, shared = (n // cell for n in whole_cells(tile, overlap, self.factor))
            return three_ways(x, lambda t: work(t).cpu(), tile=side, overlap=shared, scale=grows)

        if tile:
            return made(1, tile, overlap)
        widths = self.net.config.block_out_channels[: 2 if grows > 1 else 1]  # a decoder's last level gets what the one before it makes
        pixel = HELD * max(widths) * self.dtype.itemsize
        area = x.shape[-2] * x.shape[-1] * cell**2
        ways = [memory.Way(f"{n} at once", n * area * pixel, (n, 0, 0)) for n in dict.fromkeys((len(x), 1))]
        ways += [memory.Way(f"in tiles of {t} pixels", t * t * pixel, (1, t, t // 4)) for t in TILES if t * t < area]
        room = memory.free(self.device) if free is None else free
        return memory.sparing(made, ways, free=room, what="the autoencoder")

    @cached_property
    def preview_matrix(self) -> Tensor:
        """(C + 1, 3) float32: latent channels and 1 -> RGB in [0, 1], by least squares over soft blots of colour sent through the VAE."""
        source = torch.Generator().manual_seed(0)
        cells = torch.rand(24, 3, 3, 3, generator=source)
        blots = torch.nn.functional.interpolate(cells, 8 * self.factor, mode="bicubic").clamp(0, 1)
        z = self.encode(blots.permute(0, 2, 3, 1)).cpu().double().movedim(1, -1).flatten(0, 2)  # (N, C)
        colours = torch.nn.functional.avg_pool2d(blots, self.factor).double().movedim(1, -1).flatten(0, 2)  # (N, 3)
        known = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        fitted: Tensor = torch.linalg.lstsq(known, colours, driver="gelsd").solution
        return fitted.float()
