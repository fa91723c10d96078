"""ControlNet, FreeU, IP-Adapter and textual inversion against diffusers, transformers and closed forms; the ops that put them on."""
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, EulerDiscreteScheduler, StableDiffusionControlNetPipeline
from diffusers.utils.torch_utils import fourier_filter
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

import safelight as sl
from safelight.codec import decode, encode
from safelight.families import Family
from safelight.families.clip_text import ClipText
from safelight.families.layouts import vision_config
from safelight.patches import control as controls
from safelight.patches import embedding as embeddings
from safelight.patches import find, rows
from safelight.patches import freeu as freeus
from safelight.patches import ip_adapter as adapters
from safelight.patches.control import control
from safelight.patches.embedding import embedding
from safelight.patches.freeu import freeu
from safelight.patches.ip_adapter import ip_adapter
from safelight.sampling import regions
from safelight.sampling.driver import drive
from safelight.sampling.guidance import CFG
from safelight.sampling.process import process
from safelight.sampling.request import Request
from safelight.sampling.schedules import plan
from safelight.values import NO_FILE, Blob, Cond, Patch
from tests import tiny
from tests.patching import (
    MAKERS,
    a_control,
    a_net,
    a_vision,
    an_adapter,
    an_embedding,
    asked,
    by_hand,
    in_original_layout,
    told,
    with_hint,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Family]:
    return tiny.loader(tmp_path_factory.mktemp("m"))


@pytest.fixture(scope="module")
def family(load: Callable[[str], Family]) -> Family:
    return load("mini")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.mini(tmp_path_factory.mktemp("m") / "mini")


def pictures(n: int, side: int = 64, seed: int = 3) -> Tensor:
    return torch.rand(n, side, side, 3, generator=torch.Generator().manual_seed(seed))


# ControlNet


@pytest.mark.parametrize("layout", ["mini", "sd1", "inpaint", "sdxl", "kolors"])
def test_a_control_does_what_diffusers_does(load: Callable[[str], Family], tmp_path: Path, layout: str) -> None:
    family = load(layout)
    p = a_control(load("sd1") if layout == "inpaint" else family, tmp_path / "c.safetensors")  # people use SD 1.x's nets on both
    net, hint = controls.load(family, p.weights.path, {}), controls.read_hint(p)
    plain = family.predict(*asked(family))
    with control(family, replace(p, strength=0.7)):
        steered = family.predict(*asked(family))
    assert torch.allclose(steered, by_hand(family, [(net, hint, 0.7)]), atol=1e-6)
    assert (steered - plain).abs().max() > 0.01


def test_several_controls_add_up(family: Family, tmp_path: Path) -> None:
    one, two = (a_control(family, tmp_path / f"{i}.safetensors", seed=i) for i in range(2))
    two = with_hint(two, pictures(1, seed=8), tmp_path, start=0.0)
    nets = [(controls.load(family, p.weights.path, {}), controls.read_hint(p), s) for p, s in ((one, 0.5), (two, 1.5))]
    wanted = by_hand(family, nets)
    with control(family, replace(one, strength=0.5)), control(family, replace(two, strength=1.5)):
        assert torch.allclose(family.predict(*asked(family)), wanted, atol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' scheduler
def test_a_picture_is_the_one_diffusers_draws(load: Callable[[str], Family], tmp_path: Path) -> None:
    """The whole pipeline with classifier-free guidance and a part of the way, four Euler steps, latents compared."""
    sd1 = load("sd1")
    p = with_hint(a_control(sd1, tmp_path / "c.safetensors"), pictures(1, 32), tmp_path, start=0.0, end=0.6)
    nets: Any = sd1.trainable()
    text, none, start = (torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(i)) for i in (1, 2, 3))
    start = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="linspace")
    pipe = StableDiffusionControlNetPipeline(
        vae=copy.deepcopy(nets["vae"]), text_encoder=None, tokenizer=None, unet=copy.deepcopy(nets["unet"]),
        controlnet=controls.load(sd1, p.weights.path, {}), scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    scheduler.set_timesteps(4)
    sigmas = [float(s) for s in scheduler.sigmas]
    theirs = pipe(
        prompt_embeds=text, negative_prompt_embeds=none, image=controls.read_hint(p).permute(0, 3, 1, 2), num_inference_steps=4,
        guidance_scale=3.0, latents=start * (1 + sigmas[0] ** 2) ** 0.5 / scheduler.init_noise_sigma, height=32, width=32,
        controlnet_conditioning_scale=0.8, control_guidance_end=0.5, output_type="latent",
    ).images
    assert plan(process(sd1), 4, schedule="normal") == pytest.approx(sigmas, rel=1e-4)
    with control(sd1, replace(p, strength=0.8)):
        blank = torch.zeros(1, 4, 8, 8)
        request = Request(cond=Cond(text), negative=Cond(none), latent=blank, sigmas=sigmas, noise=start, guidance=CFG(3.0))
        ours = finish(drive(sd1, [request]))[0]
    assert torch.allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max()))


def finish(work: Iterator[Any]) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def test_a_part_of_the_way_counts_row_by_row(family: Family, tmp_path: Path) -> None:
    p = a_control(family, tmp_path / "c.safetensors")
    x, sigma, cond = asked(family, 3)  # at 100, 500 and 900 of 999
    plain = family.predict(x, sigma, cond)
    with control(family, p):
        always = family.predict(x, sigma, cond)
    for start, end, on in ((0.0, 0.3, [2]), (0.3, 0.7, [1]), (0.7, 1.0, [0]), (0.2, 0.25, [])):
        with control(family, replace(p, options={**p.options, "start": start, "end": end})):
            steered = family.predict(x, sigma, cond)
        for row in range(3):
            assert torch.allclose(steered[row], (always if row in on else plain)[row], atol=1e-5)
            assert (row in on) == bool((steered[row] - plain[row]).abs().max() > 1e-3)


def test_the_way_is_counted_as_comfyui_counts(load: Callable[[str], Family]) -> None:
    family, flow = load("mini"), load("flow")
    table = family.sigmas.double()
    assert rows.level(family, 0.3) == pytest.approx(float((table[699].log() * 0.7 + table[700].log() * 0.3).exp()), rel=1e-5)
    assert (rows.level(family, 0.0), rows.level(family, 1.0)) == (float("inf"), 0.0)
    # To the last digit what regions have: a step may lie just there.
    assert all(rows.level(family, i / 100) == regions.level(process(family), i / 100) for i in range(101))
    assert rows.level(flow, 0.25) == pytest.approx(0.75, abs=1e-6)


def test_every_picture_may_have_its_own_hint(family: Family, tmp_path: Path) -> None:
    p = with_hint(a_control(family, tmp_path / "c.safetensors"), pictures(2), tmp_path)
    x, sigma, cond = asked(family, 3)
    single = []
    for i, row in ((1, 0), (0, 1), (1, 2)):
        with control(family, with_hint(p, pictures(2)[i : i + 1], tmp_path)):
            single.append(family.predict(x, sigma, cond)[row])
    with control(family, p):
        marked = family.predict(x, sigma, Cond(cond.tokens, {rows.PICTURE: torch.tensor([1, 0, 1])}))
        with pytest.raises(ValueError, match="one for every picture"):
            family.predict(x, sigma, cond)
    assert torch.allclose(marked, torch.stack(single), atol=1e-5)


def test_a_hint_of_another_shape_is_cut_about_its_middle(family: Family, tmp_path: Path) -> None:
    wide = torch.zeros(1, 32, 48, 3)
    wide[:, :, 8:40] = pictures(1, 32)
    said = []
    for hint in (wide, pictures(1, 32).repeat_interleave(2, 1).repeat_interleave(2, 2)):
        with control(family, with_hint(a_control(family, tmp_path / "c.safetensors"), hint, tmp_path)):
            said.append(family.predict(*asked(family)))
    assert torch.equal(*said)


def test_a_fresh_control_changes_nothing_and_learns(family: Family) -> None:
    plain = family.predict(*asked(family))
    net = controls.fresh(family)
    with controls.attached(family, net, pictures(1)):
        said = family.predict(*asked(family))
    assert torch.equal(said, plain)
    said.square().mean().backward()
    assert all(block.weight.grad.abs().sum() > 0 for block in [*net.controlnet_down_blocks, net.controlnet_mid_block])


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("layout", ["mini", "sdxl"])
def test_the_original_layout_is_read(load: Callable[[str], Family], tmp_path: Path, layout: str, prefix: str) -> None:
    family = load(layout)
    p = a_control(family, tmp_path / "c.safetensors")
    original = {prefix + name: t for name, t in in_original_layout(family, load_file(p.weights.path)).items()}
    save_file(original, tmp_path / "o.safetensors")
    theirs = controls.load(family, str(tmp_path / "o.safetensors"), {}).state_dict()
    ours = controls.load(family, p.weights.path, {}).state_dict()
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[k], ours[k]) for k in ours)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k.replace("mid_block.resnets", "nowhere"): v for k, v in t.items()}, r"control .*: \d+ of \d+ tensors fit"),
        (lambda t: {**t, "conv_in.weight": torch.zeros(32, 5, 3, 3)}, "first misfit conv_in.weight"),
        (lambda t: {"lora_unet_x.lora_up.weight": torch.zeros(2)}, "no ControlNet"),
    ],
)
def test_a_control_that_does_not_fit_is_refused(family: Family, tmp_path: Path, change: Any, says: str) -> None:
    p = a_control(family, tmp_path / "c.safetensors")
    save_file(change(load_file(p.weights.path)), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=says), control(family, replace(p, weights=Blob.of(tmp_path / "bad.safetensors"))):
        pass


def test_a_net_stays_loaded_with_its_model(family: Family, tmp_path: Path) -> None:
    p = a_control(family, tmp_path / "c.safetensors")
    kept = [controls._kept(family, q) for q in (p, replace(p, strength=0.3))]
    assert kept[0] is kept[1]


@pytest.mark.parametrize("kind", ["control", "freeu", "ip_adapter"])
def test_a_model_without_a_unet_is_refused(family: Family, load: Callable[[str], Family], tmp_path: Path, kind: str) -> None:
    p = MAKERS[kind](family, tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=f"{kind}: needs a U-Net; this sd3 model has transformer"), find(kind)(load("sd3"), p):
        pass


# FreeU


def test_freeu_v1_does_what_diffusers_does(family: Family) -> None:
    """diffusers goes by blocks and ComfyUI by channels; with equal scales on both stages the two rules mean the same here."""
    theirs: Any = copy.deepcopy(family.trainable()["unet"])
    theirs.enable_freeu(s1=0.7, s2=0.7, b1=1.3, b2=1.3)
    x, t, text, _ = told(family)
    wanted = theirs(x, t, text).sample
    with freeu(family, Patch("freeu", NO_FILE, options={"version": 1, "b1": 1.3, "b2": 1.3, "s1": 0.7, "s2": 0.7})):
        assert torch.allclose(family.predict(*asked(family)), wanted, atol=1e-6)
    assert not torch.allclose(family.predict(*asked(family)), wanted, atol=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (6, 9), (16, 12)])
def test_quieter_is_the_reference_filter(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(freeus.quieter(x, 0.2), fourier_filter(x, threshold=1, scale=0.2), atol=1e-6)


def test_freeu_goes_by_channels(family: Family) -> None:
    """64 from the middle into all of block 0 and the first resnet of block 1, 32 into its second: ComfyUI's rule, there 1280 and 640."""
    assert [width for _, width in freeus._joins(family.trainable()["unet"])] == [64, 64, 64, 32]


def test_freeu_v2_goes_by_what_stands_out() -> None:
    h = torch.tensor([[[[0.0, 1.0]], [[0.0, 3.0]]]])  # means 0 and 2: the second place stands out wholly
    joined, *_ = freeus._Join(2, 1.5, 1.0, 2)(None, (torch.cat([h, h], dim=1),))
    assert torch.allclose(joined[:, :2], torch.tensor([[[[0.0, 1.5]], [[0.0, 3.0]]]]))
    assert torch.allclose(joined[:, 2:], h, atol=1e-6)


# IP-Adapter


def prompted(family: Family, made: list[Patch], scales: list[float], embeds: list[Tensor]) -> Tensor:
    """diffusers' own U-Net with its own loader."""
    x, t, text, rest = told(family)
    theirs: Any = copy.deepcopy(family.trainable()["unet"])
    theirs._load_ip_adapter_weights([adapters.read(p.weights.path) for p in made])
    for name, processor in theirs.attn_processors.items():
        if name.endswith("attn2.processor") and not name.startswith("encoder_hid_proj"):
            processor.scale = list(scales)
    rest["added_cond_kwargs"] = {**rest.get("added_cond_kwargs", {}), "image_embeds": embeds}
    out: Tensor = theirs(x, t, text, **rest).sample
    return out


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "kolors"])
@pytest.mark.parametrize("plus", [False, True])
def test_an_adapter_does_what_diffusers_does(load: Callable[[str], Family], tmp_path: Path, layout: str, plus: bool) -> None:
    family = load(layout)
    p = an_adapter(family, tmp_path / "a.safetensors", plus=plus)
    seen = load_file(p.files["picture.safetensors"].path)
    embeds = torch.cat([seen["picture"], seen["nothing"]])
    x, sigma, cond = asked(family, negative=torch.tensor([False, True]))
    with ip_adapter(family, replace(p, strength=0.6)):
        said = family.predict(x, sigma, cond)
        both = family.predict(*asked(family))
    assert torch.allclose(said, prompted(family, [p], [0.6], [embeds]), atol=1e-6)
    assert torch.allclose(both, prompted(family, [p], [0.6], [torch.cat([seen["picture"]] * 2)]), atol=1e-6)
    assert (said - both).abs().max() > 1e-3


def test_several_adapters_add_up(family: Family, tmp_path: Path) -> None:
    made = [an_adapter(family, tmp_path / f"{i}.safetensors", plus=bool(i), seed=i) for i in range(2)]
    embeds = [torch.cat([load_file(p.files["picture.safetensors"].path)["picture"]] * 2) for p in made]
    with ip_adapter(family, replace(made[0], strength=0.4)), ip_adapter(family, replace(made[1], strength=0.9)):
        said = family.predict(*asked(family))
    assert torch.allclose(said, prompted(family, made, [0.4, 0.9], embeds), atol=1e-6)


def test_the_driver_says_which_row_is_whose(family: Family, tmp_path: Path) -> None:
    """One step to 0 under guidance for two pictures: the picture prompt counts for the prompt alone, and each has its own hint."""
    picture = an_adapter(family, tmp_path / "a.safetensors")
    steer = with_hint(a_control(family, tmp_path / "c.safetensors"), pictures(2), tmp_path)
    x, sigma, cond = asked(family)
    s, (text, none) = float(sigma[1]), (Cond(t[None]) for t in cond.tokens)
    with ip_adapter(family, picture), control(family, steer):
        request = Request(cond=text, negative=none, latent=torch.zeros_like(x), sigmas=[s, 0.0], noise=x, guidance=CFG(2.0))
        drawn = finish(drive(family, [request]))[0]
        wanted, unwanted = (
            family.denoise(x * s, torch.tensor([s] * 2), Cond(c.tokens.expand(2, -1, -1), {
                rows.PICTURE: torch.arange(2), rows.NEGATIVE: torch.tensor([against] * 2)})) for c, against in ((text, False), (none, True))
        )
    assert torch.allclose(drawn, 2 * wanted - unwanted, atol=1e-5)


def test_an_adapter_of_another_model_is_refused(family: Family, tmp_path: Path) -> None:
    p = an_adapter(family, tmp_path / "a.safetensors")
    tensors = load_file(p.weights.path)
    few = {k: v for k, v in tensors.items() if not k.startswith("ip_adapter.5.")}
    save_file(few, tmp_path / "few.safetensors")
    with pytest.raises(ValueError, match="attention layers"), ip_adapter(family, replace(p, weights=Blob.of(tmp_path / "few.safetensors"))):
        pass
    save_file({**tensors, "unet.x": torch.zeros(1)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match=r"unet\.x"), ip_adapter(family, replace(p, weights=Blob.of(tmp_path / "odd.safetensors"))):
        pass


@pytest.mark.parametrize("plus", [False, True])
def test_pictures_are_seen_as_transformers_sees_them(family: Family, tmp_path: Path, plus: bool) -> None:
    p = an_adapter(family, tmp_path / "a.safetensors", plus=plus)
    folder = a_vision(tmp_path / "vision")
    net = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
    pixels = (pictures(2, 40) * 255).round() / 255
    prepare = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    x = prepare(list((pixels * 255).round().byte().numpy()), return_tensors="pt").pixel_values
    (tmp_path / "e.safetensors").write_bytes(adapters.encode(p.weights.path, folder, pixels.numpy()))
    seen = load_file(tmp_path / "e.safetensors")
    out = net(x, output_hidden_states=True)
    assert torch.allclose(seen["picture"][0], out.hidden_states[-2] if plus else out.image_embeds, atol=1e-6)
    assert seen["picture"].shape == ((1, 2, 17, 16) if plus else (1, 2, 16))
    other = an_adapter(family, tmp_path / "o.safetensors", plus=plus, wide=24)
    with pytest.raises(ValueError, match="vectors of 16 and the adapter reads 24"):
        adapters.encode(other.weights.path, folder, pixels.numpy())


def test_a_vision_model_is_known_by_its_shapes(family: Family, tmp_path: Path) -> None:
    """ViT-H as its own configuration has it; and a model's file alone is read to the same numbers as its folder."""
    shape = {"hidden_size": 1280, "intermediate_size": 5120, "projection_dim": 1024, "num_hidden_layers": 2, "num_attention_heads": 16}
    shape |= {"image_size": 224, "patch_size": 14}
    with torch.device("meta"):
        net = CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, hidden_act="gelu"))
    read = vision_config({name: tuple(t.shape) for name, t in net.state_dict().items()}, "")
    assert read == {**shape, "hidden_act": "gelu"}
    place, pixels = a_vision(tmp_path / "b", wide=768), pictures(1).numpy()
    (tmp_path / "alone").mkdir()
    alone = (place / "model.safetensors").rename(tmp_path / "alone" / "model.safetensors")
    with pytest.raises(ValueError, match="as a file or a folder with config"):
        adapters.encode("", tmp_path / "alone", pixels)
    p = an_adapter(family, tmp_path / "a.safetensors", wide=768)
    (tmp_path / "e.safetensors").write_bytes(adapters.encode(p.weights.path, alone, pixels))
    alone.rename(place / "model.safetensors")
    (tmp_path / "f.safetensors").write_bytes(adapters.encode(p.weights.path, place, pixels))
    assert torch.allclose(*(load_file(tmp_path / f"{n}.safetensors")["picture"] for n in "ef"), atol=1e-6)


# Textual inversion


def test_an_embedding_does_what_added_tokens_do(family: Family, tmp_path: Path) -> None:
    p = an_embedding(family, tmp_path / "cat.safetensors", key="<cat>", count=2)
    tower: Any = family.text  # type: ignore[attr-defined]
    model, words = copy.deepcopy(tower.model), copy.deepcopy(tower.tokenizer)
    words.add_tokens(["<cat-0>", "<cat-1>"])
    before = len(tower.embedding.weight)
    model.resize_token_embeddings(before + 2, mean_resizing=False)
    model.get_input_embeddings().weight.data[before:] = load_file(p.weights.path)["<cat>"]
    theirs = ClipText(words, model).encode(["a <cat-0><cat-1> apple, red", "(<cat-0><cat-1>:1.3)"])
    with embedding(family, p):
        for prompts in (["a <cat> apple, red", "(<cat>:1.3)"], ["a embedding:cat apple, red", "(embedding:cat.safetensors:1.3)"]):
            assert torch.allclose(family.encode_text(prompts).tokens, theirs, atol=1e-6)
        assert family.tokens("embedding:cat") == 2 < family.tokens("embedding:cats")
    assert family.tokens("<cat>") > 2 and len(tower.tokenizer) == before


def test_an_embeddings_strength_is_a_weight(family: Family, tmp_path: Path) -> None:
    p = an_embedding(family, tmp_path / "cat.safetensors")
    with embedding(family, p):
        weighed = family.encode_text(["a (embedding:cat:0.5)"]).tokens
    with embedding(family, replace(p, strength=0.5)):
        assert torch.allclose(family.encode_text(["a embedding:cat"]).tokens, weighed, atol=1e-6)


def test_two_embeddings_keep_their_words(family: Family, tmp_path: Path) -> None:
    one, two = (an_embedding(family, tmp_path / f"{n}.safetensors", key=k) for n, k in (("cat", "emb_params"), ("cat-two", "*")))
    with embedding(family, one):
        alone = family.encode_text(["embedding:cat"]).tokens
        with embedding(family, replace(two, options={"words": ["embedding:cat-two"]})):
            assert torch.equal(family.encode_text(["embedding:cat"]).tokens, alone)
            assert family.tokens("embedding:cat-two") == 2


def test_each_tower_takes_its_own_vectors(load: Callable[[str], Family], tmp_path: Path) -> None:
    """SDXL: the place of the pooled vector is found, and a tower without vectors skips the word."""
    family: Any = load("sdxl")
    widths = [family.text.embedding.embedding_dim, family.text_2.embedding.embedding_dim]
    vectors = {k: torch.randn(n, w) for k, n, w in zip(("clip_l", "clip_g"), (2, 3), widths, strict=True)}
    save_file(vectors, tmp_path / "both.safetensors")
    save_file({"emb_params": vectors["clip_l"]}, tmp_path / "one.safetensors")
    plain = family.encode_text(["a red apple", "a  apple"])
    for name, counts in (("both", [2, 3]), ("one", [2, 0])):
        p = Patch("embedding", Blob.of(tmp_path / f"{name}.safetensors"), options={"words": [f"embedding:{name}"]})
        with embedding(family, p):
            assert [len(tower.tokens(f"embedding:{name}")) for tower in (family.text, family.text_2)] == counts
            again = family.encode_text(["a red apple", f"a embedding:{name} apple"])
        assert torch.equal(again.extras["pooled"][0], plain.extras["pooled"][0])
        assert (again.extras["pooled"][1] - plain.extras["pooled"][1]).abs().max() > (0.01 if name == "both" else -1)


@pytest.mark.parametrize("data", ["a1111", "diffusers"])
def test_a_pickled_embedding_is_read(tmp_path: Path, data: str) -> None:
    vectors = torch.randn(2, 32)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x"} if data == "a1111" else {"<x>": vectors},
               tmp_path / "x.pt")
    p = sl.load_embedding(tmp_path / "x.pt")
    assert torch.equal(next(iter(embeddings.read(p.weights.path).values())), vectors)
    assert p.options["words"] == ["embedding:x", *(["<x>"] if data == "diffusers" else [])]


def test_an_embedding_of_another_width_is_refused(family: Family, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vectors of 24"), embedding(family, an_embedding(family, tmp_path / "e.safetensors", width=24)):
        pass
    save_file({"a": torch.zeros(3), "b": torch.zeros(3)}, tmp_path / "odd.safetensors")
    with pytest.raises(ValueError, match="one token's vectors"):
        embeddings.read(str(tmp_path / "odd.safetensors"))


# Ops


def draw(model: sl.Model, prompt: str = "a red apple", n: int = 2) -> Any:
    return sl.generate(model, prompt, seeds=range(n), width=64, height=64, steps=3).pixels


def test_the_ops_put_everything_on_a_model(folder: Path, family: Family, tmp_path: Path) -> None:
    model = sl.model(str(folder))
    plain = draw(model)
    a_control(family, tmp_path / "c.safetensors")
    an_embedding(family, tmp_path / "cat.safetensors", key="emb_params")
    an_adapter(family, tmp_path / "a.safetensors")
    net = sl.load_control(str(tmp_path / "c.safetensors"))
    picture = sl.Image(plain[:1])
    made = {
        "control": sl.with_control(model, net, image=sl.hint(picture, by="lineart"), strength=0.8, end=0.9),
        "freeu": sl.with_freeu(model),
        "adapter": sl.with_ip_adapter(model, picture, path=tmp_path / "a.safetensors", encoder=a_vision(tmp_path / "vision")),
        "embedding": sl.with_embedding(model, sl.load_embedding(str(tmp_path / "cat.safetensors"))),
    }
    prompts = {"embedding": "a embedding:cat"}
    plains = {"embedding": draw(model, "a embedding:cat")}
    for name, changed in made.items():
        held = encode(changed)
        assert decode(held.tree, held.arrays, held.blobs.__getitem__) == changed
        assert abs(draw(changed, prompts.get(name, "a red apple")) - plains.get(name, plain)).max() > 1e-3, name
    assert len({m.key for m in made.values()}) == len(made)
    both = sl.with_control(made["control"], net, image=sl.hint(picture, by="blur"), strength=0.0)
    assert (draw(both) == draw(made["control"])).all()
    assert (draw(model) == plain).all()


def test_each_drawn_picture_may_have_its_own_hint(folder: Path, family: Family, tmp_path: Path) -> None:
    model = sl.model(str(folder))
    a_control(family, tmp_path / "c.safetensors")
    net = sl.load_control(str(tmp_path / "c.safetensors"))
    hints = sl.Image(pictures(2).numpy())
    together = draw(sl.with_control(model, net, image=hints))
    for i in range(2):
        alone = sl.with_control(model, net, image=sl.pick(hints, [i]))
        assert abs(draw(alone)[i] - together[i]).max() < 1e-4
        assert abs(draw(alone)[1 - i] - together[1 - i]).max() > 1e-4


def test_a_diffusers_folder_says_its_own_shape(family: Family, tmp_path: Path) -> None:
    """A net with fewer layers than the U-Net's encoder has, as SDXL's small ControlNets."""
    net = ControlNetModel.from_config({**a_net(family).config, "mid_block_type": "UNetMidBlock2D"})
    net.save_pretrained(tmp_path / "small")
    p = sl.load_control(str(tmp_path / "small"))
    assert p.options["config"]["mid_block_type"] == "UNetMidBlock2D"
    again = controls.load(family, p.weights.path, p.options["config"])
    assert all(torch.equal(t, net.state_dict()[name]) for name, t in again.state_dict().items())


def test_a_patch_of_another_kind_is_refused(folder: Path, family: Family, tmp_path: Path) -> None:
    p = an_embedding(family, tmp_path / "e.safetensors")
    with pytest.raises(ValueError, match="got a patch of the kind 'embedding', expected one from load_control"):
        sl.with_control(sl.model(str(folder)), p, image=sl.Image(pictures(1).numpy()))
    with pytest.raises(ValueError, match=r"0 \.safetensors files"):
        sl.load_control(str(folder))
    with pytest.raises(ValueError, match="there is no file nowhere"):
        sl.load_control("nowhere")
