"""Curation: planted defects are found, nothing else is dropped, and the best of several copies stays."""
from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageEnhance, ImageFilter

from safelight.data.curation import HASH, Rule, curate
from safelight.data.duplicates import BRUTE, close_pairs, coarse, phash, repeats
from safelight.data.folder import read_folder
from safelight.data.juicer.known import contents
from safelight.data.measures import find
from safelight.events import Progress
from safelight.values import Dataset

EXAMPLES = Path(__file__).parents[2] / "examples" / "pixel-people"
RULES = [Rule("min_side", "too small", low=128), Rule("aspect", "odd shape", low=0.333, high=3.0), Rule("contrast", "blank", low=0.02)]


def finished(work: Generator[Any, None, Dataset]) -> Dataset:
    while True:
        try:
            assert isinstance(next(work), Progress)
        except StopIteration as stop:
            assert isinstance(stop.value, Dataset)
            return stop.value


def load(path: Path) -> Dataset:
    work = read_folder(path)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def scene(seed: int, size: int = 256) -> Pil.Image:
    """A smooth random picture, different for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), dtype=np.uint8)
    return Pil.fromarray(coarse).resize((size, size), Pil.Resampling.BICUBIC)


def test_the_example_set_loses_its_four_flaws() -> None:
    data = finished(curate(load(EXAMPLES), RULES))
    dropped = {r.name: r.dropped.partition(":")[0] for r in data.rows if r.dropped}
    assert dropped == {"person-04-copy.png": "duplicate", "person-11-small.jpg": "near duplicate", "thumbnail.png": "too small",
                       "broken-download.jpg": "unreadable"}
    assert len(data) == 30 and all(r.caption for r in data)


def test_reasons_and_measures(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "good.png")
    scene(1, 100).save(tmp_path / "small.png")
    scene(2).resize((900, 200)).save(tmp_path / "wide.png")
    Pil.new("RGB", (300, 300), "navy").save(tmp_path / "blank.png")
    raw = scene(3).tobytes()
    Pil.frombytes("RGB", (256, 256), raw).save(tmp_path / "rotten.png")
    damaged = bytearray((tmp_path / "rotten.png").read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "rotten.png").write_bytes(damaged)
    data = finished(curate(load(tmp_path), RULES))
    rows = {r.name: r for r in data.rows}
    assert rows["good.png"].dropped == "" and set(rows["good.png"].info["measures"]) == {"min_side", "aspect", "contrast"}
    assert rows["small.png"].dropped == "too small: shorter side 100 px is below 128 px"
    assert rows["wide.png"].dropped == "odd shape: aspect ratio 4.5 is above 3"
    assert rows["blank.png"].dropped == "blank: contrast 0 is below 0.02"
    assert rows["rotten.png"].dropped.startswith("unreadable: ")
    assert [r.name for r in data.rows] == sorted(rows)


def test_a_blurred_picture(tmp_path: Path) -> None:
    sharp = Pil.effect_noise((256, 256), 60).convert("RGB")
    sharp.save(tmp_path / "sharp.png")
    sharp.filter(ImageFilter.GaussianBlur(6)).save(tmp_path / "soft.png")
    data = finished(curate(load(tmp_path), [Rule("sharpness", "blurred", low=20)], distance=-1))
    assert [r.name for r in data] == ["sharp.png"]


COPIES = {
    "jpeg": lambda p: p,
    "half": lambda p: p.resize((128, 128), Pil.Resampling.LANCZOS),
    "brighter": lambda p: ImageEnhance.Brightness(p).enhance(1.1),
    "grainy": lambda p: Pil.blend(p, Pil.effect_noise(p.size, 40).convert("RGB"), 0.08),
    "cropped": lambda p: p.crop((2, 2, 254, 254)),
}


@pytest.mark.parametrize("how", COPIES)
def test_copies_are_found_and_the_original_stays(tmp_path: Path, how: str) -> None:
    for seed in range(12):
        scene(seed).save(tmp_path / f"{seed}.png")
        COPIES[how](scene(seed)).save(tmp_path / f"{seed}-copy.jpg", quality=60)
    data = finished(curate(load(tmp_path), [], distance={"cropped": 16, "brighter": 8}.get(how, 6)))  # a shift and clipped lights move bits
    assert [r.name for r in data] == sorted(f"{seed}.png" for seed in range(12))


def test_a_recoloured_drawing_is_no_copy(tmp_path: Path) -> None:
    for name, hue in (("a", (200, 40, 40)), ("b", (40, 40, 200))):
        page = np.full((200, 200, 3), 255, np.uint8)
        page[50:150, 60:140] = hue
        Pil.fromarray(page).save(tmp_path / f"{name}.png")
    assert len(finished(curate(load(tmp_path), []))) == 2


def test_switched_off_nothing_is_decoded(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    damaged = bytearray((tmp_path / "a.png").read_bytes())
    damaged[60] ^= 255
    (tmp_path / "b.png").write_bytes(damaged)
    assert len(finished(curate(load(tmp_path), RULES[:2], distance=-1))) == 2


def test_known_measures_are_not_taken_again(tmp_path: Path) -> None:
    scene(0).save(tmp_path / "a.png")
    data = load(tmp_path)
    known = {(data.rows[0].picture.sha256, find("contrast").question): 0.001}
    assert finished(curate(data, RULES, known=known)).rows[0].dropped.startswith("blank")
    fresh: dict[tuple[str, str], float] = {}
    finished(curate(data, RULES, known=fresh))
    assert {m for _, m in fresh} == {find("contrast").question, HASH}


def test_other_thresholds_open_no_picture(tmp_path: Path) -> None:
    """With everything known the files may be gone, and the verdicts are those of somebody who still has them."""
    for i in range(4):
        scene(i).save(tmp_path / f"{i}.png")
        scene(i).resize((200, 200)).save(tmp_path / f"{i}-copy.jpg")
    Pil.new("RGB", (300, 300), "navy").save(tmp_path / "blank.png")
    data, file = load(tmp_path), tmp_path / "measures.sqlite"
    others = [*RULES[:2], Rule("contrast", "blank", low=0.0), Rule("brightness", "dark", low=0.2)]
    wanted = finished(curate(data, others, distance=4))
    for rules in ([*RULES, Rule("brightness", "dark", low=0.0)], others):
        with contents(file, [r.picture.sha256 for r in data.rows]) as known:
            found = finished(curate(data, rules, distance=4, known=known))
        for picture in (*tmp_path.glob("*.png"), *tmp_path.glob("*.jpg")):
            picture.unlink()
    assert [(r.dropped, r.info) for r in found.rows] == [(r.dropped, r.info) for r in wanted.rows]
    assert len({r.dropped.partition(":")[0] for r in found.rows}) >= 2


KILLED = """
import os, signal, sys
from pathlib import Path
from safelight.data.juicer import known
from tests.unit.test_data_curation import RULES, contents, curate, load
known.SECONDS = 0.0
data = load(Path(sys.argv[1]))
with contents(Path(sys.argv[2]), [r.picture.sha256 for r in data.rows]) as kept:
    for event in curate(data, RULES, known=kept):
        if event.step == 40:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_measured_outlives_a_kill(tmp_path: Path) -> None:
    folder, file = tmp_path / "pictures", tmp_path / "measures.sqlite"
    folder.mkdir()
    for i in range(60):
        scene(i, 140).save(folder / f"{i:02}.png")
    data = load(folder)
    calm = finished(curate(data, RULES))
    ran = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(file)], cwd=EXAMPLES.parents[1], check=False)
    assert ran.returncode == -signal.SIGKILL
    for i in range(40):  # who opened one now would call it unreadable
        (folder / f"{i:02}.png").unlink()
    with contents(file, [r.picture.sha256 for r in data.rows]) as known:
        again = finished(curate(data, RULES, known=known))
    assert again.rows == calm.rows and len(again) == 60


def test_what_was_dropped_before_stays_dropped(tmp_path: Path) -> None:
    scene(0, 100).save(tmp_path / "a.png")
    scene(1).save(tmp_path / "b.png")
    once = finished(curate(load(tmp_path), RULES))
    assert finished(curate(once, [])).rows == once.rows


@pytest.mark.parametrize("n", [60, BRUTE + 500])
def test_close_pairs_are_exact(n: int) -> None:
    """Planted and chance pairs alike: the same answer as comparing everything."""
    rng = np.random.default_rng(n)
    hashes = rng.integers(0, 2**63, n, dtype=np.uint64)
    for i in range(0, 40, 2):
        hashes[i + 1] = hashes[i] ^ np.uint64(sum(1 << int(b) for b in rng.choice(64, i % 6, replace=False)))
    gaps = np.concatenate([np.bitwise_count(hashes[i] ^ hashes[i + 1:]) for i in range(n)])
    for distance in (0, 3, 5):
        pairs = close_pairs(hashes, distance)
        assert len(pairs) == (gaps <= distance).sum() > 0
        assert (np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]) <= distance).all()


def test_many_equal_pictures_cost_no_more_than_one() -> None:
    assert repeats([7] * 30000, 4, lambda a, b: True) == dict.fromkeys(range(1, 30000), (0, 0))


def test_no_chains() -> None:
    """b looks like a, c like b but not like a: c stays."""
    assert repeats([0, 0b111, 0b111111], 4, lambda a, b: True) == {1: (0, 3)}


def test_hashes_survive_what_they_should() -> None:
    for seed in range(8):
        p = np.asarray(scene(seed))
        smaller = np.asarray(scene(seed).resize((90, 90), Pil.Resampling.LANCZOS))
        other = np.asarray(scene(seed + 100))
        assert (phash(p) ^ phash(smaller)).bit_count() <= 3
        assert (phash(p) ^ phash(other)).bit_count() >= 12
        assert coarse(p).shape == (192,)


def test_what_is_chosen_by_hand_counts_more_than_the_rules(tmp_path: Path) -> None:
    import safelight as sl

    data, table = sl.curate(sl.folder(EXAMPLES)), tmp_path / "choices.csv"
    rows = ["file_name,text", "person-11.png,the other is kept", "person-11-small.jpg,keep", "broken-download.jpg,keep", "person-02.png,"]
    table.write_text("\n".join(rows))
    now = {row.name: row.dropped for row in sl.choose_pictures(data, path=table).rows}
    before = {row.name: row.dropped for row in data.rows}
    assert before["person-11-small.jpg"].startswith("near duplicate") and not before["person-11.png"]
    changed = {"person-11.png": "the other is kept", "person-11-small.jpg": ""}
    assert now == before | changed, "what cannot be read is not taken back, an empty text is no choice"
    table.write_text("file_name,text\nnobody.png,keep\n")
    with pytest.raises(ValueError, match=r"choose_pictures: path: .* names none of the 34 pictures; it names nobody\.png"):
        sl.choose_pictures(data, path=table)
