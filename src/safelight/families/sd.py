"""Stable Diffusion 1.x and 2.x, Taiyi, their inpainting U-Nets, and models built like them, the embedded `mini` among them."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import BertModel, CLIPTextModel

from safelight.families import family, layouts
from safelight.families.clip_text import ClipText, tokenizer
from safelight.families.layouts import Layout
from safelight.families.sources import Parts
from safelight.families.unet import UNet
from safelight.families.weight_file import WeightFile
from safelight.values import Cond


@family
class SD:
    """A loaded SD-like model: CLIP, OpenCLIP or (Taiyi) Chinese BERT text, U-Net, KL autoencoder.

    The text is the encoder's last layer; OpenCLIP's is stored without the layer that SD 2.x leaves out.
    """

    name = "sd"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline",
    )
    repeats_tokens = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        self.device, self.dtype = torch.device(device), dtype
        self.network = UNet(parts, device=self.device, dtype=dtype)
        self.way, self.images = self.network.way, self.network.images
        bert = "BertModel" in parts.config("text_encoder").get("architectures", ())
        reader: Any = parts.build("text_encoder", BertModel if bert else CLIPTextModel, device=self.device, dtype=dtype)
        self.text = ClipText(tokenizer(parts), reader, normed=not bert)
        self.prediction, self.sigmas = self.way.prediction, self.way.sigmas
        self.channels, self.factor, self.size = self.images.channels, self.images.factor, self.network.size
        self.encode_image, self.decode = self.images.encode, self.images.decode
        self.scale_input, self.noised, self.target = self.way.scale_input, self.way.noised, self.way.target
        self.predict, self.inpainting = self.network.predict, self.network.inpainting

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """SD 1.x and 2.x: a U-Net that is told of the text alone; its text encoder is CLIP's or OpenCLIP's without the last layer."""
        unet = layouts.unet(file)
        if unet is None or any(unet.config.get(key) for key in ("addition_embed_type", "encoder_hid_dim_type")):
            return None
        old = not unet.config["use_linear_projection"]
        text = layouts.clip(file, "cond_stage_model.transformer.") or layouts.open_clip(file, "cond_stage_model.model.", without_last=True)
        noise = layouts.scheduler(file, unet)
        size = 96 if not old and noise.config["prediction_type"] == "v_prediction" else 64
        return {
            "unet": unet.told(sample_size=size),
            "vae": (layouts.vae(file, ("first_stage_model.", "vae.")) or Layout({})).told(scaling_factor=0.18215),
            "text_encoder": text or layouts.clip(file, "text_encoder.") or Layout({}),
            "tokenizer": layouts.clip_words() if old else layouts.clip_words("!"),
            "scheduler": noise,
        }

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without begin and end marks."""
        return len(self.text.tokens(text))

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """`tokens` (B, L, D) float32; `skip` leaves out that many last layers of the text tower (clip skip). Gradients flow."""
        return Cond(self.text.encode(prompts, skip=skip))

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """x0 for x (B, C, h, w) at sigma (B,), float32."""
        x = x.to(self.device, torch.float32)
        return self.way.x0(x, self.predict(x, sigma, cond), sigma)

    def trainable(self) -> Mapping[str, nn.Module]:
        """`unet`, `text_encoder` and `vae`."""
        return {"unet": self.network.net, "text_encoder": self.text.model, "vae": self.images.net}

    @property
    def preview_matrix(self) -> Tensor:
        """(C + 1, 3): latent channels and 1 -> RGB."""
        return self.images.preview_matrix

    def for_training(self) -> None:
        """On a CPU, plain attention."""
        if self.device.type == "cpu":
            self.network.plain_attention()
            self.text.plain_attention()
