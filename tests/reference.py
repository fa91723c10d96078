"""diffusers' own pipelines beside our families, both loaded from one folder of tiny random weights, in float32."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
from torch import Tensor

from safelight.families import Family
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG, Off
from safelight.sampling.process import process
from safelight.sampling.request import Request, blank
from safelight.values import Cond
from tests import tiny
from tests.gaussian import finish

CPU = torch.device("cpu")
PROMPT, NEGATIVE, STEPS, SCALE = "a girl with purple hair", "blue coat", 5, 4.0
CLOSE = 2e-6
"""Of text embeddings and of a network's output."""

ASKED: dict[str, Any] = {"negative_prompt": NEGATIVE, "guidance_scale": SCALE, "num_inference_steps": STEPS, "output_type": "np"}

Pipeline = Any


@dataclass
class Both:
    """A family and diffusers' pipeline, each loaded from the same folder, and the noise both start from."""

    ours: Any
    theirs: Pipeline
    noise: Tensor
    seen: list[tuple[dict[str, Any], Tensor]]

    @property
    def sigmas(self) -> list[float]:
        self.theirs.scheduler.set_timesteps(STEPS)
        return [float(s) for s in self.theirs.scheduler.sigmas]

    def start(self) -> Tensor:
        """What the pipeline is to be given, which multiplies it by its scheduler's own factor."""
        x = process(self.ours).start(torch.zeros_like(self.noise), self.noise, self.sigmas[0])
        return x / float(getattr(self.theirs.scheduler, "init_noise_sigma", 1.0))

    def conds(self) -> tuple[Cond, Cond]:
        return self.ours.encode_text([PROMPT]), self.ours.encode_text([NEGATIVE], negative=True)

    def draw(self, scale: float = SCALE, seen: dict[str, Tensor] | None = None) -> np.ndarray:
        """Our picture (1, H, W, 3)."""
        cond, negative = (Cond(c.tokens, {**c.extras, **(seen or {})}) for c in self.conds())
        size = self.ours.size
        guided = CFG(scale) if scale > 1 else Off()
        latent = blank(self.ours, size, size)
        request = Request(cond=cond, negative=negative, latent=latent, sigmas=self.sigmas, noise=self.noise, guidance=guided)
        return np.asarray(self.ours.decode(finish(drive(self.ours, [request]))[0][0]))

    def step(self, cond: Cond) -> tuple[Tensor, Tensor]:
        """Our network's output and theirs, for what they fed it in the first step under the prompt."""
        x = process(self.ours).start(torch.zeros_like(self.noise), self.noise, self.sigmas[0])
        said = self.ours.predict(x, torch.tensor([self.sigmas[0]]), cond)
        return said, self.seen[0][1][-1:]


def load(folder: Path, cls: Callable[..., Pipeline], *, spacing: str = "leading", **classes: Any) -> Both:
    """`classes` are the parts' classes by name; those that are None are left out."""
    ours: Family = tiny.load(folder, device=CPU, dtype=torch.float32)
    made = {name: c and c.from_pretrained(folder / name) for name, c in classes.items()}
    for name in ours.trainable():
        made[name] and made[name].eval().requires_grad_(False)
    flow = ours.prediction == "flow"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.EulerDiscreteScheduler
    changes = {} if flow else {"timestep_spacing": spacing, "steps_offset": 1}
    theirs = cls(**made, scheduler=scheduler.from_pretrained(folder / "scheduler", **changes))
    theirs.set_progress_bar_config(disable=True)
    seen: list[tuple[dict[str, Any], Tensor]] = []
    made[next(iter(ours.trainable()))].register_forward_hook(lambda _m, _a, kw, out: seen.append((kw, out[0])), with_kwargs=True)
    torch.manual_seed(5)
    return Both(ours, theirs, torch.randn(1, ours.channels, ours.size // ours.factor, ours.size // ours.factor), seen)


def gap(a: Any, b: Any) -> float:
    a, b = (torch.as_tensor(t).detach() for t in (a, b))
    assert a.shape == b.shape
    return float((a - b).abs().max())


SD = {
    "unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "text_encoder": transformers.CLIPTextModel,
    "tokenizer": transformers.PreTrainedTokenizerFast, "safety_checker": None, "feature_extractor": None,
}
TAIYI = SD | {"text_encoder": transformers.BertModel, "tokenizer": transformers.BertTokenizer}
XL = {name: c for name, c in SD.items() if name != "safety_checker"} | {
    "text_encoder_2": transformers.CLIPTextModelWithProjection, "tokenizer_2": transformers.PreTrainedTokenizerFast, "image_encoder": None,
}
REFINER = {name: c for name, c in XL.items() if name != "image_encoder"} | {"text_encoder": None, "tokenizer": None}


def refiner(**parts: Any) -> Pipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)


KOLORS = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "text_encoder": ChatGLMModel, "tokenizer": None}
FLOW = {name: c for name, c in XL.items() if name not in ("unet", "image_encoder", "feature_extractor")} | {
    "transformer": diffusers.SD3Transformer2DModel, "text_encoder": transformers.CLIPTextModelWithProjection,
    "text_encoder_3": transformers.T5EncoderModel, "tokenizer_3": transformers.PreTrainedTokenizerFast,
}


def glm_says(both: Both, prompt: str) -> tuple[Tensor, Tensor]:
    """What diffusers' class says of the prompt's ids, filled up on the left as its tokenizer does: tokens and pooled text."""
    words = both.ours.text.words
    ids = [words.get_vocab_size() + 1, words.get_vocab_size() + 3, *words.encode(prompt).ids][:256]
    n = len(ids)
    told = {"input_ids": ids, "attention_mask": [1] * n, "position_ids": list(range(n))}
    fed = {name: torch.tensor([[0] * (256 - n) + numbers]) for name, numbers in told.items()}
    with torch.no_grad():
        states = both.theirs.text_encoder(**fed, output_hidden_states=True).hidden_states
    return states[-2].permute(1, 0, 2), states[-1][-1]
