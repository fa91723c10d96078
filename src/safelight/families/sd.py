"""Stable Diffusion 1.x and 2.x, unCLIP, Taiyi, U-Nets that paint over or change pictures, and models built like them, as is `mini`."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import BertModel, CLIPTextModel

from safelight.families import family, layouts
from safelight.families.clip_text import ClipText, tokenizer
from safelight.families.layouts import Layout
from safelight.families.passing import PassesOn
from safelight.families.sources import Parts
from safelight.families.unet import UNet
from safelight.families.weight_file import WeightFile
from safelight.values import Cond


@family
class SD(PassesOn):
    """A loaded SD-like model: CLIP, OpenCLIP or (Taiyi) Chinese BERT text, U-Net, KL autoencoder.

    The text is the encoder's last layer; OpenCLIP's is stored without the layer that SD 2.x leaves out.
    """

    name = "sd"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionPipeline", "StableDiffusionInpaintPipeline", "StableDiffusionImg2ImgPipeline", "LatentConsistencyModelPipeline",
        "StableDiffusionInstructPix2PixPipeline", "StableUnCLIPImg2ImgPipeline",
    )
    repeats_tokens = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        super().__init__(UNet(parts, device=torch.device(device), dtype=dtype))
        bert = "BertModel" in parts.config("text_encoder").get("architectures", ())
        reader: Any = parts.build("text_encoder", BertModel if bert else CLIPTextModel, device=self.device, dtype=dtype)
        self.text = ClipText(tokenizer(parts), reader, normed=not bert)

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """SD 1.x and 2.x: a U-Net told of the text, and perhaps of pictures; its text encoder is CLIP's, or OpenCLIP's but for a layer."""
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

    @property
    def towers(self) -> Mapping[str, ClipText]:
        """`text_encoder`."""
        return {"text_encoder": self.text}
