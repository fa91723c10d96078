"""The doctor: every seeded defect is found, once and as what it is, and a clean folder has none."""
from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.data.curation import COLOURS, HASH
from safelight.data.doctor import KINDS, Examined, Limits, examine
from safelight.data.folder import read_folder
from safelight.data.juicer.known import contents
from safelight.spec import Work

LIMITS = Limits(min_side=64, room=12, count=lambda text: len(text.split()))


def scene(seed: int, size: tuple[int, int] = (160, 128)) -> Pil.Image:
    """Smooth random blobs: unlike any other seed's, like their own copies in other sizes."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Pil.fromarray(coarse).resize(size, Pil.Resampling.BICUBIC)


def put(root: Path, name: str, seed: int, caption: str | None = None, size: tuple[int, int] = (160, 128)) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    scene(seed, size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n", "utf-8")
    return path


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """Twelve pictures in two splits, captions of three sorts, and what may lie beside them."""
    root = tmp_path / "set"
    for i in range(6):
        put(root, f"train/{i}.png", i, f"一只狐狸 {i}")
    for i in range(6, 9):
        put(root, f"train/{i}.jpg", i).with_suffix(".caption").write_text(f"a fox {i}")
    for i in range(9, 11):
        put(root, f"10_red fox/{i}.webp", i)
    put(root, "test/11.bmp", 11)
    (root / "test/metadata.csv").write_text("\ufefffile_name,text\n11.bmp,a fox\n", "utf-8")
    (root / "README.md").write_text("about")
    (root / "license.txt").write_text("CC0")
    (root / "train/0.npz").write_bytes(b"cached latents")
    return root


def examined(root: Path, limits: Limits = LIMITS, held_out: Path | None = None, kept: Path | None = None) -> Examined:
    work: Work[Examined] = examine(root, limits, held_out, kept)
    try:
        while True:
            next(work)
    except StopIteration as stop:
        found: Examined = stop.value
        return found


def test_a_clean_folder_has_no_finding(clean: Path) -> None:
    found = examined(clean)
    assert found.findings == () and len(found.rows) == 12 and found.files == 12 + 9 + 4


Seed = Callable[[Path], list[tuple[str, str]]]
SEEDS: list[Seed] = []


def seeded(plant: Seed) -> Seed:
    """A defect: plants it in a clean folder and says what should be found, as (kind, file)."""
    SEEDS.append(plant)
    return plant


@seeded
def no_caption(root: Path) -> list[tuple[str, str]]:
    put(root, "train/bare.png", 20)
    return [("no-caption", "train/bare.png")]


@seeded
def empty_captions(root: Path) -> list[tuple[str, str]]:
    put(root, "train/hollow.png", 21, "")
    put(root, "train/blank.png", 22, " \n\t ")
    return [("empty-caption", "train/hollow.txt"), ("empty-caption", "train/blank.txt")]


@seeded
def unread_extensions(root: Path) -> list[tuple[str, str]]:
    put(root, "train/moving.gif", 23, "x")
    (root / "train/web.jpg_large").write_bytes(put(root, "train/tmp.jpg", 24).read_bytes())
    (root / "train/tmp.jpg").unlink()
    (root / "train/web.txt").write_text("a b")
    put(root, "train/capital.png", 25, "c").with_suffix(".cap").write_text("unread")
    (root / "train/metadata.json1").write_text("{}")
    return [("extension", "train/moving.gif"), ("extension", "train/web.jpg_large"), ("extension", "train/capital.cap"),
            ("extension", "train/metadata.json1")]


@seeded
def wrong_extensions(root: Path) -> list[tuple[str, str]]:
    put(root, "train/really.png", 26, "d").rename(root / "train/really.jpg")
    put(root, "train/hidden.png", 27).rename(root / "train/hidden.log")
    return [("extension", "train/really.jpg"), ("extension", "train/hidden.log")]


@seeded
def upright_by_exif(root: Path) -> list[tuple[str, str]]:
    exif = Pil.Exif()
    exif[0x0112] = 6
    names = ["train/lying-j.jpg", "train/lying-p.png", "train/lying-w.webp"]
    for i, name in enumerate(names):
        put(root, name, 50 + i, name)
        scene(50 + i).save(root / name, exif=exif)
    return [("rotated", name) for name in names]


@seeded
def duplicates(root: Path) -> list[tuple[str, str]]:
    (root / "train/copy.png").write_bytes((root / "train/0.png").read_bytes())
    (root / "train/copy.txt").write_bytes((root / "train/0.txt").read_bytes())
    return [("duplicate", "train/copy.png")]


@seeded
def one_picture_two_captions(root: Path) -> list[tuple[str, str]]:
    (root / "train/other.png").write_bytes((root / "train/1.png").read_bytes())
    (root / "train/other.txt").write_text("something else")
    return [("conflict", "train/other.png")]


@seeded
def look_alikes(root: Path) -> list[tuple[str, str]]:
    put(root, "train/smaller.jpg", 2, "y", (120, 96))
    return [("near-duplicate", "train/smaller.jpg")]


@seeded
def leaks(root: Path) -> list[tuple[str, str]]:
    (root / "test/same.png").write_bytes((root / "train/3.png").read_bytes())
    put(root, "val/alike.jpg", 4, "z", (120, 96))
    (root / "test/same.txt").write_text("w")
    return [("leak", "test/same.png"), ("leak", "val/alike.jpg")]


@seeded
def tiny(root: Path) -> list[tuple[str, str]]:
    put(root, "train/icon.png", 28, "e", (63, 70))
    return [("tiny", "train/icon.png")]


@seeded
def broken(root: Path) -> list[tuple[str, str]]:
    whole = put(root, "train/cut.jpg", 29, "f", (640, 512))
    whole.write_bytes(whole.read_bytes()[:4000])
    middle = put(root, "train/hole.png", 30, "g", (320, 256))
    raw = bytearray(middle.read_bytes())
    raw[len(raw) // 2:len(raw) // 2 + 200] = bytes(200)
    middle.write_bytes(raw)
    (root / "train/zero.webp").write_bytes(b"")
    (root / "train/page.png").write_text("<html>404</html>")
    for name in ("zero", "page"):
        (root / f"train/{name}.txt").write_text("h")
    return [("corrupt", f"train/{n}") for n in ("cut.jpg", "hole.png", "zero.webp", "page.png")]


@seeded
def long_captions(root: Path) -> list[tuple[str, str]]:
    put(root, "train/wordy.png", 31, " ".join(["word"] * 13))
    put(root, "train/fits.png", 32, " ".join(["word"] * 12))
    return [("long-caption", "train/wordy.png")]


@seeded
def encodings(root: Path) -> list[tuple[str, str]]:
    for i, (name, raw) in enumerate({
        "bom": "狐狸".encode("utf-8-sig"), "gbk": "一只红色的狐狸".encode("gbk"), "wide": "a fox".encode("utf-16"),
        "be": "a fox".encode("utf-16-be"), "latin": "café crème".encode("latin-1"),
    }.items()):
        put(root, f"train/{name}.png", 33 + i).with_suffix(".txt").write_bytes(raw)
    return [("encoding", f"train/{n}.txt") for n in ("bom", "gbk", "wide", "be", "latin")]


@seeded
def lone_captions(root: Path) -> list[tuple[str, str]]:
    (root / "train/gone.txt").write_text("a fox")
    (root / "train/gone.caption").write_text("a fox")
    return [("orphan", "train/gone.txt"), ("orphan", "train/gone.caption")]


@seeded
def shared(root: Path) -> list[tuple[str, str]]:
    put(root, "train/pair.png", 40, "two")
    put(root, "train/pair.jpg", 41)
    return [("shared-caption", "train/pair.txt")]


@seeded
def odd_shapes(root: Path) -> list[tuple[str, str]]:
    put(root, "train/broad.png", 42, "i", (400, 100))
    put(root, "train/tall.png", 43, "j", (100, 301))
    return [("aspect", "train/broad.png"), ("aspect", "train/tall.png")]


@seeded
def several_lines(root: Path) -> list[tuple[str, str]]:
    put(root, "train/poem.png", 44, "a fox\nin the snow")
    return [("lines", "train/poem.txt")]


@seeded
def bad_tables(root: Path) -> list[tuple[str, str]]:
    put(root, "more/a.png", 45)
    (root / "more/metadata.jsonl").write_text('{"file_name": "a.png", "text": "k"}\n{"file_name": "absent.png", "text": "l"}\nnot json\n')
    (root / "worse").mkdir()
    (root / "worse/metadata.csv").write_bytes("file_name,text\na.png,红色狐狸\n".encode("gbk"))
    return [("table", "more/metadata.jsonl"), ("table", "more/absent.png"), ("encoding", "worse/metadata.csv")]


@pytest.mark.parametrize("plant", SEEDS, ids=lambda f: f.__name__)
def test_a_defect_is_found_as_what_it_is_and_nothing_else(plant: Seed, clean: Path) -> None:
    expected = plant(clean)
    found = examined(clean)
    assert sorted((f.kind, f.file) for f in found.findings) == sorted(expected), [f.text for f in found.findings]
    assert all(f.text and f.kind in KINDS for f in found.findings)


def test_all_at_once_found_of_total(clean: Path) -> None:
    """The number of the issue: seeded defects found / total, with no false alarm among the clean files."""
    before = {p.relative_to(clean).as_posix() for p in clean.rglob("*")}
    expected = [pair for plant in SEEDS for pair in plant(clean)]
    found = [(f.kind, f.file) for f in examined(clean).findings]
    assert len(expected) == 37 and sorted(found) == sorted(expected)
    assert not {file for _, file in found} & before
    assert {kind for kind, _ in found} == set(KINDS)


def test_words_that_help(clean: Path) -> None:
    encodings(clean)
    one_picture_two_captions(clean)
    texts = {f.file: f.text for f in examined(clean).findings}
    assert "as GBK it reads: 一只红色的狐狸" in texts["train/gbk.txt"] and "UTF-16" in texts["train/wide.txt"]
    assert texts["train/latin.txt"] == "it is not UTF-8 (byte 3)"
    assert texts["train/other.png"] == "says “something else”, and train/1.png says “一只狐狸 1”"


def test_a_held_out_folder_elsewhere_or_inside(clean: Path, tmp_path: Path) -> None:
    put(tmp_path, "judge/a.png", 5, "x")
    put(tmp_path, "judge/b.png", 99, "y")
    assert [(f.kind, f.file) for f in examined(clean, held_out=tmp_path / "judge").findings] == [("leak", "judge/a.png")]
    put(clean, "judged/c.jpg", 0, "z", (120, 96))
    assert [(f.kind, f.file) for f in examined(clean, held_out=clean / "judged").findings] == [("leak", "judged/c.jpg")]
    assert [f.kind for f in examined(clean).findings] == ["near-duplicate"]


def test_what_is_known_of_a_picture_is_not_measured_again(clean: Path, tmp_path: Path) -> None:
    kept = tmp_path / "measures.sqlite"
    hashes = [r.picture.sha256 for r in examined(clean, kept=kept).rows]
    with contents(kept, hashes) as known:
        assert {sha for sha, question in known if question == HASH} == set(hashes)
        for sha in hashes:
            known[sha, HASH] = "0" * 16
            known[sha, COLOURS] = "80" * 192
    assert {f.kind for f in examined(clean, kept=kept).findings} == {"near-duplicate", "leak"}, "what is kept is believed"


def test_limits_are_the_users(clean: Path) -> None:
    look_alikes(clean)
    assert examined(clean, Limits(min_side=64, distance=-1)).findings == ()
    assert {f.kind for f in examined(clean, Limits(min_side=129, max_aspect=1.1)).findings} == {"tiny", "aspect", "near-duplicate"}
    assert {f.kind for f in examined(clean, Limits(min_side=64, room=1, count=len, distance=-1)).findings} == {"long-caption"}


def test_no_file_is_changed_and_an_empty_folder_is_an_error(clean: Path, tmp_path: Path) -> None:
    for plant in SEEDS:
        plant(clean)
    before = {p: p.read_bytes() for p in clean.rglob("*") if p.is_file()}
    examined(clean)
    assert {p: p.read_bytes() for p in clean.rglob("*") if p.is_file()} == before
    (tmp_path / "void").mkdir()
    with pytest.raises(ValueError, match="has no files"):
        examined(tmp_path / "void")
    with pytest.raises(ValueError, match="is no folder"):
        examined(tmp_path / "nowhere")


def test_the_doctor_reads_what_the_folder_op_reads(clean: Path) -> None:
    work = read_folder(clean)
    try:
        while True:
            next(work)
    except StopIteration as stop:
        rows = {r.name: r.caption for r in stop.value.rows}
    assert {r.name: r.caption for r in examined(clean).rows} == rows


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
@pytest.mark.parametrize("name", ["pipe.txt", "pipe.png", "metadata.csv"])
def test_what_is_no_file_is_not_waited_for(clean: Path, make: Callable[[Path], None], name: str) -> None:
    make(clean / name)
    found = examined(clean).findings
    assert [f.kind for f in found] in ([], ["corrupt"], ["encoding"], ["table"], ["orphan"])


def test_a_held_out_folder_that_is_none(clean: Path) -> None:
    for wrong in (clean / "nothing", clean.parent / "nothing", clean / "README.md"):
        with pytest.raises(ValueError, match=r"(nothing|README\.md) is no folder"):
            examined(clean, held_out=wrong)
