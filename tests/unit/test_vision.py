"""Pictures as conditions against transformers' tower, diffusers' unCLIP and InstructPix2Pix, and layers written out."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
from torch import nn
from torch.nn.functional import layer_norm, linear
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import safelight as sl
from safelight.families import vision
from safelight.families.sources import open_source
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG, Changed
from safelight.sampling.request import Request
from safelight.sampling.stage import _seen
from safelight.values import Cond, Image, Model, Seen
from tests import checkpoints, tiny
from tests import reference as ref
from tests.gaussian import finish
from tests.patching import a_vision

CPU = torch.device("cpu")
WIDE, P = 768, 24


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def seen(n: int = 1, width: int = 8, seed: int = 0) -> Seen:
    return Seen(noise(n, width, seed=seed), noise(n, 5, 16, seed=seed), noise(n, 5, 16, seed=seed))


@pytest.fixture(scope="module")
def net() -> Any:
    """A tower known by its shapes; norms and biases too are no ones and zeros."""
    shape = {"hidden_size": WIDE, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 12, "projection_dim": P}
    with torch.random.fork_rng():
        torch.manual_seed(2)
        made = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, image_size=32, patch_size=8, hidden_act="quick_gelu")).eval()
        for p in made.parameters():
            p.data += 0.05 * torch.randn_like(p)
    return made


def open_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """OpenCLIP's names of a tower."""
    bare = {n.removeprefix("vision_model."): t for n, t in state.items()}
    out = {"proj": bare.pop("visual_projection.weight").T}
    names = {"encoder.layers.": "transformer.resblocks.", "embeddings.class_embedding": "class_embedding",
             "embeddings.patch_embedding": "conv1", "embeddings.position_embedding.weight": "positional_embedding",
             "pre_layrnorm": "ln_pre", "post_layernorm": "ln_post"}
    for name, t in bare.items():
        if "k_proj" in name or "v_proj" in name:
            continue
        if "q_proj" in name:
            name, t = name.replace("q_proj.", "in_proj_"), torch.cat([bare[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        for old, new in {**names, **checkpoints.OPEN_LAYER, "self_attn": "attn"}.items():
            name = name.replace(old, new)
        out[name] = t
    return out


@pytest.mark.parametrize("names", ["transformers", "a whole CLIP", "visual.", "embedder.model.visual."])
def test_a_tower_is_read_by_every_name_it_has(net: Any, tmp_path: Path, names: str) -> None:
    state = dict(net.state_dict())
    if names == "a whole CLIP":
        state |= {"text_model.embeddings.token_embedding.weight": noise(4, 4), "vision_model.embeddings.position_ids": torch.arange(17)}
    elif names != "transformers":
        state = {names + n: t for n, t in open_names(state).items()} | {"first_stage_model.x": noise(2), "logit_scale": noise(1)}
    read = vision.tower(checkpoints.save(tmp_path / "v.safetensors", state), device=CPU, dtype=torch.float32)
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    got = vision.look(read, x, crop=True)
    mean, spread = (torch.tensor(t).view(3, 1, 1) for t in (vision.MEAN, vision.SPREAD))
    with torch.no_grad():
        out = net(((x * 255).round() / 255 - mean) / spread, output_hidden_states=True)
    wanted = out.image_embeds, out.last_hidden_state, out.hidden_states[-2]
    found = got.embeds, got.states, got.before
    assert all(torch.allclose(a, b, atol=2e-5) for a, b in zip(found, wanted, strict=True)) and got.embeds.shape == (2, P)


def test_a_file_that_is_no_tower_says_what_it_is(tmp_path: Path) -> None:
    for state, told in (({"a.b": noise(2, 2)}, "it has 1 tensors"),
                        ({"vision_model.embeddings.patch_embedding.weight": noise(640, 3, 2, 2)}, "known by its width, 640")):
        with pytest.raises(ValueError, match=told):
            vision.tower(checkpoints.save(tmp_path / "v.safetensors", state), device=CPU, dtype=torch.float32)
    with pytest.raises(ValueError, match="as a file or a folder"):
        vision.tower(tmp_path, device=CPU, dtype=torch.float32)


def test_the_middle_is_seen_or_all_of_it(tmp_path: Path) -> None:
    encoder = a_vision(tmp_path / "vision")
    pixels = np.random.default_rng(0).random((1, 40, 80, 3), np.float32)
    edged = pixels.copy()
    edged[:, :, :8] = 0
    middle, other = (sl.see(Image(p), encoder=encoder) for p in (pixels, edged))
    assert torch.equal(middle.embeds, other.embeds) and middle.states.shape == (1, 17, 16)
    whole, less = (sl.see(Image(p), encoder=encoder, crop="none") for p in (pixels, edged))
    assert not torch.allclose(whole.embeds, less.embeds) and not torch.allclose(whole.embeds, middle.embeds)
    both = sl.see(Image(np.concatenate([pixels, edged])), encoder=encoder, crop="none")
    assert torch.equal(both.before, torch.cat([whole.before, less.before]))


# unCLIP


def theirs(embeds: torch.Tensor, step: int, drawn: torch.Tensor) -> torch.Tensor:
    """diffusers' noise on what a tower saw."""
    pipe = object.__new__(diffusers.StableUnCLIPImg2ImgPipeline)
    pipe.image_normalizer = StableUnCLIPImageNormalizer(embeds.shape[1])
    pipe.image_noising_scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    with torch.no_grad():
        made: torch.Tensor = pipe.noise_image_embeddings(embeds, step, noise=drawn)
    return made


@pytest.mark.parametrize("share", [0.0, 0.15, 0.7, 1.0])
def test_the_label_of_a_picture_is_diffusers(share: float) -> None:
    x = noise(1, 32)
    told = torch.cat([x, torch.tensor([[1.0, share]])], dim=1)
    assert torch.allclose(vision.label(told, 41, mixed=0.05), theirs(x, round(999 * share), noise(1, 32, seed=41)), atol=2e-6)


def test_several_pictures_add_up_and_are_noised_again() -> None:
    x, weights, steps = noise(2, 32), (1.5, -0.5), (100, 699)
    told = torch.cat([x, torch.tensor([weights, (0.1, 0.7)]).T], dim=1)
    source = torch.Generator().manual_seed(7)
    drawn, again = torch.randn(1, 32, generator=source), torch.randn(1, 32, generator=source)
    whole = sum(w * theirs(x[i : i + 1], s, drawn)[:, :32] for i, (w, s) in enumerate(zip(weights, steps, strict=True)))
    assert isinstance(whole, torch.Tensor)
    assert torch.allclose(vision.label(told, 7, mixed=0.05), theirs(whole, 50, again), atol=3e-6)


def unclip(folder: Path, width: int = 8) -> Path:
    """SD 2.x's layout with a projection for pictures."""
    path = tiny.sd2(folder)
    more: dict[str, Any] = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2 * width}
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny.unet(4, 8, use_linear_projection=True, attention_head_dim=[4, 8], **more).save_pretrained(path / "unet")
    return tiny.finish(path, "StableUnCLIPImg2ImgPipeline")


def test_an_unclip_network_is_told_the_label(tmp_path: Path) -> None:
    family: Any = tiny.load(unclip(tmp_path / "m"), device=CPU, dtype=torch.float32)
    x, sigma, cond, label = noise(2, 4, 8, 8), torch.tensor([3.0, 0.5]), family.encode_text(["a", "b"]), noise(2, 16)
    fed = family.scale_input(x, sigma), family.network.way.timestep(sigma)
    for extras, told in (({}, torch.zeros(2, 16)), ({"label": label}, label)):
        with torch.no_grad():
            wanted = family.network.net(*fed, encoder_hidden_states=cond.tokens, class_labels=told).sample
        assert torch.allclose(family.predict(x, sigma, Cond(cond.tokens, extras)), wanted, atol=1e-6)
    with pytest.raises(ValueError, match="vectors of 12, and this model reads 8"):
        family.predict(x, sigma, Cond(cond.tokens, {"label": noise(2, 24)}))


def test_an_unclip_checkpoint_is_recognised(tmp_path: Path) -> None:
    """By a label's embedding beside attention at the first level; SDXL, which has none there, keeps its own reading."""
    layout = checkpoints.sd2()
    layout = replace(layout, unet={**layout.unet, "class_embed_type": "projection", "projection_class_embeddings_input_dim": 16})
    nets = checkpoints.networks(layout)
    named = {n.replace("class_embedding.linear_1", "label_emb.0.0").replace("class_embedding.linear_2", "label_emb.0.2"): t
             for n, t in checkpoints.single(layout, nets).items()}
    parts = open_source(checkpoints.save(tmp_path / "u.safetensors", named, {"modelspec.prediction_type": "v"}))
    read = parts.build("unet", diffusers.UNet2DConditionModel, device=CPU, dtype=torch.float32)
    assert parts.family == "sd" and read.config.class_embed_type == "projection"
    wanted = nets["unet"].state_dict()
    assert all(torch.equal(t, wanted[n]) for n, t in read.state_dict().items()) and len(wanted) == len(read.state_dict())


def drawn(model: Model, positive: Cond, seed: int = 5) -> torch.Tensor:
    given = {"latent": sl.empty_latent(model=model, width=32, height=32), "scale": 1.0, "steps": 2, "sampler": "euler"}
    return torch.as_tensor(sl.sample(model, positive, seed=seed, **given).samples)


def test_pictures_are_part_of_an_unclip_prompt(tmp_path: Path) -> None:
    model = tiny.model(unclip(tmp_path / "m"))
    text = sl.encode_text(model, "a red apple")
    assert sl.unclip_cond(text, seen(), strength=0.0).key == text.key
    one = sl.unclip_cond(text, seen(2), strength=0.5, noise=0.3)
    two = sl.unclip_cond(one, seen(seed=1))
    assert one.extras["pictures"].shape == (1, 2, 10) and two.extras["pictures"].shape == (1, 3, 10)
    assert torch.equal(two.extras["pictures"][0, :, 8:], torch.tensor([[0.5, 0.3], [0.5, 0.3], [1.0, 0.0]]))
    pictures = [drawn(model, c) for c in (text, one, two)]
    assert all(not torch.allclose(a, b) for a, b in pairwise(pictures))
    by_hand = replace(text, extras={"label": vision.label(one.extras["pictures"][0], 5 - 10, mixed=0.05)})
    assert torch.equal(drawn(model, by_hand), pictures[1]) and not torch.equal(drawn(model, one, seed=6), pictures[1])
    with pytest.raises(ValueError, match="got vectors of 9, cond has some of 8"):
        sl.unclip_cond(one, seen(width=9))


def test_for_sdxl_they_stand_for_the_pooled_text() -> None:
    text = Cond(noise(1, 7, 16), {"pooled": noise(1, 8)})
    told = _seen(sl.unclip_cond(text, seen(2)), 3).extras
    x = seen(2).embeds
    source = torch.Generator().manual_seed(3 - 10)
    first, again = torch.randn(1, 8, generator=source), torch.randn(1, 8, generator=source)
    whole = theirs(x[:1], 0, first)[:, :8] + theirs(x[1:], 0, first)[:, :8]
    assert set(told) == {"pooled", "pictures"} and torch.allclose(told["pooled"], theirs(whole, 0, again)[:, :8], atol=2e-6)
    with pytest.raises(ValueError, match="vectors of 9, and this model's text has 8"):
        _seen(sl.unclip_cond(text, seen(width=9)), 3)


# Style models


def an_adapter(path: Path, width: int = 16, out: int = 32, words: int = 3) -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"style_embedding": (1, words, width), "proj": (width, out)}
    shapes |= {f"{n}.{k}": (width,) for n in ("ln_pre", "ln_post") for k in ("weight", "bias")}
    for p in (f"transformer_layes.{i}." for i in range(2)):
        shapes |= {p + "attn.in_proj_weight": (3 * width, width), p + "attn.in_proj_bias": (3 * width,), p + "mlp.c_proj.bias": (width,)}
        shapes |= {p + "attn.out_proj.weight": (width, width), p + "attn.out_proj.bias": (width,), p + "mlp.c_fc.bias": (4 * width,)}
        shapes |= {p + "mlp.c_fc.weight": (4 * width, width), p + "mlp.c_proj.weight": (width, 4 * width)}
        shapes |= {f"{p}{n}.{k}": (width,) for n in ("ln_1", "ln_2") for k in ("weight", "bias")}
    held = {name: 0.4 * noise(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    checkpoints.save(path, held)
    return held


def styled(held: dict[str, torch.Tensor], states: torch.Tensor) -> torch.Tensor:
    """The layers of the paper's adapter, written out."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], held[f"{name}.weight"], held[f"{name}.bias"])

    x = norm(torch.cat([states, held["style_embedding"].expand(len(states), -1, -1)], dim=1), "ln_pre")
    for p in ("transformer_layes.0.", "transformer_layes.1."):
        attend = nn.MultiheadAttention(16, 8, batch_first=True)
        attend.load_state_dict({n.removeprefix(p + "attn."): t for n, t in held.items() if n.startswith(p + "attn.")})
        y = norm(x, p + "ln_1")
        x = x + attend(y, y, y)[0]
        h = linear(norm(x, p + "ln_2"), held[p + "mlp.c_fc.weight"], held[p + "mlp.c_fc.bias"])
        x = x + linear(h / (1 + (-1.702 * h).exp()), held[p + "mlp.c_proj.weight"], held[p + "mlp.c_proj.bias"])
    return norm(x[:, -3:], "ln_post") @ held["proj"]


def test_a_style_follows_the_prompt(tmp_path: Path) -> None:
    path, look = tmp_path / "s.safetensors", seen(2)
    with torch.no_grad():
        words = styled(an_adapter(path), look.states).reshape(1, 6, 32)
    text = Cond(noise(1, 7, 32), {"pooled": noise(1, 4)}, others=(Cond(noise(1, 5, 32, seed=1)),))
    made = sl.style_cond(text, look, path=path, strength=0.7)
    assert all(torch.allclose(m.tokens, torch.cat([t.tokens, 0.7 * words], dim=1), atol=1e-5)
               for m, t in zip(made.parts, text.parts, strict=True))
    assert made.extras["pooled"].equal(text.extras["pooled"])
    with pytest.raises(ValueError, match="its words are 32 wide, and the prompt's 24"):
        sl.style_cond(Cond(noise(1, 7, 24)), look, path=path)
    with pytest.raises(ValueError, match=r"it has 1 tensors.* expected style_embedding"):
        sl.style_cond(text, look, path=checkpoints.save(tmp_path / "x.safetensors", {"redux_up.weight": noise(2)}))
    with pytest.raises(ValueError, match="reads vectors of 16, for an encoder with vectors of 12"):
        sl.style_cond(text, replace(look, states=noise(1, 5, 12)), path=path)


# InstructPix2Pix


def changing(folder: Path) -> Path:
    """A U-Net of eight channels; the rest as SD 1.x."""
    path = tiny.sd1(folder)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        tiny.unet(4, 8, in_channels=8).save_pretrained(path / "unet")
    return tiny.finish(path, "StableDiffusionInstructPix2PixPipeline")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_a_changed_picture_is_diffusers(tmp_path: Path) -> None:
    made: Callable[..., Any] = diffusers.StableDiffusionInstructPix2PixPipeline
    both = ref.load(changing(tmp_path / "m"), lambda **parts: made(**parts, requires_safety_checker=False), **ref.SD)
    pixels = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(8))
    given = {"latents": both.start(), "image_guidance_scale": 1.5, **ref.ASKED}
    pictures = [both.theirs(ref.PROMPT, image=image.movedim(-1, 1), **given).images for image in (pixels, 1 - pixels)]
    shown = sl.Latent(both.ours.encode_image(pixels), "sd")
    cond, negative = both.conds()
    third = Changed(CFG(ref.SCALE), {"dual": 1.5}, sl.change_cond(negative, shown))
    request = Request(cond=sl.change_cond(cond, shown), negative=negative, latent=torch.zeros_like(both.noise), sigmas=both.sigmas,
                      noise=both.noise, guidance=third)
    found = np.asarray(both.ours.decode(finish(drive(both.ours, [request]))[0][0]))
    assert ref.gap(found, pictures[0]) < 2e-5 < ref.gap(pictures[0], pictures[1])


def test_a_picture_of_another_size_is_scaled_and_not_rounded(tmp_path: Path) -> None:
    model = tiny.model(changing(tmp_path / "m"))
    small, text = sl.Latent(0.1 * noise(1, 4, 4, 4), "sd"), sl.encode_text(model, "make it blue")
    large = replace(small, samples=torch.nn.functional.interpolate(small.samples, (8, 8), mode="bilinear"))
    assert torch.allclose(drawn(model, sl.change_cond(text, small)), drawn(model, sl.change_cond(text, large)), atol=1e-5)
    assert not torch.allclose(drawn(model, text), drawn(model, sl.change_cond(text, large)), atol=1e-3)
