"""Stable Diffusion 1.x and models built like it, the embedded `mini` among them: CLIP text, U-Net, KL autoencoder, in diffusers layout."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast

from safelight.families import family
from safelight.families.clip_text import ClipText
from safelight.families.noise_levels import prediction, sigma_table
from safelight.families.sources import Parts
from safelight.values import Cond

CLASSES: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
"""The only classes the parts are made of, whatever the files ask for."""


@family
class SD:
    """A loaded SD-like model. Latents are the VAE's mean times its scaling factor; the network reads the nearest of its T noise levels."""

    name = "sd"
    pipelines = ("StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline")
    repeats_tokens = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        self.device, self.dtype = torch.device(device), dtype
        self.unet, self.vae, self.text_encoder = (parts.build(part, cls, device=self.device, dtype=dtype) for part, cls in CLASSES.items())
        for network in (self.unet, self.vae):
            network.to(memory_format=torch.channels_last)
        config = parts.config("scheduler")
        self.prediction = prediction(config)
        self.sigmas = sigma_table(config)
        self._log_sigmas = self.sigmas.log().to(self.device)
        _finish_in_float32(self.vae)
        self._latent_scale, self._latent_shift = _latent_units(self.vae)
        self.channels = int(self.unet.config.in_channels)
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.size = int(self.unet.config.sample_size) * self.factor
        self.text = ClipText(_tokenizer(parts), self.text_encoder)

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without begin and end marks."""
        return len(self.text.tokens(text))

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0) -> Cond:
        """`tokens` (B, L, D) float32; `skip` leaves out that many last layers of the text tower (clip skip). Gradients flow."""
        return Cond(self.text.encode(prompts, skip=skip))

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> (B, C, H/f, W/f) float32. ValueError when H or W is no multiple of f."""
        if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.shape[1] % self.factor or pixels.shape[2] % self.factor:
            raise ValueError(f"encode_image: got {tuple(pixels.shape)}; expected (B, H, W, 3) with H and W multiples of {self.factor}")
        x = pixels.to(self.device, self.dtype).permute(0, 3, 1, 2) * 2 - 1  # (B, 3, H, W)
        mean: Tensor = self.vae.encode(x).latent_dist.mean
        return (mean.float() - self._latent_shift) * self._latent_scale

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, h*f, w*f, 3) float32 in [0, 1]."""
        z = latent.to(self.device) / self._latent_scale + self._latent_shift
        pixels: Tensor = self.vae.decode(z.to(self.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    def timestep(self, sigma: Tensor) -> Tensor:
        """(B,) sigma -> what the U-Net is told: the nearest level's index by log sigma, as ComfyUI; 1000 sigma for flow."""
        if self.prediction == "flow":
            return sigma.to(self.device) * 1000
        return (sigma.to(self.device).log()[:, None] - self._log_sigmas).abs().argmin(dim=1)

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """x / sqrt(sigma^2 + 1), unit variance; flow models are fed x itself."""
        return x if self.prediction == "flow" else x / (_rows(sigma, x) ** 2 + 1).sqrt()

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The U-Net's own output for x (B, C, h, w) at sigma (B,), float32; gradients flow."""
        fed = self.scale_input(x.to(self.device), sigma).to(self.dtype)
        text = cond.tokens.to(self.device, self.dtype)  # (B, L, D)
        out: Tensor = self.unet(fed, self.timestep(sigma), encoder_hidden_states=text, return_dict=False)[0]
        return out.float()

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """x0 for x = x0 + sigma * noise, (B, C, h, w) float32."""
        x = x.to(self.device, torch.float32)
        out, s = self.predict(x, sigma, cond), _rows(sigma, x)
        if self.prediction == "v":
            return x / (s**2 + 1) - out * s / (s**2 + 1).sqrt()
        return x - s * out

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at sigma (B,): x0 + sigma * noise; for flow (1 - sigma) x0 + sigma * noise."""
        s = _rows(sigma, x0)
        return (1 - s) * x0 + s * noise if self.prediction == "flow" else x0 + s * noise

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """noise (eps); (noise - sigma x0) / sqrt(sigma^2 + 1) (v, arXiv:2202.00512); noise - x0 (flow, arXiv:2210.02747)."""
        if self.prediction == "eps":
            return noise
        if self.prediction == "flow":
            return noise - x0
        s = _rows(sigma, x0)
        return (noise - s * x0) / (s**2 + 1).sqrt()

    def trainable(self) -> Mapping[str, nn.Module]:
        """`unet`, `text_encoder` and `vae`."""
        return {part: getattr(self, part) for part in CLASSES}

    @cached_property
    def preview_matrix(self) -> Tensor:
        """(C + 1, 3) float32: latent channels and 1 -> RGB in [0, 1], by least squares over soft blots of colour sent through the VAE."""
        source = torch.Generator().manual_seed(0)
        cells = torch.rand(24, 3, 3, 3, generator=source)
        blots = torch.nn.functional.interpolate(cells, 8 * self.factor, mode="bicubic").clamp(0, 1)
        z = self.encode_image(blots.permute(0, 2, 3, 1)).cpu().double().movedim(1, -1).flatten(0, 2)  # (N, C)
        colours = torch.nn.functional.avg_pool2d(blots, self.factor).double().movedim(1, -1).flatten(0, 2)  # (N, 3)
        known = torch.cat([z, torch.ones_like(z[:, :1])], dim=1)
        fitted: Tensor = torch.linalg.lstsq(known, colours, driver="gelsd").solution
        return fitted.float()

    def for_training(self) -> None:
        """On a CPU, plain attention: the backward pass of the fused one costs about a third of a small U-Net's step there."""
        if self.device.type == "cpu":
            self.unet.set_attn_processor(AttnProcessor())
            self.text_encoder.set_attn_implementation("eager")


def _rows(sigma: Tensor, x: Tensor) -> Tensor:
    """(B,) -> (B, 1, 1, 1) on x's device."""
    return sigma.to(x.device, torch.float32).view(-1, *[1] * (x.ndim - 1))


def _finish_in_float32(vae: Any) -> None:
    """The decoder's last layer in float32: bfloat16 has fewer levels than a picture of 8 bits, and smooth areas would show bands."""
    vae.decoder.conv_out.float().register_forward_pre_hook(lambda _, inputs: (inputs[0].float(),))


def _latent_units(vae: Any) -> tuple[float, float]:
    return float(vae.config.scaling_factor), float(vae.config.get("shift_factor") or 0.0)


def _tokenizer(parts: Parts) -> Any:
    place = parts.folder("tokenizer")
    if (place / "tokenizer.json").is_file():
        return PreTrainedTokenizerFast.from_pretrained(place, local_files_only=True)
    if (place / "vocab.json").is_file():
        return CLIPTokenizer.from_pretrained(place, local_files_only=True)
    raise ValueError(f"model {parts.source}: no tokenizer.json or vocab.json under tokenizer/")
