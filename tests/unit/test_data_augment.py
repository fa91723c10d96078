"""Copies of pictures with true captions, transparent pictures on a colour, and the table of aspect buckets."""
from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

import safelight as sl
from safelight.data.augment import Change, Ways, applied, augment, drawn, fill, inscribed, swapped
from safelight.data.buckets import place, preview, table
from safelight.events import Note
from safelight.pictures import layers, read
from safelight.spec import Work
from safelight.train.held_out import split
from safelight.values import Blob, Caption, Dataset, Row

Keep = Callable[[bytes, str], Blob]
STILL = Change(False, 0.0, (0.5, 0.5, 1.0), 1.0, (1.0, 1.0, 1.0))


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    def work(content: bytes, suffix: str) -> Blob:
        path = tmp_path / f"kept-{hashlib.sha256(content).hexdigest()[:12]}{suffix}"
        path.write_bytes(content)
        return Blob.of(path)

    return work


def picture(path: Path, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Path:
    pixels = np.random.default_rng(size[0]).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    Pil.fromarray(pixels, mode).save(path)
    return path


def row(path: Path, *texts: str) -> Row:
    with Pil.open(path) as p:
        return Row(Blob.of(path), path.name, *p.size, tuple(Caption("file", t) for t in texts), "", {"measures": {"contrast": 1.0}})


def finished(work: Work[Dataset]) -> tuple[Dataset, list[str]]:
    notes: list[str] = []
    try:
        while True:
            event = next(work)
            notes += [event.text] if isinstance(event, Note) else []
    except StopIteration as stop:
        return stop.value, notes


@pytest.mark.parametrize(("text", "other"), [
    ("a cat on the left, looking right", "a cat on the right, looking left"), ("Left hand", "Right hand"), ("TOP LEFT", "TOP RIGHT"),
    ("左边的猫看着右边", "右边的猫看着左边"),
    ("brightly lit, leftovers", "brightly lit, leftovers"),
    ("the leftmost tree", "the rightmost tree"),
])
def test_sides_swapped(text: str, other: str) -> None:
    assert swapped(text) == other and swapped(other) == text


@pytest.mark.parametrize(("text", "skip", "swap"), [
    ("a red fox", True, True), ("a fox on the left", False, True), ("左边有一只狐狸", False, True),
    ("a sign with letters", False, False),
    ('a shirt that says "hi"', False, False), ("写着字的招牌", False, False),
    ("a wall clock", False, False), ("designed in silence", True, True),
    ("", True, True),
])
def test_what_may_be_mirrored(text: str, skip: bool, swap: bool) -> None:
    assert [Ways(flip=f).may_flip(text) for f in ("no", "skip", "swap")] == [False, skip, swap]


def test_mirrored_copies_have_true_captions_and_the_originals_stay(tmp_path: Path, keep: Keep) -> None:
    texts = ["a fox", "a fox on the left", "a sign", "狐狸在右边"]
    data = Dataset(tuple(row(picture(tmp_path / f"{i}.png", (48 + i, 32)), t) for i, t in enumerate(texts)))
    out, notes = finished(augment(data, Ways(flip="swap"), keep))
    assert [r.name for r in out] == ["0.png", "0-aug1.png", "1.png", "1-aug1.png", "2.png", "3.png", "3-aug1.png"]
    assert [r for r in out if r in data.rows] == list(data.rows)
    copies = {r.name: r for r in out if r not in data.rows}
    assert copies["1-aug1.png"].captions == (Caption("file", "a fox on the left"), Caption("file+flip", "a fox on the right"))
    assert copies["3-aug1.png"].caption == "狐狸在左边" and copies["0-aug1.png"].captions == data.rows[0].captions
    assert all((read(r.picture.path) == read(tmp_path / r.info["augmented"]["of"])[:, ::-1]).all() for r in copies.values())
    assert notes == ["augment: 1 of 4 pictures have no copy: their captions speak of sides, writing or the like"]
    skipped, _ = finished(augment(data, Ways(flip="skip"), keep))
    assert [r.name for r in skipped if r not in data.rows] == ["0-aug1.png"]
    assert "measures" not in copies["0-aug1.png"].info


def test_nothing_asked_for_changes_nothing(tmp_path: Path, keep: Keep) -> None:
    data = Dataset((row(picture(tmp_path / "a.png"), "x"),))
    out, notes = finished(augment(data, Ways(copies=3), keep))
    assert out.rows == data.rows and notes == ["augment: 1 of 1 pictures have no copy: nothing that may change was asked for"]


def test_copies_depend_on_seed_and_picture_alone(tmp_path: Path, keep: Keep) -> None:
    a, b = (row(picture(tmp_path / f"{n}.png", (40 + i, 30)), "x") for i, n in enumerate("ab"))
    ways = Ways(copies=3, rotate=10, scale=0.2, crop=0.2, colour=0.2, seed=1)
    both, alone = (finished(augment(Dataset(rows), ways, keep))[0] for rows in ((a, b), (b,)))
    assert [r.picture for r in both.rows[5:]] == [r.picture for r in alone.rows[1:]] and len({r.picture.sha256 for r in both}) == 8
    other, _ = finished(augment(Dataset((b,)), Ways(copies=3, rotate=10, scale=0.2, crop=0.2, colour=0.2, seed=2), keep))
    assert not {r.picture.sha256 for r in other.rows[1:]} & {r.picture.sha256 for r in alone}
    for r in both:
        with Pil.open(r.picture.path) as p:
            assert p.size == (r.width, r.height)


@pytest.mark.parametrize("degrees", [0.5, 7.0, -20.0, 45.0])
@pytest.mark.parametrize("size", [(64, 64), (90, 50), (31, 77)])
def test_a_turned_picture_has_no_corners(degrees: float, size: tuple[int, int]) -> None:
    """A white picture on Pillow's black ground stays white to the edges, and what is kept is as large as can be."""
    out = np.asarray(applied(Pil.new("RGB", size, (255, 255, 255)), Change(False, degrees, (0.0, 0.0, 1.0), 1.0, (1.0, 1.0, 1.0))))
    assert out[1:-1, 1:-1].min() > 250
    assert out.shape[0] == pytest.approx(size[1] * inscribed(*size, degrees), abs=1)


def test_a_window_lies_inside_and_colours_keep_their_hue() -> None:
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:, :, 0] = np.arange(100)
    cut = np.asarray(applied(Pil.fromarray(pixels), Change(False, 0.0, (1.0, 0.5, 0.5), 1.0, (1.0, 1.0, 1.0))))
    assert cut.shape == (30, 50, 3) and cut[0, 0, 0] == 50 and cut[0, -1, 0] == 99
    toned = np.asarray(applied(Pil.new("RGB", (8, 8), (200, 100, 50)), Change(False, 0.0, (0, 0, 1.0), 1.0, (0.8, 1.0, 1.2))))[0, 0]
    assert toned[0] > toned[1] > toned[2]
    assert applied(Pil.new("RGB", (8, 8)), STILL).size == (8, 8)
    assert applied(Pil.new("RGBA", (40, 20), (9, 9, 9, 0)), Change(True, 3.0, (0, 0, 0.9), 1.5, (1.1, 1, 1))).mode == "RGBA"


def test_drawn_changes_keep_to_what_was_asked() -> None:
    some = [drawn(Ways(rotate=5, scale=0.1, crop=0.3, colour=0.2, flip="skip"), Row(Blob("", str(i)), "x", 9, 9), 0) for i in range(300)]
    assert max(abs(c.degrees) for c in some) <= 5 and min(c.window[2] for c in some) >= 0.7
    assert all(0.9 <= c.factor <= 1.1 and all(0.8 <= t <= 1.2 for t in c.tones) for c in some)
    assert 0.4 < sum(c.flip for c in some) / 300 < 0.6


def test_copies_stay_on_the_side_of_their_original(tmp_path: Path, keep: Keep) -> None:
    data = Dataset(tuple(row(picture(tmp_path / f"{i}.png", (40 + i, 30)), "x") for i in range(8)))
    once, _ = finished(augment(data, Ways(copies=2, crop=0.2), keep))
    twice, _ = finished(augment(once, Ways(rotate=5), keep))
    assert len(twice) == 48 and len({r.info["augmented"]["sha256"] for r in twice if "augmented" in r.info}) == 8
    for seed in range(5):
        learn, held = split(twice.rows, 0.25, seed)
        names = [{twice.rows[i].name.partition("-aug")[0].removesuffix(".png") for i in side} for side in (learn, held)]
        assert held and not names[0] & names[1]


def test_a_background(tmp_path: Path, keep: Keep) -> None:
    Pil.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.webp", lossless=True)
    data = Dataset((row(tmp_path / "clear.webp", "a fox"), row(picture(tmp_path / "solid.png"), "a cat")))
    out, notes = finished(fill(data, ("gray",), keep, say=True))
    assert read(out.rows[0].picture.path)[0, 0].tolist() == [128, 128, 128]
    assert out.rows[0].name == "clear.png" and out.rows[0].caption == "a fox, gray background"
    assert out.rows[1] is data.rows[1] and notes == ["fill_background: 1 of 2 pictures had transparent places"]
    several, _ = finished(fill(data, ("#102030", "#405060"), keep, say=True))
    assert read(several.rows[0].picture.path)[0, 0].tolist() in ([16, 32, 48], [64, 80, 96]) and several.rows[0].caption == "a fox"
    for wrong in ("blurple", "rgb(300, 0, 0)"):
        with pytest.raises(ValueError, match=re.escape(f"colours: got {wrong!r}")):
            finished(fill(data, (wrong,), keep, say=False))


def test_of_an_animation_one_frame_is_decoded(tmp_path: Path, keep: Keep) -> None:
    frames = [Pil.new("RGBA", (20, 20), (i * 90, 0, 0, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert len(layers(tmp_path / "a.webp")[0]) == 3 and len(layers(tmp_path / "a.webp", most=1)[0]) == 1
    out, _ = finished(fill(Dataset((row(tmp_path / "a.webp", "x"),)), ("white",), keep, say=False))
    assert read(out.rows[0].picture.path).min() == 255


def test_the_table_is_sd_scripts() -> None:
    """By its formula for resolution 512 and buckets from 256 to 1024 in steps of 64, written out."""
    assert table(512) == ((256, 832), (256, 896), (256, 960), (256, 1024), (320, 704), (320, 768), (384, 640), (448, 576), (512, 512),
                          (576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256))
    assert (1024, 1024) in table(1024, most=2048) and all(w * h <= 1024 * 1024 for w, h in table(1024, most=2048))
    assert min(min(s) for s in table(512, least=384)) == 384
    with pytest.raises(ValueError, match="buckets: size 32"):
        table(32)


@pytest.mark.parametrize(("size", "bucket", "cut"), [
    ((512, 512), (512, 512), 0.0), ((1024, 1024), (512, 512), 0.0), ((1920, 1080), (640, 384), 0.0625), ((600, 900), (384, 640), 0.1),
    ((100, 5000), (256, 1024), 0.92),
])
def test_where_pictures_go(size: tuple[int, int], bucket: tuple[int, int], cut: float) -> None:
    found = place(*size, table(512))
    width, height = size[0] * found.factor, size[1] * found.factor
    assert found.bucket == bucket and found.cut == pytest.approx(cut, abs=0.005)
    assert width >= bucket[0] - 1e-6 and height >= bucket[1] - 1e-6, "the picture covers its bucket"


def test_small_pictures_may_keep_their_size() -> None:
    assert place(200, 150, table(512), upscale=False).bucket == (192, 128) and place(200, 150, table(512), upscale=False).factor == 1.0
    assert place(40, 150, table(512), upscale=False).factor > 1, "less than a step is nothing"
    assert place(900, 900, table(512), upscale=False) == place(900, 900, table(512))
    rows = [Row(Blob("", ""), "x", w, h) for w, h in ((512, 512), (1000, 1000), (100, 100), (768, 320))]
    assert [(f.bucket, f.count, f.enlarged) for f in preview(rows, table(512))] == [((512, 512), 3, 1), ((768, 320), 1, 0)]


def test_the_ops_make_files_in_the_store(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a fox on the left")
    out = sl.augment(sl.folder(tmp_path), flip="swap")
    assert out.rows[1].caption == "a fox on the right" and (read(out.rows[1].picture.path)[:, ::-1] == read(tmp_path / "a.png")).all()
    assert Path(out.rows[0].picture.path) == tmp_path / "a.png"
    assert sl.fill_background(out).rows == out.rows
