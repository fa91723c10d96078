"""Pictures and masks scaled, cut, laid on each other, softened: against torch, Pillow, scipy and the arithmetic written out."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pil

from safelight.op import Op, load_ops
from safelight.values import Image, Mask

OPS: dict[str, Op[..., Any]] = dict(load_ops())
Pixels = NDArray[np.float32]


def picture(high: int = 12, wide: int = 18, count: int = 2, seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).random((count, high, wide, 3), dtype=np.float32)
    return Image(pixels, tuple({"seed": i} for i in range(count)))


def mask(high: int = 12, wide: int = 18, seed: int = 0) -> Mask:
    return Mask(np.random.default_rng(seed).random((1, high, wide), dtype=np.float32))


def grid(image: Image) -> torch.Tensor:
    return torch.from_numpy(image.pixels).permute(0, 3, 1, 2)


def as_image(x: torch.Tensor) -> Pixels:
    return x.permute(0, 2, 3, 1).numpy()


# From files.


@pytest.fixture
def clear(tmp_path: Path) -> Path:
    """4 x 2, red; half of it half transparent; turned by EXIF so that it shows as 2 x 4."""
    rgba = np.zeros((2, 4, 4), np.uint8)
    rgba[..., 0], rgba[..., 3] = 200, 255
    rgba[:, :2, 3] = 51
    exif = Pil.Exif()
    exif[0x0112] = 6
    Pil.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    return tmp_path / "a.png"


def test_transparency_becomes_a_mask(clear: Path) -> None:
    white, raw = OPS["load_image"](clear), OPS["load_image"](clear, raw=True)
    assert white.pixels.shape == raw.pixels.shape == (1, 4, 2, 3)
    assert np.allclose(raw.pixels, np.array([200 / 255, 0, 0])), "the colours under it stay"
    assert np.allclose(white.pixels[0, 0, 0], [1 - 0.2 * 55 / 255, 0.8, 0.8], atol=1 / 255)
    got = OPS["load_mask"](clear, channel="transparency").values
    assert got.shape == (1, 4, 2) and got[0, :, 0].tolist() == pytest.approx([0.8, 0.8, 0, 0])
    assert np.allclose(OPS["load_mask"](clear, channel="red").values, 200 / 255)
    assert np.allclose(OPS["load_mask"](clear, channel="blue", invert=True).values, 1)


def test_a_picture_without_transparency_gives_an_empty_mask(tmp_path: Path) -> None:
    Pil.new("L", (5, 3), 100).save(tmp_path / "a.png")
    got = OPS["load_mask"](tmp_path / "a.png", channel="transparency").values
    assert got.shape == (1, 64, 64) and not got.any()
    assert np.allclose(OPS["load_mask"](tmp_path / "a.png").values, 100 / 255)


def test_every_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Pil.new("RGB", (6, 4), (40 * i, 0, 0)) for i in range(1, 4)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert len(OPS["load_image"](tmp_path / "a.webp")) == 1
    moving = OPS["load_image"](tmp_path / "a.webp", raw=True)
    assert [round(float(p.mean() * 3 * 255)) for p in moving.pixels] == [40, 80, 120] and len(moving.info) == 3


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"load_image: path: .*a\.png"):
        OPS["load_image"](tmp_path / "a.png", raw=True)


# Where pixels are.


@pytest.mark.parametrize("method", ["nearest-exact", "bilinear", "area", "bicubic"])
def test_scaling_is_torchs(method: str) -> None:
    image = picture()
    want = as_image(torch.nn.functional.interpolate(grid(image), (18, 27), mode=method))
    for how in ({"width": 27, "height": 18}, {"by": 1.5}, {"width": 27}, {"longest": 27}):
        got = OPS["scale_image"](image, method=method, **how)
        assert np.array_equal(got.pixels, want) and [row["seed"] for row in got.info] == [0, 1]
    cut = OPS["scale_image"](image, width=24, height=24, method=method, crop=True).pixels
    assert np.array_equal(cut, as_image(torch.nn.functional.interpolate(grid(image)[..., 3:15], (24, 24), mode=method)))


def test_lanczos_is_pillows() -> None:
    image = picture()
    got = OPS["scale_image"](image, width=31, height=9, method="lanczos").pixels
    for pixels, made in zip(image.pixels, got, strict=True):
        want = Pil.fromarray((pixels * 255).astype(np.uint8)).resize((31, 9), Pil.Resampling.LANCZOS)
        assert np.array_equal(made, np.asarray(want, np.float32) / 255)


def test_sizes() -> None:
    image = picture(100, 50, 1)
    assert OPS["scale_image"](image) is not None and np.array_equal(OPS["scale_image"](image).pixels, image.pixels)
    shape = {name: OPS["scale_image"](image, method="area", **how).pixels.shape[1:3] for name, how in {
        "height": {"height": 51}, "longest": {"longest": 30}, "megapixels": {"megapixels": 0.01},
    }.items()}
    assert shape == {"height": (51, 26), "longest": (30, 15), "megapixels": (145, 72)}


def test_cut_turned_mirrored() -> None:
    image = picture()
    assert np.array_equal(OPS["crop_image"](image, width=5, height=99, x=3, y=10).pixels, image.pixels[:, 10:, 3:8])
    assert OPS["crop_image"](image, width=5, height=5, x=99, y=99).pixels.shape == (2, 1, 1, 3)
    assert np.array_equal(OPS["turn_image"](image, degrees=90).pixels, np.rot90(image.pixels, -1, (1, 2)))
    assert np.array_equal(OPS["turn_image"](image, mirror="left-right").pixels, image.pixels[:, :, ::-1])


def test_padding_and_its_mask() -> None:
    image = picture(20, 24, 1)
    around = {"left": 3, "bottom": 2}
    padded = OPS["pad_image"](image, **around).pixels
    assert padded.shape == (1, 22, 27, 3) and np.array_equal(padded[:, :20, 3:], image.pixels)
    assert (padded[:, 20:] == 0.5).all() and (padded[:, :, :3] == 0.5).all()
    got = OPS["pad_mask"](image, **around, feather=4).values[0]
    assert (got[20:] == 1).all() and (got[:, :3] == 1).all()
    inside = got[:20, 3:]
    for y, x in ((0, 0), (0, 3), (0, 4), (19, 10), (16, 10), (19, 23), (0, 23)):
        near = min(x, 20 - y)
        assert inside[y, x] == pytest.approx(max(0, (4 - near) / 4) ** 2), (y, x)
    assert not OPS["pad_mask"](image, **around, feather=10).values[0, :20, 3:].any(), "wider than half the picture: none"


def test_new_ones_and_batches() -> None:
    plain = OPS["empty_image"](width=4, height=3, count=2, colour=0x336699)
    assert plain.pixels.shape == (2, 3, 4, 3) and np.allclose(plain.pixels, [0.2, 0.4, 0.6])
    joined = OPS["join_images"]([picture(count=1), plain])
    assert joined.pixels.shape == (3, 12, 18, 3) and [row.get("seed") for row in joined.info] == [0, None, None]
    want = torch.nn.functional.interpolate(grid(plain)[..., :2, :], (12, 18), mode="bilinear")
    assert np.allclose(joined.pixels[1:], as_image(want)) or np.allclose(joined.pixels[1:], [0.2, 0.4, 0.6])
    with pytest.raises(ValueError, match="got none"):
        OPS["join_images"]([])


def test_pasting() -> None:
    under, over = picture(), picture(6, 8, 1, seed=1)
    got = OPS["paste_image"](under, over, x=14, y=9).pixels
    want = under.pixels.copy()
    want[:, 9:, 14:] = over.pixels[:, :3, :4]
    assert np.array_equal(got, want)
    m = mask(6, 8)
    got = OPS["paste_image"](under, over, x=2, y=1, mask=m).pixels[:, 1:7, 2:10]
    w = m.values[..., None]
    assert np.allclose(got, over.pixels * w + under.pixels[:, 1:7, 2:10] * (1 - w), atol=1e-6)
    fitted = OPS["paste_image"](under, over, fit=True).pixels
    assert np.allclose(fitted, as_image(torch.nn.functional.interpolate(grid(over), (12, 18), mode="bilinear")), atol=1e-6)
    assert np.array_equal(OPS["paste_image"](under, over, x=999).pixels, under.pixels)


# Colours.


def blurred(pixels: Pixels, radius: int, sigma: float) -> Pixels:
    """The bell's sum written out, the picture mirrored at its edges."""
    at = np.linspace(-1, 1, 2 * radius + 1)
    bell = np.exp(-(at[:, None] ** 2 + at**2) / (2 * sigma**2))
    bell /= bell.sum()
    wide = np.pad(pixels.astype(np.float64), ((0, 0), (radius, radius), (radius, radius), (0, 0)), mode="reflect")
    high, width = pixels.shape[1:3]
    parts = [wide[:, i : i + high, j : j + width] * bell[i, j] for i in range(len(at)) for j in range(len(at))]
    return np.sum(parts, axis=0).astype(np.float32)


def test_blur_and_sharpen() -> None:
    image = picture()
    soft = blurred(image.pixels, 3, 0.7)
    assert np.allclose(OPS["blur_image"](image, radius=3, sigma=0.7).pixels, soft, atol=1e-6)
    # Ten times the amount of the blur is taken away, and as much of the picture itself added.
    want = np.clip(image.pixels * 6 - soft * 5, 0, 1)
    assert np.allclose(OPS["sharpen_image"](image, radius=3, sigma=0.7, amount=0.5).pixels, want, atol=2e-5)
    with pytest.raises(ValueError, match="got 12 for a picture of 18 x 12 pixels"):
        OPS["blur_image"](image, radius=12)


@pytest.mark.parametrize("dither", ["none", "floyd-steinberg", "bayer-4"])
def test_few_colours(dither: str) -> None:
    image = picture(16, 16, 1)
    got = OPS["quantize_image"](image, colours=5, dither=dither).pixels
    assert len(np.unique(got.reshape(-1, 3), axis=0)) <= 5
    source = Pil.fromarray((image.pixels[0] * 255).astype(np.uint8))
    palette = source.quantize(colors=5)
    if dither != "bayer-4":
        by = Pil.Dither.FLOYDSTEINBERG if dither != "none" else Pil.Dither.NONE
        want = source.quantize(palette=palette, dither=by)
    else:
        # Thresholds of a 4 x 4 pattern: the 2 x 2 one in each quarter of itself.
        small = np.array([[-1.5, 0.5], [1.5, -0.5]]) / 4
        pattern = np.block([[4 * small * 4 - 1.5, 4 * small * 4 + 0.5], [4 * small * 4 + 1.5, 4 * small * 4 - 0.5]]) / 16
        moved = np.asarray(source, np.float64) + (512 / (len(palette.getpalette() or ()) // 3) * np.tile(pattern, (4, 4)) + 0.5)[..., None]
        want = Pil.fromarray(np.clip(moved, 0, 255).astype(np.uint8)).quantize(palette=palette, dither=Pil.Dither.NONE)
    assert np.array_equal(got[0], np.asarray(want.convert("RGB"), np.float32) / 255)


def test_blending() -> None:
    a, b = picture(), picture(seed=1)
    p, q = a.pixels, b.pixels
    want = {
        "normal": q, "multiply": p * q, "screen": p + q - p * q, "difference": p - q,
        "overlay": np.where(p <= 0.5, 2 * p * q, 1 - 2 * (1 - p) * (1 - q)),
        "soft_light": np.where(
            q <= 0.5, p - (1 - 2 * q) * p * (1 - p),
            p + (2 * q - 1) * (np.where(p <= 0.25, ((16 * p - 12) * p + 4) * p, np.sqrt(p)) - p),
        ),
    }
    for how, full in want.items():
        got = OPS["blend_images"](a, b, how=how, amount=0.3).pixels
        assert np.allclose(got, np.clip(p * 0.7 + full * 0.3, 0, 1), atol=1e-6), how
    assert np.array_equal(OPS["invert_image"](a).pixels, 1 - p)
    assert OPS["blend_images"](a, picture(5, 5, 1)).pixels.shape == p.shape


# Masks.


def test_masks_and_pictures() -> None:
    image = picture()
    assert np.array_equal(OPS["mask_of"](image, channel="green").values, image.pixels[..., 1])
    m = mask()
    assert np.array_equal(OPS["mask_of"](OPS["image_of"](m), channel="blue").values, m.values)
    flat = OPS["empty_image"](width=2, height=2, colour=0x336699)
    assert OPS["mask_of"](flat, channel="colour", colour=0x336699).values.all()
    assert not OPS["mask_of"](flat, channel="colour", colour=0x336698).values.any()
    assert (OPS["solid_mask"](value=0.25, width=3, height=2).values == np.full((1, 2, 3), 0.25)).all()
    assert np.array_equal(OPS["invert_mask"](m).values, 1 - m.values)
    assert np.array_equal(OPS["crop_mask"](m, x=3, y=4, width=5, height=99).values, m.values[:, 4:, 3:8])
    assert np.array_equal(OPS["threshold_mask"](m, value=0.3).values, (m.values > 0.3).astype(np.float32))
    with pytest.raises(ValueError, match="expected a place inside 18 x 12"):
        OPS["crop_mask"](m, x=18)


@pytest.mark.parametrize("how", ["multiply", "add", "subtract", "and", "or", "xor"])
def test_putting_masks_together(how: str) -> None:
    a, b = mask(), mask(6, 6, seed=1)
    got = OPS["combine_masks"](a, b, how=how, x=14, y=2).values
    p, q = a.values[:, 2:8, 14:], b.values[:, :, :4]
    bits = {"and": np.minimum, "or": np.maximum, "xor": lambda s, t: abs(s - t)}
    numbers = {"multiply": p * q, "add": p + q, "subtract": p - q}
    want = a.values.copy()
    want[:, 2:8, 14:] = numbers[how] if how in numbers else bits[how](p.round(), q.round())
    assert np.allclose(got, want.clip(0, 1))


def test_soft_edges() -> None:
    got = OPS["feather_mask"](OPS["solid_mask"](width=8, height=6), left=4, bottom=2).values[0]
    assert got[0].tolist() == [0.25, 0.5, 0.75, 1, 1, 1, 1, 1] and got[:, 7].tolist() == [1, 1, 1, 1, 1, 0.5]
    assert got[5, 0] == 0.125
    assert OPS["feather_mask"](OPS["solid_mask"](width=4, height=4), right=9).values[0, 0].tolist() == [1, 0.75, 0.5, 0.25]


def test_growing_and_shrinking() -> None:
    dot = np.zeros((2, 7, 7), np.float32)
    dot[0, 3, 3] = 0.5
    round_ = OPS["grow_mask"](Mask(dot), by=2).values
    y, x = np.mgrid[-3:4, -3:4]
    assert np.array_equal(round_[0], np.where(abs(x) + abs(y) <= 2, np.float32(0.5), 0)) and not round_[1].any()
    square = OPS["grow_mask"](Mask(dot), by=2, tapered=False).values
    assert np.array_equal(square[0], np.where(np.maximum(abs(x), abs(y)) <= 2, np.float32(0.5), 0))
    assert np.array_equal(OPS["grow_mask"](Mask(round_), by=-2).values, dot)
    assert np.array_equal(OPS["grow_mask"](Mask(dot)).values, dot)
