"""Pictures to latents and back: a KL autoencoder in the model's own scaled units."""
from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from safelight.families.sources import Parts


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
        # The last layer in float32: bfloat16 has fewer levels than a picture of 8 bits, and smooth areas would show bands.
        self.net.decoder.conv_out.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))
        config = self.net.config
        self.scale, self.shift = float(config.scaling_factor), float(config.get("shift_factor") or 0.0)
        self.channels = int(config.latent_channels)
        self.factor = 2 ** (len(config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> (B, C, H/f, W/f) float32. ValueError when H or W is no multiple of f."""
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[1] % self.factor or pixels.shape[2] % self.factor:
            raise ValueError(f"encode_image: got {tuple(pixels.shape)}; expected (B, H, W, 3) with H and W multiples of {self.factor}")
        x = pixels.to(self.device, self.dtype).permute(0, 3, 1, 2) * 2 - 1  # (B, 3, H, W)
        mean: Tensor = self.net.encode(x).latent_dist.mean
        return (mean.float() - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h*f, w*f, 3) float32 in [0, 1]."""
        z = latent.to(self.device) / self.scale + self.shift
        pixels: Tensor = self.net.decode(z.to(self.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

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
