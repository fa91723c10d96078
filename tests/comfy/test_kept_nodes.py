"""Latents as files, pictures with transparency, brightness and colour apart: round trips and closed forms."""
from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors import safe_open
from safetensors.torch import save_file

from safelight import comfy, runtime
from safelight.codec import decode, encode
from safelight.comfy import Places, PromptError, translate
from safelight.comfy.data import Clear, bytes8
from safelight.comfy.nodes.image import clear_of, join_clear, of_yuv, yuv_of
from safelight.comfy.saving import UNITS, read, write
from safelight.computing import computing
from safelight.engine import finish
from safelight.store import Store
from safelight.values import Image, Latent, Mask
from tests.comfy.prompts import NAMES, node, places


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with computing("cpu", "float32"):
        yield places(tmp_path_factory.mktemp("comfy"))
    runtime.release()


def run(here: Places, tmp_path: Path, prompt: dict[str, Any]) -> dict[str, list[Path]]:
    return finish(comfy.run(prompt, Places(here.models, here.input, tmp_path / "out"), store=Store(tmp_path / "store")))


LOADED = {"m": node("CheckpointLoaderSimple", ckpt_name=NAMES["checkpoint"])}


@pytest.mark.parametrize("family", UNITS)
def test_a_latents_file_is_in_the_autoencoders_units_and_reads_back(tmp_path: Path, family: str) -> None:
    scale, shift = UNITS[family]
    latent = Latent(torch.randn(2, 4, 3, 5, generator=torch.Generator().manual_seed(0)), family)
    path, = write(latent, {"latent": True}, tmp_path / "x_00001_", {"prompt": "{}"})
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"latent_tensor", "latent_format_version_0"} and file.metadata()["prompt"] == "{}"
        assert file.get_tensor("latent_format_version_0").numel() == 0
        raw = file.get_tensor("latent_tensor")
    assert path.name == "x_00001_.latent" and torch.allclose(raw, latent.samples / scale + shift, atol=1e-6)
    again = read(path, ["another"])  # the file says whose it is
    assert again.family == family and torch.allclose(again.samples, latent.samples, atol=1e-5)


def test_a_file_of_comfyui_is_taken_for_the_prompts_model(tmp_path: Path) -> None:
    z, path = torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(0)), tmp_path / "a.latent"
    save_file({"latent_tensor": z, "latent_format_version_0": torch.tensor([])}, path)
    assert torch.allclose(read(path, ["sdxl", "kolors"]).samples, z * 0.13025) and read(path, ["sdxl"]).family == "sdxl"
    for families in ([], ["sd", "sdxl"], ["mystery"]):
        with pytest.raises(ValueError, match="latent: got family"):
            read(path, families)
    save_file({"latent_tensor": z}, path)  # of old: SD 1.x's units
    assert torch.allclose(read(path, ["sd"]).samples, z, atol=1e-6)
    assert torch.allclose(read(path, ["sdxl"]).samples, z / 0.18215 * 0.13025, atol=1e-6)
    save_file({"latent_tensor": z * 0}, path)
    assert read(path, []).family == "" and not read(path, []).samples.any()
    for wrong in ({"samples": z}, {"latent_tensor": z[0]}):
        save_file(wrong, path)
        with pytest.raises(ValueError, match=r"a\.latent: got latent_tensor"):
            read(path, ["sd"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"a\.latent"):
        read(path, ["sd"])


def test_latents_go_through_files_into_the_same_picture(here: Places, tmp_path: Path) -> None:
    made = {**LOADED, "i": node("LoadImage", image=NAMES["picture"]), "e": node("VAEEncode", pixels=["i", 0], vae=["m", 2])}
    shown = {"d": node("VAEDecode", samples=["e", 0], vae=["m", 2]), "s": node("SaveImage", images=["d", 0], filename_prefix="x")}
    files = run(here, tmp_path, {**made, **shown, "k": node("SaveLatent", samples=["e", 0], filename_prefix="latents/ComfyUI")})
    kept, = files["k"]
    assert kept.relative_to(tmp_path / "out").as_posix() == "latents/ComfyUI_00001_.latent"
    with safe_open(kept, "pt") as file:
        assert json.loads(file.metadata()["prompt"])["k"]["class_type"] == "SaveLatent"
    (here.input / "one.latent").write_bytes(kept.read_bytes())
    assert comfy.object_info(here, {})["LoadLatent"]["input"]["required"]["latent"][0] == ["one.latent"]
    again = run(here, tmp_path / "2", {**LOADED, **shown, "e": node("LoadLatent", latent="one.latent")})
    first, second = (np.asarray(Pil.open(f["s"][0])).astype(int) for f in (files, again))
    assert np.abs(first - second).max() <= 1 and first.std() > 0
    copied = {"l": node("LoadLatent", latent="one.latent"), "k": node("SaveLatent", samples=["l", 0], filename_prefix="copy")}
    copy, = run(here, tmp_path / "3", copied)["k"]  # no model: the file says whose it is
    assert torch.allclose(*(safe_open(f, "pt").get_tensor("latent_tensor") for f in (copy, kept)), atol=1e-6)
    for name in ("none.latent", "../one.latent"):
        with pytest.raises(PromptError, match=r"node e \(LoadLatent\).*latent"):
            translate({**LOADED, **shown, "e": node("LoadLatent", latent=name)}, here)


def test_transparency_is_joined_kept_in_the_file_and_split(here: Places, tmp_path: Path) -> None:
    prompt = {
        "i": node("EmptyImage", width=8, height=6, batch_size=2, color=0x80FF20), "a": node("SolidMask", value=0.25, width=4, height=3),
        "j": node("JoinImageWithAlpha", image=["i", 0], alpha=["a", 0]), "s": node("SaveImage", images=["j", 0], filename_prefix="x"),
        "p": node("SplitImageWithAlpha", image=["j", 0]), "b": node("SaveImage", images=["p", 0], filename_prefix="bare"),
        "c": node("MaskToImage", mask=["p", 1]), "t": node("SaveImage", images=["c", 0], filename_prefix="mask"),
        "w": node("SaveAnimatedWEBP", images=["j", 0], filename_prefix="w", fps=1.0, lossless=True, quality=80, method="fastest"),
        "f": node("ImageFlip", image=["j", 0], flip_method="x-axis: vertically"),
        "g": node("SaveImage", images=["f", 0], filename_prefix="flat"),
    }
    files = run(here, tmp_path, prompt)
    told = {key: np.asarray(Pil.open(f[0]))[0, 0].tolist() for key, f in files.items()}
    assert [len(f) for f in files.values()] == [1] * len(files)  # as many as there are of both
    assert told["s"] == [128, 255, 32, 191] and told["w"] == told["s"]  # ComfyUI's opacity is 1 - mask, cut to whole steps
    assert told["b"] == told["g"] == [128, 255, 32] and told["t"] == [63, 63, 63]


def test_transparency_is_scaled_stays_in_the_store_and_has_a_key() -> None:
    image = Image(np.random.default_rng(0).random((3, 4, 6, 3), dtype=np.float32))
    values = np.random.default_rng(1).random((2, 2, 3), dtype=np.float32)
    clear = join_clear(image, Mask(values))
    wanted = torch.nn.functional.interpolate(torch.from_numpy(values)[:, None], (4, 6), mode="bilinear")[:, 0].numpy()
    assert isinstance(clear, Clear) and len(clear) == 2 and np.array_equal(clear_of(clear).values, wanted)
    assert bytes8(clear).shape == (2, 4, 6, 4) and bytes8(image).shape == (3, 4, 6, 3) and not clear_of(image).values.any()
    taken = encode(clear)
    again = decode(taken.tree, taken.arrays, lambda _: pytest.fail("no files"))
    assert isinstance(again, Clear) and again.key == clear.key != Image(clear.pixels).key
    assert join_clear(image, Mask(values[::-1].copy())).key != clear.key


def test_brightness_and_colour_are_bt_601s_and_lead_back() -> None:
    one = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1], [0.5, 0.5, 0.5]], np.float32)
    primaries = Image(one.reshape(1, 1, 5, 3))
    parts = [yuv_of(primaries, part=part) for part in ("Y", "U", "V")]
    for part in parts:
        assert part.pixels.dtype == np.float32 and (part.pixels == part.pixels[..., :1]).all()
    bright, blue, red = (part.pixels[0, 0, :, 0] for part in parts)
    assert np.allclose(bright, [0.299, 0.587, 0.114, 1, 0.5]) and np.allclose([blue[3:], red[3:]], 0.5)
    # BT.601: Cb = 0.5 - 0.168736 R - 0.331264 G + 0.5 B, Cr = 0.5 + 0.5 R - 0.418688 G - 0.081312 B.
    assert np.allclose(blue[:3], [0.331264, 0.168736, 1.0], atol=5e-4) and np.allclose(red[:3], [1.0, 0.081312, 0.418688], atol=5e-4)
    image = Image(np.random.default_rng(0).random((2, 5, 7, 3), dtype=np.float32))
    y, u, v = (yuv_of(image, part=part) for part in ("Y", "U", "V"))
    assert np.abs(of_yuv(y, u, redness=v).pixels - image.pixels).max() < 2e-3  # three digits each way
    with pytest.raises(ValueError, match="expected as many pictures of one size"):
        of_yuv(y, primaries, redness=v)


def test_yuv_nodes_in_a_prompt(here: Places, tmp_path: Path) -> None:
    prompt = {
        "i": node("EmptyImage", width=8, height=8, batch_size=1, color=0x4080C0), "p": node("ImageRGBToYUV", image=["i", 0]),
        "r": node("ImageYUVToRGB", Y=["p", 0], U=["p", 1], V=["p", 2]), "s": node("SaveImage", images=["r", 0], filename_prefix="x"),
        "u": node("SaveImage", images=["p", 1], filename_prefix="u"),
    }
    files = run(here, tmp_path, prompt)
    back, blue = (np.asarray(Pil.open(files[k][0]))[0, 0].astype(int) for k in ("s", "u"))
    assert np.abs(back - [0x40, 0x80, 0xC0]).max() <= 1
    assert np.abs(blue - int((0xC0 - (0.299 * 0x40 + 0.587 * 0x80 + 0.114 * 0xC0)) * 0.564 + 127.5)).max() <= 1
