"""Decoding every mode, and the arithmetic on pixels against closed forms."""
from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight import pictures
from safelight.pictures import Unreadable, read, shrink, square

RED = np.broadcast_to(np.array([200, 30, 40], np.uint8), (20, 30, 3))


def saved(path: Path, image: Pil.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_modes_become_rgb(tmp_path: Path) -> None:
    red = Pil.fromarray(RED)
    made = {
        "palette.png": red.quantize(4), "rgba.png": red.convert("RGBA"), "cmyk.jpg": red.convert("CMYK"), "one.gif": red.quantize(4),
    }
    for name, image in made.items():
        got = read(saved(tmp_path / name, image))
        assert got.shape == (20, 30, 3) and got.dtype == np.uint8
        assert np.abs(got.astype(int) - RED).max() <= 6, name


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    clear = Pil.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (read(saved(tmp_path / "a.png", clear)) == 255).all()
    indexed = Pil.new("P", (8, 8), 1)
    indexed.putpalette([0, 0, 0, 255, 0, 0])
    assert (read(saved(tmp_path / "b.png", indexed, transparency=1)) == 255).all()
    grey = Pil.new("LA", (8, 8), (0, 0))
    assert (read(saved(tmp_path / "c.png", grey)) == 255).all()


def test_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, 0)
    got = read(saved(tmp_path / "a.png", Pil.fromarray(ramp)))
    assert got[0, 0, 0] == 0 and got[0, -1, 0] == 255 and abs(int(got[0, 128, 0]) - 128) <= 1
    unit = Pil.fromarray(np.full((4, 4), 0.5, np.float32))
    assert abs(int(read(saved(tmp_path / "b.tiff", unit))[0, 0, 0]) - 127) <= 1


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Pil.new("RGB", (9, 9), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert (read(tmp_path / "a.webp")[0, 0] == (255, 0, 0)).all()


def test_a_small_picture_of_a_large_jpeg(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Pil.effect_noise((1600, 1200), 30).convert("RGB"))
    small = read(path, least=256)
    assert small.shape == (300, 400, 3)
    assert read(path).shape == (1200, 1600, 3)


@pytest.mark.parametrize("raw", [b"", b"hello", b"\xff\xd8\xff\xe0\0\x10JFIF", b"\x89PNG\r\n\x1a\n"])
def test_broken_files_say_so(tmp_path: Path, raw: bytes) -> None:
    (tmp_path / "a.png").write_bytes(raw)
    with pytest.raises(Unreadable):
        read(tmp_path / "a.png")


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Pil.new("1", (12000, 12000)))
    with warnings.catch_warnings(), pytest.raises(Unreadable, match="over the limit"):
        warnings.simplefilter("error")
        read(path)


def test_shrink_and_square() -> None:
    tall = np.zeros((90, 30, 3), np.uint8)
    tall[30:60] = 255
    assert shrink(tall, 10).shape == (30, 10, 3)
    assert shrink(tall, 40) is tall
    assert (square(tall, 10) == 255).all()
    assert square(tall[:, :3], 12).shape == (12, 12, 3)


@pytest.mark.parametrize("size", [(64, 90), (65, 111), (90, 69), (127, 101), (127, 900), (128, 129), (64, 65), (225, 183)])
def test_grey_is_brought_down_as_pillow_does(size: tuple[int, int], tmp_path: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (5, 5), dtype=np.uint8)
    smooth = Pil.fromarray(noise).resize(size, Pil.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    found, wanted = pictures.read(tmp_path / "a.png", most=64, grey=True), shrink(np.asarray(smooth), 64)
    assert found.shape == wanted.shape
    gap = np.abs(found.astype(int) - wanted)
    assert gap.max() <= 6 and gap.mean() < 0.6  # a border that falls on a pixel's middle is seen on either side


def test_measures_of_known_pictures() -> None:
    flat = np.full((64, 64, 3), 128, np.uint8)
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    one, two = pictures.histogram(flat), pictures.histogram(stripes)
    assert pictures.sharpness(flat) == 0 and pictures.contrast(one) == 0 and pictures.entropy(one) == 0
    assert pictures.colourfulness(flat) == 0
    assert pictures.brightness(one) == pytest.approx(128 / 255, abs=1e-4)
    assert pictures.sharpness(stripes) == pytest.approx(510**2, rel=1e-3)  # the Laplacian is +510 and -510 in turn
    assert pictures.contrast(two) == pytest.approx(0.5, abs=1e-3)
    assert pictures.entropy(two) == pytest.approx(1.0)
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    assert pictures.colourfulness(red) == pytest.approx(0.3 * np.hypot(255, 127.5), rel=1e-5)
    blurred = np.asarray(Pil.fromarray(stripes).resize((16, 16), Pil.Resampling.BOX).resize((64, 64)))
    assert pictures.sharpness(blurred) < 1


def test_bytes_and_floats_are_inverse() -> None:
    all_values = np.arange(256, dtype=np.uint8).reshape(1, 256, 1).repeat(3, 2)
    assert (pictures.bytes8(pictures.floats(all_values)) == all_values).all()
