"""Stable Diffusion 3 and 3.5 (arXiv:2403.03206): a transformer that says the flow, two CLIP towers and T5, latents of 16 channels."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, T5EncoderModel

from safelight.families import attention, family, layouts
from safelight.families.clip_text import ClipText, side_by_side, tokenizer, tokens, weighted
from safelight.families.joining import apart, groups, join
from safelight.families.joint_layout import joint
from safelight.families.latents import Autoencoder
from safelight.families.layouts import Layout
from safelight.families.parametrisation import Parametrisation
from safelight.families.passing import PassesOn
from safelight.families.sources import Parts
from safelight.families.t5_layout import t5
from safelight.families.weight_file import WeightFile
from safelight.values import Cond

SHORTEST = 77
"""T5's tokens are filled up to as many at least; ComfyUI's figure. diffusers has 256."""


class Joint:
    """The part `transformer`, which reads text and picture in one attention, with its noise levels and its autoencoder."""

    part = "transformer"

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """ValueError when a part is missing or foreign."""
        self.device, self.dtype = device, dtype
        self.way = Parametrisation.read(parts.config("scheduler"), device)
        self.images = Autoencoder(parts, device=device, dtype=dtype)
        self.net: Any = parts.build("transformer", SD3Transformer2DModel, device=device, dtype=dtype)
        self.size = int(self.net.config.sample_size) * self.images.factor

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The flow for x (B, C, h, w) at sigma (B,), float32; gradients flow. Odd sides are filled up to whole patches, as ComfyUI does."""
        parts = groups(cond)
        if len(parts) > 1:
            return apart(self.predict, x, sigma, parts)
        h, w = x.shape[-2:]
        patch, cond = int(self.net.config.patch_size), parts[0][1]
        fed = nn.functional.pad(x.to(self.device), (0, -w % patch, 0, -h % patch), mode="circular").to(self.dtype)
        with attention.fast(self.device, self.dtype):
            out: Tensor = self.net(
                fed,
                encoder_hidden_states=cond.tokens.to(self.device, self.dtype),
                pooled_projections=cond.extras["pooled"].to(self.device, self.dtype),
                timestep=self.way.timestep(sigma),
                return_dict=False,
            )[0]
        return out[..., :h, :w].float()

    def inpainting(self, pixels: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        """Nothing: the transformer sees the latent alone."""
        return {}

    def plain_attention(self) -> None:
        """There is no other."""


@family
class SD3(PassesOn):
    """A loaded SD3-like model. T5 is optional, as in ComfyUI: without it the text is the towers' tokens alone.

    The transformer reads text and picture in one attention, so tokens are never repeated: prompts of one length go together.
    """

    name = "sd3"
    pipelines: ClassVar[tuple[str, ...]] = (
        "StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline",
    )

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign."""
        super().__init__(Joint(parts, device=torch.device(device), dtype=dtype))

        def built(part: str, cls: Any) -> Any:
            return parts.build(part, cls, device=self.device, dtype=dtype)

        bare = "CLIPTextModel" in parts.config("text_encoder").get("architectures", ())  # its projection is none
        first = built("text_encoder", CLIPTextModel if bare else CLIPTextModelWithProjection)
        self.text = ClipText(tokenizer(parts), first, base=1, normed=False)
        self.text_2 = ClipText(tokenizer(parts, "tokenizer_2"), built("text_encoder_2", CLIPTextModelWithProjection), base=1, normed=False)
        self.t5: Any = built("text_encoder_3", T5EncoderModel) if _has_t5(parts) else None
        self.words: Any = None if self.t5 is None else tokenizer(parts, "tokenizer_3")

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """A transformer with one attention for text and picture; T5 may be in the file, beside it, or missing."""
        found = joint(file)
        if found is None:
            return None
        first, second = (layouts.clip(file, f"text_encoders.{name}.transformer.") or Layout({}) for name in ("clip_l", "clip_g"))
        return {
            "transformer": found,
            "vae": (layouts.vae(file, ("first_stage_model.", "vae.")) or Layout({})).told(scaling_factor=1.5305, shift_factor=0.0609),
            "text_encoder": first.told(architectures=["CLIPTextModel"]),
            "text_encoder_2": second,
            "text_encoder_3": t5(file) or Layout({}),
            "tokenizer": layouts.clip_words(),
            "tokenizer_2": layouts.clip_words("!"),
            "tokenizer_3": Layout({"vocabulary": "t5"}),
            "scheduler": Layout({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}),
        }

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without begin and end marks, by the CLIP towers' count."""
        return len(self.text.tokens(text))

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """`tokens` (B, 77 n + L, D): both towers' side by side, filled up with zeros to T5's width, then T5's; `pooled` (B, P1 + P2).

        Each prompt is read alone: T5's tokens see what a prompt was filled up with.
        """
        return join([self._encoded([p], skip) for p in prompts], repeated=False)

    def _encoded(self, prompts: Sequence[str], skip: int) -> Cond:
        read = [tower.read(prompts, skip=skip) for tower in self.towers.values()]
        clip = side_by_side([r.tokens for r in read])
        clip = nn.functional.pad(clip, (0, int(self.network.net.config.joint_attention_dim) - clip.shape[-1]))
        pooled = torch.cat([r.pooled for r in read if r.pooled is not None], dim=-1)
        return Cond(clip if self.t5 is None else torch.cat([clip, self._t5(prompts)], dim=1), {"pooled": pooled})

    def _t5(self, prompts: Sequence[str]) -> Tensor:
        rows = [tokens(self.words, p) for p in prompts]
        length = max(SHORTEST, *(len(row) + 1 for row in rows))
        end, fill = self.words.eos_token_id, self.words.pad_token_id
        ids = [[*(t.id for t in row), end, *([fill] * (length - 1 - len(row)))] for row in (*rows, ())]
        hidden: Tensor = self.t5(input_ids=torch.tensor(ids, device=self.device)).last_hidden_state.float()
        return weighted(hidden[:-1], hidden[-1:], [[*(t.weight for t in row), *([1.0] * (length - len(row)))] for row in rows])

    @property
    def towers(self) -> Mapping[str, ClipText]:
        """`text_encoder` and `text_encoder_2`."""
        return {"text_encoder": self.text, "text_encoder_2": self.text_2}

    def trainable(self) -> Mapping[str, nn.Module]:
        """`transformer`, `text_encoder`, `text_encoder_2`, `vae`, and `text_encoder_3` where there is T5."""
        return {**super().trainable(), **({} if self.t5 is None else {"text_encoder_3": self.t5})}


def _has_t5(parts: Parts) -> bool:
    try:
        return bool(parts.config("text_encoder_3"))
    except ValueError:
        return False
