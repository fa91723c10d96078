"""The same weights say and draw the same in diffusers' own pipelines, in float32."""
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.kolors.pipeline_kolors import KolorsPipeline
from torch import Tensor

from safelight.families import sentencepieces
from safelight.op import load_ops
from safelight.runtime import lease
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG
from safelight.sampling.process import process
from safelight.sampling.request import Request
from safelight.sampling.schedules import plan
from safelight.values import Cond, Image, Mask
from tests import tiny
from tests.gaussian import finish
from tests.reference import (
    ASKED,
    CLOSE,
    CPU,
    FLOW,
    KOLORS,
    NEGATIVE,
    PROMPT,
    REFINER,
    SCALE,
    SD,
    STEPS,
    TAIYI,
    XL,
    Both,
    gap,
    glm_says,
    load,
    refiner,
)

# diffusers' Euler scheduler hands torch tensors to numpy the old way
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


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


MIXED = ["一个紫色短发的女孩", "a red apple", "", "a man with red hair in a blue coat, " * 40]


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
