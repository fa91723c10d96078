"""A U-Net and all it is told besides the latent: the noise level, the text, the picture's size, the picture that is painted over."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from safelight.families import attention
from safelight.families.latents import Autoencoder
from safelight.families.parametrisation import Parametrisation
from safelight.families.sources import Parts
from safelight.values import Cond

EMBEDDED_GUIDANCE = 8.0
"""The guidance a network with guidance built in (arXiv:2310.04378) is told when the condition has none."""


def fresh(settings: Mapping[str, Any], seed: int) -> Any:
    """A U-Net with random weights, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return UNet2DConditionModel(**settings)


class UNet:
    """The part `unet`. What it reads of a condition's `extras`, each (B, ...):

    `pooled` (D,) and `time_ids` (6,): original height and width, crop's top and left, target height and width (SDXL, arXiv:2307.01952);
    without time_ids the latent's own size, not cropped. `aesthetic` (1,): a refiner's score, in place of the target size.
    `inpaint` (1 + C, h, w): mask and masked picture of a U-Net of 2C + 1 channels; without it everything is painted over.
    `original` (C, h, w): the latent of the picture that a U-Net of 2C channels is to change (arXiv:2211.09800); without it, zeros.
    `guidance` (1,): the scale a network with guidance built in is told. `class` (1,): the number of a class. `label` (A,): what pictures
    say to one with a projection for it (unCLIP, arXiv:2204.06125, see `vision.label`); without it, zeros.
    """

    part = "unet"

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Read it, and the noise levels (`way`) and the autoencoder (`images`) it was trained with.

        ValueError when a part is missing or foreign, or its channels are neither the latent's nor those of an inpainting U-Net.
        """
        self.device, self.dtype = device, dtype
        self.way = Parametrisation.read(parts.config("scheduler"), device)
        self.images = images = Autoencoder(parts, device=device, dtype=dtype)
        self.net: Any = parts.build("unet", UNet2DConditionModel, device=device, dtype=dtype)
        self.net.to(memory_format=torch.channels_last)
        took, plain = int(self.net.config.in_channels), images.channels
        if took not in (plain, 2 * plain, 2 * plain + 1):
            others = f"{2 * plain} for changing pictures, or {2 * plain + 1} for inpainting"
            raise ValueError(f"model {parts.source}: the U-Net takes {took} channels; expected {plain}, {others}")
        self.changes, self.inpaints = took == 2 * plain, took == 2 * plain + 1
        self._blank: dict[tuple[int, int], Tensor] = {}
        self.size = int(self.net.config.sample_size) * images.factor

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Its own output for x (B, C, h, w) at sigma (B,), float32; gradients flow."""
        fed = self.way.scale_input(x.to(self.device), sigma)
        if self.inpaints or self.changes:
            fed = torch.cat([fed, self._painted(x, cond) if self.inpaints else self._original(x, cond)], dim=1)
        text = cond.tokens.to(self.device, self.dtype)  # (B, L, D)
        with attention.fast(self.device, self.dtype):
            out: Tensor = self.net(
                fed.to(self.dtype),
                self.way.timestep(sigma),
                encoder_hidden_states=text,
                class_labels=self._label(x, cond),
                timestep_cond=self._guidance(cond),
                added_cond_kwargs=self._size(x, cond),
                return_dict=False,
            )[0]
        return out.float()

    def inpainting(self, pixels: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        """`inpaint` for pixels (B, H, W, 3) to be painted over where mask (B, 1, H, W) is 1; nothing for a U-Net that does not inpaint.

        As ComfyUI: the mask is rounded, and what it covers is grey for the VAE.
        """
        if not self.inpaints:
            return {}
        kept = 1 - mask.round().movedim(1, -1)  # (B, H, W, 1)
        latent = self.images.encode((pixels - 0.5) * kept + 0.5)
        shown = torch.nn.functional.interpolate(mask, latent.shape[-2:], mode="bilinear").round().to(latent)
        return {"inpaint": torch.cat([shown, latent], dim=1)}

    def plain_attention(self) -> None:
        """Attention whose backward pass is fast on a CPU: that of the fused one costs about a third of a small U-Net's step there."""
        self.net.set_attn_processor(attention.Processor())

    def _painted(self, x: Tensor, cond: Cond) -> Tensor:
        given, (h, w) = cond.extras.get("inpaint"), x.shape[-2:]
        if given is None:
            given = self._blank[h, w] if (h, w) in self._blank else self._painted_over(h, w)
        return given.to(self.device).expand(len(x), -1, -1, -1)

    def _painted_over(self, h: int, w: int) -> Tensor:
        """Nothing of a picture is left; kept, since every step asks for it."""
        high, wide = h * self.images.factor, w * self.images.factor
        self._blank = {(h, w): self.inpainting(torch.full((1, high, wide, 3), 0.5), torch.ones(1, 1, high, wide))["inpaint"]}
        return self._blank[h, w]

    def _original(self, x: Tensor, cond: Cond) -> Tensor:
        """In the autoencoder's own units, in which such networks were trained, or (CosXL) in the latents'."""
        given = cond.extras.get("original")
        if given is None:
            return torch.zeros_like(x, device=self.device)
        scaled = self.way.prediction == "v" and self.way.clock == "log"
        shown = given.to(self.device) if scaled else given.to(self.device) / self.images.scale + self.images.shift
        return shown.expand(len(x), -1, -1, -1)

    def _label(self, x: Tensor, cond: Cond) -> Tensor | None:
        if self.net.config.class_embed_type != "projection":
            number = cond.extras.get("class")
            return None if number is None else number[:, 0].to(self.device).long()
        width = int(self.net.config.projection_class_embeddings_input_dim)
        said = cond.extras.get("label", torch.zeros(len(x), width))
        if said.shape[1] != width:
            raise ValueError(f"unclip: the encoder gives vectors of {said.shape[1] // 2}, and this model reads {width // 2}; use its own")
        return said.to(self.device, self.dtype)

    def _size(self, x: Tensor, cond: Cond) -> dict[str, Tensor] | None:
        if self.net.config.addition_embed_type != "text_time":
            return None
        pooled = cond.extras["pooled"].to(self.device, self.dtype)
        ids = cond.extras.get("time_ids")
        if ids is None:
            h, w = (n * self.images.factor for n in x.shape[-2:])
            score = cond.extras.get("aesthetic")
            ids = torch.tensor([h, w, 0, 0, *([h, w] if score is None else [])], dtype=torch.float32).expand(len(x), -1)
            ids = ids if score is None else torch.cat([ids, score.cpu().expand(len(x), -1)], dim=1)
        return {"text_embeds": pooled, "time_ids": ids.to(self.device).expand(len(x), -1)}

    def _guidance(self, cond: Cond) -> Tensor | None:
        width = self.net.config.time_cond_proj_dim
        if width is None:
            return None
        scale = cond.extras.get("guidance", torch.full((len(cond.tokens), 1), EMBEDDED_GUIDANCE)).to(self.device).flatten()
        # Sines first, of a thousand times the scale's distance from 1: as it was distilled.
        told: Tensor = get_timestep_embedding((scale - 1) * 1000, width, downscale_freq_shift=1.0)
        return told.to(self.dtype)
