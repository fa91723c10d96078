"""The same weights say and draw the same in diffusers' own pipelines, in float32."""
from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMModel
from torch import Tensor

from safelight.families import Family, sentencepieces
from safelight.op import load_ops
from safelight.runtime import lease
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG, Off
from safelight.sampling.process import process
from safelight.sampling.request import Request, blank
from safelight.sampling.schedules import plan
from safelight.values import Cond, Image, Mask
from tests import tiny
from tests.gaussian import finish

# diffusers' Euler scheduler hands torch tensors to numpy the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")

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


@pytest.mark.parametrize(("layout", "classes", "spacing"), [("sd1", SD, "leading"), ("sd2", SD, "trailing"), ("taiyi", TAIYI, "leading")])
def test_stable_diffusion(tmp_path: Path, layout: str, classes: dict[str, Any], spacing: str) -> None:
    folder = tiny.LAYOUTS[layout](tmp_path / "m")
    both = load(folder, lambda **kw: diffusers.StableDiffusionPipeline(**kw, requires_safety_checker=False), spacing=spacing, **classes)
    cond, negative = both.conds()
    wanted, unwanted = both.theirs.encode_prompt(PROMPT, CPU, 1, True, NEGATIVE)
    assert gap(cond.tokens, wanted) < CLOSE and gap(negative.tokens, unwanted) < CLOSE
    drawn = both.theirs(PROMPT, latents=both.start(), **ASKED)
    assert gap(*both.step(cond)) < CLOSE
    assert gap(both.draw(), drawn.images) < 1 / 255


def test_inpainting_with_nine_channels(tmp_path: Path) -> None:
    folder = tiny.LAYOUTS["inpaint"](tmp_path / "m")
    both = load(folder, lambda **kw: diffusers.StableDiffusionInpaintPipeline(**kw, requires_safety_checker=False), **SD)
    pixels, mask = torch.rand(1, 32, 32, 3), torch.zeros(1, 1, 32, 32)
    mask[..., 12:] = 1
    seen = both.ours.inpainting(pixels, mask)
    kept = ((pixels * 2 - 1) * (1 - mask.movedim(1, -1))).movedim(-1, 1)
    with torch.no_grad():
        latent = both.theirs.vae.encode(kept).latent_dist.mean * 0.18215
    assert gap(seen["inpaint"][:, 1:], latent) < CLOSE
    drawn = both.theirs(
        PROMPT, pixels.movedim(-1, 1), mask, latent, height=32, width=32, strength=1.0, latents=both.start(), **ASKED
    )
    assert gap(*both.step(Cond(both.conds()[0].tokens, seen))) < CLOSE
    assert gap(both.draw(seen=dict(seen)), drawn.images) < 1 / 255
    assert gap(both.draw(), drawn.images) > 1 / 255


def test_generate_shows_an_inpainting_network_the_picture(tmp_path: Path) -> None:
    model = tiny.model(tiny.LAYOUTS["inpaint"](tmp_path / "m"))
    pixels, mask = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32), np.zeros((1, 32, 32), np.float32)
    mask[:, :16] = 1
    fed: list[Tensor] = []
    with lease(model) as family:
        hook = family.trainable()["unet"].register_forward_pre_hook(lambda _, args: fed.append(args[0].float()))
        out = load_ops()["generate"](model, "a", seeds=[1, 2], image=Image(pixels), mask=Mask(mask), steps=2)
        hook.remove()
        shown = family.inpainting(torch.from_numpy(pixels), torch.from_numpy(mask[:, None]))["inpaint"]
    assert {len(x) for x in fed} == {4}
    assert all(torch.allclose(x[:, 4:], shown.expand(4, -1, -1, -1), atol=0.02) for x in fed)
    assert np.array_equal(out.pixels[:, 16:], np.repeat(pixels[:, 16:], 2, axis=0))


XL = {name: c for name, c in SD.items() if name != "safety_checker"} | {
    "text_encoder_2": transformers.CLIPTextModelWithProjection, "tokenizer_2": transformers.PreTrainedTokenizerFast, "image_encoder": None,
}
REFINER = {name: c for name, c in XL.items() if name != "image_encoder"} | {"text_encoder": None, "tokenizer": None}


def refiner(**parts: Any) -> Pipeline:
    return diffusers.StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True)


def pooled_too(both: Both, told: tuple[Tensor, ...]) -> None:
    """Both conditions equal encode_prompt's four tensors."""
    for cond, tokens, pooled in zip(both.conds(), told[:2], told[2:], strict=True):
        assert gap(cond.tokens, tokens) < CLOSE and gap(cond.extras["pooled"], pooled) < CLOSE


def test_sdxl(tmp_path: Path) -> None:
    both = load(tiny.sdxl(tmp_path / "m"), diffusers.StableDiffusionXLPipeline, **XL)
    pooled_too(both, both.theirs.encode_prompt(PROMPT, None, CPU, 1, True, NEGATIVE))
    drawn = both.theirs(PROMPT, latents=both.start(), height=32, width=32, **ASKED)
    assert both.seen[0][0]["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 32, 32]] * 2
    assert gap(*both.step(both.conds()[0])) < CLOSE
    assert gap(both.draw(), drawn.images) < 1 / 255


def test_a_few_step_model_without_guidance(tmp_path: Path) -> None:
    """Turbo, Lightning, LCM: one to eight steps at trailing times, which are those of the schedule `sgm_uniform`."""
    both = load(tiny.sdxl(tmp_path / "m"), diffusers.StableDiffusionXLPipeline, spacing="trailing", **XL)
    drawn = both.theirs(PROMPT, latents=both.start(), height=32, width=32, **ASKED | {"guidance_scale": 0.0})
    assert gap(both.draw(scale=1), drawn.images) < 1 / 255
    assert np.allclose(plan(process(both.ours), STEPS, schedule="sgm_uniform"), both.sigmas, rtol=0.02)


def test_sdxl_refiner(tmp_path: Path) -> None:
    both = load(tiny.refiner(tmp_path / "m"), refiner, **REFINER)
    pooled_too(both, both.theirs.encode_prompt(PROMPT, None, CPU, 1, True, NEGATIVE))
    pixels = torch.rand(1, 32, 32, 3)
    start = both.ours.encode_image(pixels)
    # The pipeline draws from the encoder's distribution: it is given the latent, and noises it by its own scheduler.
    generator = torch.Generator().manual_seed(3)
    both.noise = torch.randn(start.shape, generator=torch.Generator().manual_seed(3))
    drawn = both.theirs(PROMPT, image=start, strength=0.6, generator=generator, original_size=(32, 32), target_size=(32, 32), **ASKED)
    assert both.seen[0][0]["added_cond_kwargs"]["time_ids"].tolist() == [[32, 32, 0, 0, 2.5], [32, 32, 0, 0, 6.0]]
    sigmas = both.sigmas[-4:]
    cond, negative = both.conds()
    request = Request(cond=cond, negative=negative, latent=start, sigmas=sigmas, noise=both.noise, guidance=CFG(SCALE))
    assert gap(both.ours.decode(finish(drive(both.ours, [request]))[0][0]), drawn.images) < 1 / 255


def test_a_network_with_guidance_built_in(tmp_path: Path) -> None:
    folder = tiny.sdxl(tmp_path / "m")
    tiny.sized(time_cond_proj_dim=16).save_pretrained(folder / "unet")
    both = load(folder, diffusers.StableDiffusionXLPipeline, spacing="trailing", **XL)
    drawn = both.theirs(PROMPT, latents=both.start(), height=32, width=32, **ASKED)
    told = {"guidance": torch.tensor([[SCALE]])}
    assert len(both.seen[0][1]) == 1
    assert gap(both.draw(scale=1, seen=told), drawn.images) < 1 / 255
    assert gap(both.draw(scale=1), drawn.images) > 0


KOLORS = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL, "text_encoder": ChatGLMModel, "tokenizer": None}
MIXED = ["一个紫色短发的女孩", "a red apple", "", "a man with red hair in a blue coat, " * 40]


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


def test_kolors(tmp_path: Path) -> None:
    both = load(tiny.kolors(tmp_path / "m"), KolorsPipeline, **KOLORS)
    assert len(both.ours.sigmas) == 1100
    together = both.ours.encode_text(MIXED)
    for i, prompt in enumerate(MIXED):
        tokens, pooled = glm_says(both, prompt)
        assert gap(together.tokens[i : i + 1], tokens) < 1e-5 and gap(together.extras["pooled"][i : i + 1], pooled) < 1e-5
    (tokens, pooled), (other, other_pooled) = glm_says(both, PROMPT), glm_says(both, NEGATIVE)
    given = {"prompt_embeds": tokens, "pooled_prompt_embeds": pooled}
    given |= {"negative_prompt_embeds": other, "negative_pooled_prompt_embeds": other_pooled}
    drawn = both.theirs(latents=both.start(), height=32, width=32, **given, **{k: v for k, v in ASKED.items() if k != "negative_prompt"})
    assert gap(*both.step(both.conds()[0])) < CLOSE
    assert gap(both.draw(), drawn.images) < 1 / 255


def test_words_are_chatglms_own(tmp_path: Path) -> None:
    """Against sentencepiece itself, where it is installed."""
    pieces = pytest.importorskip("sentencepiece")
    tiny.sentencepiece_model(tmp_path / "tokenizer.model")
    theirs = pieces.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    ours = sentencepieces.read(tmp_path / "tokenizer.model")
    for text in (*tiny.SAYINGS, *MIXED, " two  spaces ", "tab\tline\n", "émoji 🎨 ﬁ", "<s> <unk> </s>", "▁", "girlgirl 红"):
        assert ours.encode(text).ids == theirs.encode(text)


FLOW = {name: c for name, c in XL.items() if name not in ("unet", "image_encoder", "feature_extractor")} | {
    "transformer": diffusers.SD3Transformer2DModel, "text_encoder": transformers.CLIPTextModelWithProjection,
    "text_encoder_3": transformers.T5EncoderModel, "tokenizer_3": transformers.PreTrainedTokenizerFast,
}


def test_sd3(tmp_path: Path) -> None:
    both = load(tiny.sd3(tmp_path / "m"), diffusers.StableDiffusion3Pipeline, **FLOW)
    told = both.theirs.encode_prompt(PROMPT, None, None, CPU, 1, True, NEGATIVE, max_sequence_length=77)
    pooled_too(both, told)
    drawn = both.theirs(PROMPT, latents=both.start(), height=32, width=32, max_sequence_length=77, **ASKED)
    assert gap(*both.step(both.conds()[0])) < CLOSE
    assert gap(both.draw(), drawn.images) < 1 / 255


def test_sd3_without_t5_and_of_odd_sizes(tmp_path: Path) -> None:
    folder = tiny.sd3(tmp_path / "m")
    whole = tiny.load(folder, device=CPU, dtype=torch.float32)
    shutil.rmtree(folder / "text_encoder_3")
    shutil.rmtree(folder / "tokenizer_3")
    bare = tiny.load(folder, device=CPU, dtype=torch.float32)
    assert "text_encoder_3" not in bare.trainable()
    long, short = (whole.encode_text([PROMPT]).tokens, bare.encode_text([PROMPT]).tokens)
    assert torch.equal(long[:, : short.shape[1]], short) and long.shape[1] == short.shape[1] + 77
    x = torch.randn(2, 16, 7, 9)
    said = bare.predict(x, bare.sigmas[[100, 900]], bare.encode_text([PROMPT, ""]))
    assert said.shape == x.shape


def test_clip_skip_counts_as_diffusers_does(tmp_path: Path) -> None:
    both = load(tiny.sdxl(tmp_path / "xl"), diffusers.StableDiffusionXLPipeline, **XL)
    told = both.theirs.encode_prompt(PROMPT, None, CPU, 1, False, clip_skip=1)
    assert gap(both.ours.encode_text([PROMPT], skip=1).tokens, told[0]) < CLOSE
    assert gap(both.ours.encode_text([PROMPT], skip=-1).tokens, both.ours.encode_text([PROMPT]).tokens) > 0.01


def test_the_pooled_text_is_that_of_the_first_chunk_without_weights(tmp_path: Path) -> None:
    ours: Any = tiny.load(tiny.sdxl(tmp_path / "m"), device=CPU, dtype=torch.float32)
    long = "a girl with (purple:1.4) hair, " * 12
    first, *rest = ours.text_2.chunks(long)
    assert rest
    with torch.no_grad():
        said = ours.text_2.model(input_ids=torch.tensor([first.ids, rest[0].ids])).text_embeds
    both = ours.encode_text(["night city", long])
    assert gap(both.extras["pooled"][1:], said[:1]) < CLOSE
    assert gap(said[:1], said[1:]) > 0.01
    assert gap(both.extras["pooled"][:1], ours.encode_text(["night city"]).extras["pooled"]) < CLOSE
