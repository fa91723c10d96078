"""Preprocessors against what can be said of them: a step is one line, a stroke is where it is dark, a grid has a grid's colours."""
import numpy as np
import pytest

import safelight as sl
from safelight.data.hints import HINTS, Asked, make
from safelight.data.hints.lines import GREY


def step(high: int = 32, wide: int = 40, at: int = 20, left: float = 0.0, right: float = 1.0) -> np.ndarray:
    pixels = np.full((1, high, wide, 3), left, np.float32)
    pixels[:, :, at:] = right
    return pixels


def run(pixels: np.ndarray, by: str, **asked: float) -> np.ndarray:
    return make(pixels, by, Asked(**asked))[0]


@pytest.mark.parametrize("by", sorted(HINTS))
@pytest.mark.parametrize("size", [(16, 16), (33, 21), (1, 1)])
def test_a_hint_is_as_large_as_its_picture_and_in_range(by: str, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random((2, *size, 3), dtype=np.float32)
    out = make(pixels, by, Asked())
    assert out.shape == pixels.shape and out.dtype == np.float32 and 0 <= out.min() <= out.max() <= 1
    assert np.array_equal(out[1], make(pixels[1:], by, Asked())[0])


def test_canny_draws_a_step_as_a_line_of_one_pixel() -> None:
    for pixels in (step(), step().transpose(0, 2, 1, 3), 1 - step()):
        lines = run(pixels, "canny")[..., 0]
        lines = lines.T if pixels.shape[1] == 40 else lines
        assert set(np.unique(lines)) == {0, 1}
        assert (lines.sum(axis=1) == 1).all()
        assert {int(i) for i in lines.argmax(axis=1)} <= {19, 20} and len(set(lines.argmax(axis=1))) == 1


def test_canny_draws_a_disc_as_a_thin_ring() -> None:
    y, x = np.mgrid[:64, :64] - 31.5
    disc = np.repeat((np.hypot(x, y) < 20).astype(np.float32)[None, ..., None], 3, axis=3)
    lines = run(disc, "canny")[..., 0] > 0
    away = np.abs(np.hypot(x, y)[lines] - 20)
    assert away.max() < 1.2
    assert 100 < lines.sum() < 1.2 * 2 * np.pi * 20
    blocks = lines[:-1, :-1] & lines[1:, :-1] & lines[:-1, 1:] & lines[1:, 1:]
    assert not blocks.any(), "nowhere two pixels thick"


def test_cannys_thresholds_are_slopes() -> None:
    """Sobel gives a step of height h, blurred by a Gaussian of 5 taps, the slope 4 h (g0 + g1): taps of the two pixels beside the step."""
    taps = np.exp(-np.arange(-2, 3) ** 2 / 2)
    slope = 4 * 0.25 * (taps[2] + taps[3]) / taps.sum()
    assert run(step(right=0.25), "canny", low=slope * 0.5, high=slope * 0.99).sum() > 0
    assert run(step(right=0.25), "canny", low=slope * 0.5, high=slope * 1.01).sum() == 0


def test_canny_follows_a_weak_edge_from_a_strong_one() -> None:
    fading = step(high=64)
    fading[:, :, 20:] *= np.linspace(1, 0.2, 64, dtype=np.float32)[:, None, None]
    alone = step(high=32, right=0.2)
    assert run(alone, "canny", low=0.2, high=1.5).sum() == 0
    lines = run(fading, "canny", low=0.2, high=1.5)[..., 0]
    assert (lines[:, 18:22].sum(axis=1) == 1).all()


def test_canny_sees_edges_of_colour_alone() -> None:
    pixels = step()
    pixels[0, :, :20] = [1, 0, 0]
    pixels[0, :, 20:] = [0, GREY[0] / GREY[1], 0]  # as bright
    assert (run(pixels, "canny")[..., 0].sum(axis=1) == 1).all()


def test_canny_refuses_thresholds_the_wrong_way_round() -> None:
    with pytest.raises(ValueError, match=r"hint: low: got 0\.9, expected at most high, which is 0\.5"):
        run(step(), "canny", low=0.9, high=0.5)


@pytest.mark.parametrize("by", ["scribble", "lineart"])
def test_strokes_are_where_a_line_is_dark(by: str) -> None:
    paper = np.ones((1, 128, 128, 3), np.float32)
    paper[:, :, 62:66] = 0
    strokes = run(paper, by)[..., 0]
    assert strokes[:, 62:66].mean() > 0.4 and strokes[:, :50].max() == 0 and strokes[:, 78:].max() == 0
    assert run(1 - paper, by)[:, 62:66].max() == 0, "a light line is no stroke"
    assert run(np.full_like(paper, 0.5), by).max() == 0


def test_scribble_is_black_and_white_and_lineart_is_not() -> None:
    soft = step(128, 128, 64, left=0.4, right=0.6)
    assert set(np.unique(run(soft, "scribble"))) <= {0.0, 1.0}
    assert len(np.unique(run(soft, "lineart"))) > 5


def test_a_size_is_counted_at_512() -> None:
    """Twice as large a picture gives the same grid, and the size asked for is that of its squares."""
    small = np.random.default_rng(1).random((1, 128, 256, 3), dtype=np.float32)
    large = small.repeat(4, axis=1).repeat(4, axis=2)
    assert np.allclose(run(large, "colour")[2::4, 2::4], run(small, "colour"), atol=1e-5)
    assert np.abs(run(large, "tile")[2::4, 2::4] - run(small, "tile")).mean() < 0.02
    cells = run(large, "colour", size=128)
    assert len(np.unique(cells[:, 0, 0])) == 4 and len(np.unique(cells[0, :, 0])) == 8


def test_colour_has_the_means_of_its_squares() -> None:
    pixels = np.random.default_rng(2).random((1, 512, 512, 3), dtype=np.float32)
    cells = run(pixels, "colour")
    assert np.allclose(cells[64:128, 128:192], pixels[0, 64:128, 128:192].mean(axis=(0, 1)), atol=1e-5)


def test_tile_and_blur_keep_what_is_coarse() -> None:
    ramp = np.broadcast_to(np.linspace(0, 1, 512, dtype=np.float32)[None, None, :, None], (1, 512, 512, 3)).copy()
    noisy = ramp + np.random.default_rng(3).normal(0, 0.2, ramp.shape).astype(np.float32)
    for by in ("tile", "blur"):
        inside = np.abs(run(noisy, by) - ramp[0])[32:-32, 32:-32]
        assert inside.mean() < 0.04 and np.abs(noisy - ramp).mean() > 0.15


def test_invert_is_its_own_inverse() -> None:
    pixels = np.random.default_rng(4).random((1, 8, 8, 3), dtype=np.float32)
    assert np.array_equal(run(pixels, "invert"), 1 - pixels[0])


def test_the_op_makes_hints_of_a_batch() -> None:
    pixels = np.concatenate([step(), 1 - step()])
    out = sl.hint(sl.Image(pixels), by="canny", low=0.1, high=0.2)
    assert np.array_equal(out.pixels, make(pixels, "canny", Asked(None, 0.1, 0.2)))
    with pytest.raises(ValueError, match="expected one of blur, canny, colour, invert, lineart, scribble, tile"):
        make(pixels, "depth", Asked())
