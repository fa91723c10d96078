"""What the embedded model is made from: attributes, captions that tell the truth about them, pictures, shards, and the recipes in small."""
from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from pretraining import autoencoder, clip, denoiser
from pretraining.shards import Mixture, Shards, unit
from safelight.embedded import people, render, scenes, vocabulary
from safelight.embedded.captions import caption
from safelight.train.flat import Flat
from tests import tiny

ICONS = {"icons": {"red-apple": {"body": '<circle cx="16" cy="16" r="10" fill="#ff0000"/>'}}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty people and twenty scenes."""
    out = tmp_path_factory.mktemp("shards")
    render.build(out, {"person": 40, "scene": 20}, out / "icons.json", shard=20, workers=1)
    return out


@pytest.fixture(scope="module")
def mini(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizer, CLIP and autoencoder after a few steps each."""
    out = tmp_path_factory.mktemp("mini")
    clip.train(data, out / "clip", minutes=0.02, batch=8)
    autoencoder.train(data, out / "vae", minutes=0.02, batch=2)
    return out


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_full_caption_says_every_attribute(language: str) -> None:
    i = ("en", "zh").index(language)
    for seed in range(60):
        a = people.draw_attributes(Random(seed))
        text = caption(a, Random(seed), language=language, full=True)
        assert vocabulary.EXPRESSIONS[a["expression"]][i] in text
        assert vocabulary.CLOTHES_COLOURS[a["clothes colour"]][i] in text
        assert (vocabulary.GLASSES[a["glasses"]][i] in text) == (a["glasses"] != "none")
        ground = vocabulary.BACKGROUNDS[a["background"]][i] if "background" in a else vocabulary.SCENES[a["scene"]][i]
        assert ground in text


def test_no_caption_says_a_colour_that_is_not_there() -> None:
    colours = set(vocabulary.HAIR_COLOURS) | set(vocabulary.CLOTHES_COLOURS) | set(vocabulary.BACKGROUNDS)
    for seed in range(300):
        a = people.draw_attributes(Random(seed)) | {"scene": "sea", "time": "day"}
        a.pop("background", None)
        words = set(caption(a, Random(seed)).replace(",", "").split())
        assert words & colours <= {a["hair colour"], a["clothes colour"], "brown" if a["skin"] == "brown" else "", ""}


def test_captions_vary_and_repeat_with_the_seed() -> None:
    a = people.draw_attributes(Random(1))
    assert len({caption(a, Random(i)) for i in range(30)}) > 15
    assert caption(a, Random(3)) == caption(a, Random(3))


def test_a_picture_has_the_colours_it_was_asked_for(tmp_path: Path) -> None:
    icons = tmp_path / "icons.json"
    icons.write_text(json.dumps(ICONS))
    a = people.draw_attributes(Random(5)) | {"background": "teal", "hair style": "bob", "hair colour": "green", "frame": "portrait"}
    a.pop("scene", None)
    pixels = np.asarray(render.picture(a, Random(0))).reshape(-1, 3)
    assert tuple(pixels[0]) == (0x4F, 0xB9, 0xB3)
    green = np.abs(pixels.astype(int) - (0x2F, 0x9E, 0x5B)).max(1) < 6
    assert green.mean() > 0.03
    apple = np.asarray(render.picture({"kind": "object", "object": "apple", "background": "white"}, Random(0), icons))
    assert tuple(apple[64, 64]) == (255, 0, 0)


def test_an_object_without_icons_is_refused() -> None:
    with pytest.raises(ValueError, match="icon file"):
        render.picture({"kind": "object", "object": "apple", "background": "white"}, Random(0))


@pytest.mark.parametrize("scene", vocabulary.SCENES)
def test_every_scene_looks_different_by_day_and_night(scene: str) -> None:
    day, night = (np.asarray(render.raster(scenes.svg(scene, t, Random(0))).convert("L")).mean() for t in ("day", "night"))
    assert day > night + 30


def test_shards_are_drawn_once_and_read_by_number(data: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in data.iterdir()}
    render.build(data, {"person": 40, "scene": 20}, data / "icons.json", shard=20, workers=1)
    assert {p: p.stat().st_mtime_ns for p in data.iterdir()} == before
    shards = Shards.open(data)
    assert len(shards) == 60
    parts = np.concatenate([np.load(p) for p in sorted(data.glob("*.npy"))])
    assert (shards.pixels(np.array([59, 0, 20])) == parts[[59, 0, 20]]).all()
    assert {shards.rows[i]["kind"] for i in shards.of_kind("scene")} == {"scene"}


def test_what_is_held_out_is_in_no_batch(data: Path) -> None:
    shards = Shards.open(data)
    shares = {"person": 0.5, "scene": 0.5}
    trained = {int(i) for step in range(40) for i in Mixture(shards, shares).batch(step, 32)}
    held = {int(i) for i in Mixture(shards, shares, held_out=True).batch(0, 64)}
    assert len(trained) == 57
    assert len(held) == 3
    assert not trained & held


def test_a_mixture_of_nothing_is_an_error(data: Path) -> None:
    with pytest.raises(ValueError, match="no picture of object"):
        Mixture(Shards.open(data), {"object": 1.0})


def test_no_shards_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"safelight\.embedded\.render"):
        Shards.open(tmp_path)


def test_the_batch_of_a_step_depends_on_seed_step_and_rank_alone(data: Path) -> None:
    shards = Shards.open(data)
    mix = Mixture(shards, {"person": 0.5, "scene": 0.5, "object": 1.0}, seed=3)
    first = mix.batch(7, 16)
    mix.batch(8, 16)
    assert (mix.batch(7, 16) == first).all()
    assert not (mix.batch(7, 16, rank=1) == first).all()
    assert not (Mixture(shards, {"person": 0.5, "scene": 0.5}, seed=4).batch(7, 16) == first).all()


def test_flat_parameters_train_as_the_plain_ones_do() -> None:
    torch.manual_seed(0)
    plain, flat = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
    flat.load_state_dict(plain.state_dict())
    whole = Flat(flat.parameters())
    a, b = torch.optim.AdamW(plain.parameters(), lr=0.1), torch.optim.AdamW([whole.weights], lr=0.1)
    for step in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for net, optimizer in ((plain, a), (flat, b)):
            net(x).square().sum().backward()
            optimizer.step()
            a.zero_grad()
            whole.grads.zero_()
    assert torch.equal(whole.weights.data, torch.cat([p.data.reshape(-1) for p in plain.parameters()]))
    assert torch.equal(flat.weight, plain.weight)


def test_principal_components_of_flat_pictures_come_back(data: Path) -> None:
    shards = Shards.open(data)
    pca = autoencoder.fit_pca(shards, pictures=60)
    x = unit(shards.pixels(np.arange(8)))
    z = autoencoder.encode(x, pca)
    assert z.shape == (8, 16, 16, 16)
    patches = z.permute(0, 2, 3, 1) @ pca["up"] + pca["mean"]
    error = (patches - autoencoder.patches(x)).square().mean() / x.var()
    assert error < 0.06


def test_the_denoiser_resumes_to_the_same_bits(data: Path, mini: Path) -> None:
    plan = denoiser.Plan(minutes=1e9, steps=4, ranks=1, batch=2, decay=0.5, warmup=2, widths=(32, 32, 32))
    denoiser.latents(Shards.open(data), mini, mini / "latents.npy")
    denoiser.rank_main(0, data, mini, plan)  # last.pt is step 2's
    straight = torch.load(mini / "final.pt", weights_only=True)
    assert torch.load(mini / "last.pt", weights_only=True)["step"] == 2
    denoiser.rank_main(0, data, mini, plan)  # goes on from there
    resumed = torch.load(mini / "final.pt", weights_only=True)
    assert resumed["step"] == straight["step"] == 4
    for a, b in zip(resumed["weights"] + resumed["ema"], straight["weights"] + straight["ema"], strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(straight["weights"][0], straight["ema"][0])
    for part in ("unet", "text_encoder", "scheduler"):
        assert any((mini / part).iterdir())


def test_training_goes_on_from_weights_alone(data: Path, mini: Path, tmp_path: Path) -> None:
    plan = denoiser.Plan(minutes=1e9, steps=2, ranks=1, batch=2, warmup=2, widths=(32, 32, 32))
    denoiser.latents(Shards.open(data), mini, mini / "latents.npy")
    denoiser.rank_main(0, data, mini, plan)
    for part in ("clip", "tokenizer", "unet", "text_encoder"):
        shutil.copytree(mini / part, tmp_path / part)
    kept = denoiser._Run(tmp_path, plan, 0)
    for weights, ema in zip(kept.flats, torch.load(mini / "final.pt", weights_only=True)["ema"], strict=True):
        assert torch.equal(weights.weights.data, ema.half().float())
    assert kept.step == 0


def test_the_loss_counts_mouths_more_and_nothing_else(data: Path) -> None:
    plan = denoiser.Plan(minutes=1, batch=16, people=0.5, scenes=0.5)
    shards = Shards.open(data)
    mix = Mixture(shards, {"person": 0.5, "scene": 0.5}, seed=plan.seed)
    weight = denoiser.draw_batch(shards, np.zeros((len(shards), 16, 16, 16), np.float16), mix, plan, (0, 0)).weight
    assert isinstance(weight, torch.Tensor)
    for i, number in enumerate(mix.batch(0, 16)):
        heavy = (weight[i, 0] == plan.mouth).sum()
        assert heavy == (12 if shards.rows[number]["kind"] == "person" else 0)
        assert (weight[i, 0] == 1).sum() == 256 - heavy


def test_the_mouth_is_where_the_loss_counts_more() -> None:
    """Pictures that differ in the mouth alone differ there, in both frames."""
    for seed, frame in enumerate(people.FRAMES):
        plain = {"frame": frame, "background": "white", "beard": "none", "eyes": "closed", "glasses": "none"}
        a = people.draw_attributes(Random(seed)) | plain
        a.pop("scene", None)
        sad, glad = (np.asarray(render.picture(a | {"expression": e}, Random(3))).astype(int) for e in ("sad", "smiling"))
        cells = np.abs(sad - glad).reshape(16, 8, 16, 8, 3).sum((1, 3, 4))
        inside = cells[people.MOUTH[0], people.MOUTH[1]].sum()
        assert inside > 0.8 * cells.sum() > 0


def test_the_decoder_learns_from_what_a_denoiser_leaves(data: Path, tmp_path: Path) -> None:
    model = tiny.mini(tmp_path / "model")
    crops = autoencoder.Crops(
        Shards.open(data), autoencoder.fit_pca(Shards.open(data), pictures=60), 0, autoencoder._family(model), batch=4)
    x, z, shown = crops.draw(3)
    assert x.shape == (4, 3, 64, 64)
    assert z.shape == shown.shape == (4, 16, 8, 8)
    far = (shown - z).square().mean((1, 2, 3))
    assert far[:2].min() > 10 * far[2:].max()
    for first, again in zip((x, z, shown), crops.draw(3), strict=True):
        assert torch.equal(first, again)


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    bar = denoiser.alphas_cumprod()
    assert bar[-1] == 0
    assert bar[0] == pytest.approx(0.99915, abs=1e-4)
    assert (bar.diff() < 0).all()
