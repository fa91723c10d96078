"""What every family promises, on small random weights of every layout it reads."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from safelight.families import FAMILIES, Family, RepeatsTokens
from safelight.families.noise_levels import sigma_table
from safelight.families.sources import open_source
from safelight.sampling.preview import Previewed
from safelight.values import Cond
from tests import tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=sorted(tiny.LAYOUTS))
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tiny.LAYOUTS[request.param](tmp_path_factory.mktemp("models") / request.param)
    return tiny.load(folder, device=CPU, dtype=torch.float32)


def latents(f: Family, n: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(3)
    shape = (n, f.channels, 8, 8)
    return torch.randn(shape), torch.randn(shape)


def test_is_a_family_registered_under_its_name(loaded: Family) -> None:
    assert isinstance(loaded, Family)
    assert FAMILIES[loaded.name] is type(loaded)


def test_the_noise_levels_rise_and_are_finite(loaded: Family) -> None:
    assert loaded.sigmas.dtype == torch.float32
    assert loaded.sigmas.isfinite().all()
    assert (loaded.sigmas.diff() > 0).all()


def test_a_network_that_says_the_target_denoises_exactly(loaded: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    x0, noise = latents(loaded)
    for sigma in (loaded.sigmas[[3, 700]], loaded.sigmas[[400, 990]]):
        said = loaded.target(x0, noise, sigma)
        monkeypatch.setattr(loaded, "predict", lambda *_, said=said: said)
        found = loaded.denoise(loaded.noised(x0, noise, sigma), sigma, loaded.encode_text(["", ""]))
        tolerance = 1e-5 * float(sigma.max() + 1)  # x itself is that large, and float32
        assert torch.allclose(found, x0, atol=tolerance)


def test_rows_have_their_own_sigma_and_text(loaded: Family) -> None:
    x, _ = latents(loaded, 3)
    sigma, prompts = loaded.sigmas[[900, 500, 20]], ["a red apple", "night city", ""]
    together = loaded.denoise(x, sigma, loaded.encode_text(prompts))
    for i, prompt in enumerate(prompts):
        alone = loaded.denoise(x[i : i + 1], sigma[i : i + 1], loaded.encode_text([prompt]))
        assert torch.allclose(together[i : i + 1], alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1])


def test_predictions_carry_gradients_and_denoising_does_not(loaded: Family) -> None:
    x, _ = latents(loaded)
    weight = next(iter(next(iter(loaded.trainable().values())).parameters())).requires_grad_(True)
    try:
        said = loaded.predict(x, loaded.sigmas[[10, 500]], loaded.encode_text(["", "a"]))
        assert said.requires_grad
        assert not loaded.denoise(x, loaded.sigmas[[10, 500]], loaded.encode_text(["", "a"])).requires_grad
    finally:
        weight.requires_grad_(False)


def test_pictures_and_latents_have_the_promised_shapes(loaded: Family) -> None:
    side = 8 * loaded.factor
    pixels = loaded.decode(latents(loaded)[0])
    assert pixels.shape == (2, side, side, 3)
    assert pixels.dtype == torch.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert loaded.encode_image(pixels).shape == (2, loaded.channels, 8, 8)
    with pytest.raises(ValueError, match="multiples of"):
        loaded.encode_image(torch.zeros(1, side + 1, side, 3))


def row(cond: Cond, i: int) -> Cond:
    return Cond(cond.tokens[i : i + 1], {name: t[i : i + 1] for name, t in cond.extras.items()})


def test_a_long_prompt_takes_more_chunks_and_means_the_same_in_a_batch(loaded: Family) -> None:
    long = "a girl with purple hair, " * 12
    alone = loaded.encode_text([long]).tokens
    assert loaded.tokens(long) > 46
    both = loaded.encode_text([long, "short"])
    assert both.tokens.shape[1] % alone.shape[1] == 0
    if isinstance(loaded, RepeatsTokens):
        assert alone.shape[1] > loaded.encode_text(["short"]).tokens.shape[1]
    x, _ = latents(loaded, 1)
    sigma = loaded.sigmas[[500]]
    short = loaded.predict(x, sigma, loaded.encode_text(["short"]))
    assert torch.allclose(short, loaded.predict(x, sigma, row(both, 1)), atol=1e-5)


def test_weights_move_a_token_along_the_line_from_the_empty_prompt(loaded: Family) -> None:
    if loaded.tokens("(a:1.2)") > loaded.tokens("a"):
        pytest.skip("this text encoder reads brackets as letters")
    plain, empty = loaded.encode_text(["a red apple"]).tokens, loaded.encode_text([""]).tokens
    assert torch.equal(loaded.encode_text(["a (red:1.0) apple"]).tokens, plain)
    for weight in (0.0, 0.5, 1.4):
        weighted = loaded.encode_text([f"(a red apple:{weight})"]).tokens
        moved = (weighted != plain).any(dim=-1)[0]
        assert moved.sum() % loaded.tokens("a red apple") == 0 and moved.any() and not moved[0]
        assert torch.allclose(weighted[:, moved], (empty + weight * (plain - empty))[:, moved], atol=1e-6)


def test_training_form_says_the_same(loaded: Family) -> None:
    x, _ = latents(loaded)
    before = loaded.predict(x, loaded.sigmas[[10, 500]], loaded.encode_text(["", "a"]))
    loaded.for_training()
    after = loaded.predict(x, loaded.sigmas[[10, 500]], loaded.encode_text(["", "a"]))
    assert torch.allclose(before, after, atol=1e-5)


@pytest.mark.parametrize("layout", ["mini", "taiyi", "sdxl", "kolors", "sd3"])
def test_bfloat16_stays_close(tmp_path: Path, layout: str) -> None:
    folder = tiny.LAYOUTS[layout](tmp_path / layout)
    exact, rough = (tiny.load(folder, device=CPU, dtype=d) for d in (torch.float32, torch.bfloat16))
    x, _ = latents(exact)
    sigma = exact.sigmas[[100, 600]]
    a, b = (f.predict(x, sigma, f.encode_text(["a red apple", ""])) for f in (exact, rough))
    assert b.dtype == torch.float32
    assert (a - b).abs().max() < 0.05 * a.std() * 5


def test_float16_leaves_a_vae_that_overflows_in_float32(tmp_path: Path) -> None:
    folder = tiny.sdxl(tmp_path / "m")
    config = folder / "vae" / "config.json"
    for overflows, dtype in ((True, torch.float32), (False, torch.float16)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": overflows}))
        loaded = tiny.load(folder, device=CPU, dtype=torch.float16)
        assert loaded.trainable()["vae"].get_parameter("encoder.conv_in.weight").dtype == dtype
        assert loaded.trainable()["unet"].get_parameter("conv_in.weight").dtype == torch.float16
        assert loaded.decode(torch.randn(1, 4, 8, 8)).dtype == torch.float32


def test_clip_skip_reads_an_earlier_layer(loaded: Family) -> None:
    assert not torch.allclose(loaded.encode_text(["a cat"], skip=1).tokens, loaded.encode_text(["a cat"]).tokens)
    with pytest.raises(ValueError, match="skip is 9"):
        loaded.encode_text(["a cat"], skip=9)


def test_previews_know_the_channels(loaded: Family) -> None:
    assert isinstance(loaded, Previewed)
    assert loaded.preview_matrix.shape == (loaded.channels + 1, 3)


def test_sigma_table_of_sd1_and_of_zero_terminal_snr() -> None:
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon"}
    plain = sigma_table(config)
    assert plain[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert plain[-1].item() == pytest.approx(14.6146, abs=1e-4)
    zero = sigma_table({**config, "rescale_betas_zero_snr": True})
    assert zero[0].item() == pytest.approx(plain[0].item(), rel=1e-4)
    assert zero[-1].item() == pytest.approx(4518.77, rel=1e-3)


def break_class(folder: Path) -> None:
    path = folder / "unet" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "MyUNet"}))


def break_pipeline(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "OtherPipeline"}))


def break_weights(folder: Path) -> None:
    for f in (folder / "vae").glob("*.safetensors"):
        f.unlink()


@pytest.mark.parametrize(("spoil", "says"), [(break_class, "MyUNet"), (break_pipeline, "OtherPipeline"), (break_weights, "vae")])
def test_foreign_folders_are_refused(tmp_path: Path, spoil: Callable[[Path], None], says: str) -> None:
    folder = tiny.mini(tmp_path / "mini")
    spoil(folder)
    with pytest.raises(ValueError, match=says):
        tiny.load(folder, device=CPU, dtype=torch.float32)


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    a, b, c = tiny.mini(tmp_path / "a"), tiny.mini(tmp_path / "b"), tiny.mini(tmp_path / "c", seed=1)
    found, same, other = (open_source(folder).fingerprint() for folder in (a, b, c))
    assert found == same != other
    assert load_file(a / "unet" / "diffusion_pytorch_model.safetensors")
    (b / "scheduler" / "scheduler_config.json").write_text("{}")
    assert found != open_source(b).fingerprint()
    assert open_source(a).fingerprint("vae") == open_source(b).fingerprint("vae")
