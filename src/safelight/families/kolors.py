"""Kolors: ChatGLM3 text, SDXL's U-Net and autoencoder, 1100 noise levels."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from safelight.families import family, layouts
from safelight.families.chatglm import ChatGLMText
from safelight.families.layouts import Layout
from safelight.families.passing import PassesOn
from safelight.families.sources import Parts
from safelight.families.unet import UNet
from safelight.families.weight_file import WeightFile
from safelight.values import Cond


@family
class Kolors(PassesOn):
    """A loaded Kolors model. Its U-Net projects the text to its own width, and is told the pooled text and the picture's size."""

    name = "kolors"
    pipelines: ClassVar[tuple[str, ...]] = (
        "KolorsPipeline", "KolorsImg2ImgPipeline", "KolorsInpaintPipeline", "ChatGLMModel",
    )

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        super().__init__(UNet(parts, device=torch.device(device), dtype=dtype))
        self.text = ChatGLMText(parts, device=self.device, dtype=dtype)

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """A U-Net of SDXL's kind that projects its text; the autoencoder is SDXL's, the text encoder a folder with its words."""
        unet = layouts.unet(file)
        if unet is None or unet.config.get("encoder_hid_dim_type") != "text_proj":
            return None
        return {
            "unet": unet.told(sample_size=128),
            "vae": (layouts.vae(file, ("first_stage_model.", "vae.")) or Layout({})).told(scaling_factor=0.13025),
            "scheduler": layouts.scheduler(file, unet).told(beta_end=0.014, num_train_timesteps=1100),
        }

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without the two marks before it; 254 are read."""
        return len(self.text.tokens(text))

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """`tokens` (B, 256, D) and `pooled` (B, D), float32. Brackets are letters: there are no weights."""
        read = self.text.read(prompts, skip=skip)
        assert read.pooled is not None
        return Cond(read.tokens, {"pooled": read.pooled})

    def trainable(self) -> Mapping[str, nn.Module]:
        """`unet`, `text_encoder` and `vae`."""
        return {"unet": self.network.net, "text_encoder": self.text.model, "vae": self.images.net}
