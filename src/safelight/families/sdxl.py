"""Stable Diffusion XL (arXiv:2307.01952): base and refiner, Turbo (arXiv:2311.17042), Lightning (arXiv:2402.13929) and LCM weights."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from safelight.families import family, layouts
from safelight.families.clip_text import ClipText, side_by_side, tokenizer
from safelight.families.layouts import Layout
from safelight.families.passing import PassesOn
from safelight.families.sources import Parts
from safelight.families.unet import UNet
from safelight.families.weight_file import WeightFile
from safelight.values import Cond

AESTHETIC = {False: 6.0, True: 2.5}
"""The score a refiner is told for a prompt and for a negative prompt; ComfyUI's figures."""


@family
class SDXL(PassesOn):
    """A loaded SDXL-like model: two CLIP towers, U-Net with size conditioning, KL autoencoder. A refiner has the second tower alone.

    Both towers leave their last layer out and their final normalisation. An empty negative prompt is encoded as any other (ComfyUI's
    way; diffusers can put zeros there). Few-step weights want nothing but few steps: guide `off`, schedule `sgm_uniform`, 1 to 8 steps.
    """

    name = "sdxl"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLInstructPix2PixPipeline",
    )
    repeats_tokens = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        super().__init__(UNet(parts, device=torch.device(device), dtype=dtype))
        second = parts.build("text_encoder_2", CLIPTextModelWithProjection, device=self.device, dtype=dtype)
        self.text_2 = ClipText(tokenizer(parts, "tokenizer_2"), second, base=1, normed=False)
        self.refines = int(self.network.net.config.cross_attention_dim) == int(second.config.hidden_size)
        self.text: ClipText | None = None
        if not self.refines:
            first = parts.build("text_encoder", CLIPTextModel, device=self.device, dtype=dtype)
            self.text = ClipText(tokenizer(parts), first, base=1, normed=False)

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """A U-Net told of sizes and pooled text, without attention at its first level (SD 2.x's unCLIP has it there)."""
        unet = layouts.unet(file)
        if unet is None or unet.config.get("addition_embed_type") != "text_time" or unet.config.get("encoder_hid_dim_type"):
            return None
        if unet.config["down_block_types"][0] != "DownBlock2D":
            return None
        open_names = ("conditioner.embedders.1.model.", "conditioner.embedders.0.model.")
        second = next((t for t in (layouts.open_clip(file, p) for p in open_names) if t), None) or layouts.clip(file, "text_encoder_2.")
        first = layouts.clip(file, "conditioner.embedders.0.transformer.") or layouts.clip(file, "text_encoder.")
        return {
            "unet": unet.told(sample_size=128),
            "vae": (layouts.vae(file, ("first_stage_model.", "vae.")) or Layout({})).told(scaling_factor=0.13025),
            "text_encoder": first or Layout({}),
            "text_encoder_2": second or Layout({}),
            "tokenizer": layouts.clip_words(),
            "tokenizer_2": layouts.clip_words("!"),
            "scheduler": layouts.scheduler(file, unet),
        }

    @property
    def towers(self) -> Mapping[str, ClipText]:
        """`text_encoder` (not in a refiner) and `text_encoder_2`."""
        return {"text_encoder_2": self.text_2} if self.text is None else {"text_encoder": self.text, "text_encoder_2": self.text_2}

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without begin and end marks."""
        return len(self.text_2.tokens(text))

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """`tokens` (B, L, D1 + D2) and `pooled` (B, P) of the second tower's first chunk, float32; a refiner's `aesthetic` (B, 1)."""
        read = [tower.read(prompts, skip=skip) for tower in self.towers.values()]
        extras = {"aesthetic": torch.full((len(prompts), 1), AESTHETIC[negative])} if self.refines else {}
        pooled = read[-1].pooled
        assert pooled is not None
        return Cond(side_by_side([r.tokens for r in read]), {"pooled": pooled, **extras})
