"""What a family passes on as it is: the work of its denoiser, of the noise levels that was trained with, and of its autoencoder."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from safelight.families.clip_text import ClipText
from safelight.families.latents import Autoencoder
from safelight.families.parametrisation import Parametrisation
from safelight.values import Cond


class Denoiser(Protocol):
    """The network of a family, on its device: the part `part`; `size` is the side in pixels of the pictures it was trained on."""

    part: str
    device: torch.device
    dtype: torch.dtype
    net: Any
    way: Parametrisation
    images: Autoencoder
    size: int

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """As `Family.predict`."""
        ...

    def inpainting(self, pixels: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        """As `Family.inpainting`."""
        ...

    def plain_attention(self) -> None:
        """Attention whose backward pass is fast on a CPU, where there is a choice."""
        ...


class PassesOn:
    """All of a family but what it does with texts, and how it is recognised."""

    def __init__(self, network: Denoiser) -> None:
        self.network, self.way, self.images = network, network.way, network.images
        self.device, self.dtype, self.size = network.device, network.dtype, network.size
        self.prediction, self.sigmas, self.log_sigmas = self.way.prediction, self.way.sigmas, self.way.log_sigmas
        self.scale_input, self.noised, self.target, self.clock = self.way.scale_input, self.way.noised, self.way.target, self.way.clock
        self.channels, self.factor = self.images.channels, self.images.factor
        self.encode_image, self.decode = self.images.encode, self.images.decode
        self.predict, self.inpainting = network.predict, network.inpainting

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """x0 for x (B, C, h, w) at sigma (B,), float32."""
        x = x.to(self.device, torch.float32)
        return self.way.x0(x, self.predict(x, sigma, cond), sigma)

    @property
    def cell(self) -> int:
        """`factor`, or a transformer's patch of latents."""
        pixels: int = self.factor * int(self.network.net.config.get("patch_size") or 1)
        return pixels

    @property
    def tile(self) -> int:
        """The autoencoder's."""
        side: int = self.images.tile
        return side

    @property
    def preview_matrix(self) -> Tensor:
        """(C + 1, 3): latent channels and 1 -> RGB."""
        return self.images.preview_matrix

    @property
    def towers(self) -> Mapping[str, ClipText]:
        """The text towers by their part's names, in the order of their tokens."""
        return {}

    def trainable(self) -> Mapping[str, nn.Module]:
        """The denoiser, the text towers and `vae`."""
        towers: dict[str, Any] = {part: tower.model for part, tower in self.towers.items()}
        return {self.network.part: self.network.net, **towers, "vae": self.images.net}

    def for_training(self) -> None:
        """On a CPU, plain attention."""
        if self.device.type == "cpu":
            self.network.plain_attention()
            for tower in self.towers.values():
                tower.plain_attention()
