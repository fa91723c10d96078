"""A dataset at a glance: numbers against counts by hand, pages that hold together, the commands and their exit status."""
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image as Pil

import safelight as sl
from safelight.cli import cli, status
from safelight.data import summary
from safelight.data.card import card
from safelight.reporting.overview import Found, Histogram, Overview, findings, page
from safelight.reporting.overview_sheet import sheet
from safelight.values import Blob, Caption, Dataset, Row
from tests.unit.test_report import EVIL, Reader


def row(name: str, size: tuple[int, int], *layers: tuple[str, str], dropped: str = "", **origin: str) -> Row:
    info = {"format": "png", "bytes": 1000, **({"origin": origin} if origin else {})}
    return Row(Blob(name, ""), name, *size, tuple(Caption(*c) for c in layers), dropped, info)


ROWS = (
    row("a", (100, 100), ("file", "fox, snow"), licence="CC0", source="pexels", attribution="by A"),
    row("b", (300, 200), ("file", "fox"), ("wd14", "1girl, snow, hat"), licence="CC0"),
    row("c", (1920, 1080), ("human", "狐狸，雪"), license="CC BY 4.0", attribution="by C"),
    row("d", (512, 512)),
)


def test_numbers_by_hand() -> None:
    assert summary.sides(ROWS) == (("< 128", 1), ("128+", 1), ("256+", 0), ("384+", 0), ("512+", 1), ("640+", 0), ("768+", 0), ("1024+", 1))
    assert summary.shapes(ROWS) == (("1:1", 2), ("5:4", 0), ("4:3", 0), ("3:2", 1), ("16:9", 1))
    assert summary.lengths(ROWS, lambda t: len(t.split())) == (("none", 1), ("1", 1), ("2", 1), ("3", 1))
    assert summary.lengths(ROWS[:1], lambda t: 75)[-1] == ("71–80", 1)
    assert summary.lengths((), len) == () and summary.sides(()) == ()
    assert dict(summary.tags(ROWS)) == {"snow": 2, "fox": 1, "1girl": 1, "hat": 1, "狐狸": 1, "雪": 1}
    assert summary.writers(ROWS) == (("file", 1), ("wd14", 1), ("human", 1), ("no caption", 1))
    assert summary.origins(ROWS, "licence") == (("CC0", 2), ("CC BY 4.0", 1), ("not stated", 1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shown") / "foxes"
    root.mkdir()
    for i, (width, height) in enumerate([(300, 300), (400, 300), (300, 450)]):
        coarse = np.random.default_rng(i).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Pil.fromarray(coarse).resize((width, height), Pil.Resampling.BICUBIC).save(root / f"{i}.png")
        (root / f"{i}.txt").write_text(f"a fox, {EVIL if i == 1 else 'snow'}, 狐狸")
    return root


@pytest.fixture(scope="module")
def broken(folder: Path) -> Path:
    root = folder.with_name("broken")
    root.mkdir()
    for path in folder.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    (root / "3.png").write_bytes(b"")
    return root


def test_the_page_says_everything_and_loads_nothing(broken: Path) -> None:
    made = sl.overview(sl.folder(broken), sl.model("mini"), title=f"Foxes {EVIL}")
    read = Reader(Path(made.file.path).read_text())
    text = " ".join(read.said)
    assert all(x in text for x in ("256+", "Caption length, tokens", "46 are read at once", "512 × 512", "unreadable: "))
    assert "3 pictures, 3 of them captioned; 1 left out." in text and text.count(EVIL) >= 2
    assert len(set(read.ids)) == len(read.ids) and all(link.startswith(("#", "data:")) for link in read.links)
    assert sl.overview(sl.folder(broken), title="x").media == "text/html"


def test_the_sheet_is_one_picture(folder: Path, tmp_path: Path) -> None:
    made = sl.overview(sl.folder(folder), title="Foxes", media="png")
    [path] = made.save(tmp_path / "x.png")
    with Pil.open(path) as picture:
        assert picture.format == "PNG" and picture.width > 1000
    pixels = sheet(Overview("x", sl.folder(folder))).pixels
    assert pixels.shape[1] < np.asarray(Pil.open(path)).shape[0], "without histograms it is lower"
    with pytest.raises(ValueError, match="data has no picture left"):
        sheet(Overview("x", Dataset(())))


def test_an_empty_dataset_has_a_page() -> None:
    assert "0 pictures" in page(Overview("Nothing", Dataset(())))


def test_the_doctors_page(folder: Path) -> None:
    rows = sl.folder(folder).rows
    text = findings("Check", {"Pictures": "3"}, [Found("Copies", "Remove one.", [("a.png", EVIL, rows[:2]), ("b.txt", "bad", ())])], {})
    read = Reader(text)
    assert len(read.images) == 2 and "2 findings of 1 kind." in read.said and EVIL in read.said and "kind-0" in read.ids
    assert "Nothing was found." in Reader(findings("Check", {}, [], {})).said


def test_the_card() -> None:
    data = Dataset((*ROWS, row("e", (10, 10), dropped="too small: 10 px")))
    text = card(data, "My foxes")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {"pretty_name": "My foxes", "license": "other", "task_categories": ["text-to-image"],
                                      "size_categories": ["n<1K"], "language": ["en", "zh"]}
    for line in ("| pictures | 4 |", "| shorter side | 100 to 1080 px, median 512 |", "| `wd14` (written by a captioner) | 1 |",
                 "| `human` (written by people) | 1 |", "| none | 1 |", "| CC0 | 2 |", "| not stated | 1 |", "- by A\n- by C",
                 "| too small | 1 |"):
        assert line in body, line
    assert "nothing may be assumed" in body
    single = card(Dataset(ROWS[:2]), "x")
    assert yaml.safe_load(single.split("---\n")[1])["license"] == "cc0-1.0" and "nothing may be assumed" not in single
    assert "license" not in yaml.safe_load(card(Dataset(ROWS[3:]), "x").split("---\n")[1])
    assert yaml.safe_load(card(Dataset(ROWS[3:]), "x", "MIT").split("---\n")[1])["license"] == "mit"


@pytest.mark.parametrize(("said", "known"), [
    ("AGPL-3.0", "agpl-3.0"), ("GNU LGPL v3", "lgpl-3.0"), ("GPL-3.0-or-later", "gpl-3.0"), ("no permit to submit", "other"),
    ("MIT License", "mit"), ("CC BY-NC-SA 4.0", "cc-by-nc-sa-4.0"), ("CC-BY-ND-4.0", "cc-by-nd-4.0"), ("cc by 2.0", "cc-by-2.0"),
    ("https://creativecommons.org/licenses/by/4.0/", "cc-by-4.0"), ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0-1.0"),
    ("CC0", "cc0-1.0"), ("Unsplash License (https://unsplash.com/license)", "unsplash"), ("BSD-3-Clause", "bsd-3-clause"),
    ("Apache-2.0", "apache-2.0"), ("all rights reserved", "other"), ("Pexels License (https://www.pexels.com/license/)", "other"),
])
def test_licences_by_the_hubs_names(said: str, known: str) -> None:
    assert yaml.safe_load(card(Dataset((row("a", (9, 9), licence=said),)), "x").split("---\n")[1])["license"] == known


def run(*words: object) -> int:
    return status(lambda: cli([str(w) for w in words], standalone_mode=False))


def test_check_says_what_and_how_it_ended(folder: Path, broken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dataset", "check", folder, "--room", 60) == 0 and "3 pictures in 6 files: nothing found" in capsys.readouterr().out
    assert run("dataset", "check", broken, "--room", 60, "--html", tmp_path / "c.html") == 1
    out = capsys.readouterr().out
    assert "Files that cannot be decoded (1, corrupt)" in out and "  3.png  the file is empty" in out and out.endswith("1 finding\n")
    assert "no picture" in Reader((tmp_path / "c.html").read_text()).said
    assert run("dataset", "check", broken, "--json", "--room", 60, "--min-side", 301) == 1
    found = json.loads(capsys.readouterr().out)
    assert [f["kind"] for f in found["findings"]] == ["corrupt", "tiny", "tiny", "tiny"] and found["pictures"] == 4
    assert run("dataset", "check", broken, "--ignore", "corrupt", "--ignore", "long-caption") == 0
    assert run("dataset", "check", folder, "--room", 2) == 1
    assert run("dataset", "check", folder, "--ignore", "corupt") == 2 and "did you mean 'corrupt'?" in capsys.readouterr().err
    assert run("dataset", "check", folder / "nowhere") == 1


def test_a_long_list_is_cut_and_says_where_the_rest_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(25):
        Pil.new("RGB", (9, 9), (i * 10, 0, 0)).save(tmp_path / f"{i}.png")
    Pil.new("RGB", (64, 64)).save(tmp_path / "large.png")  # for the embedded model
    assert run("dataset", "check", tmp_path, "--near-duplicates", -1, "--ignore", "no-caption") == 1
    out = capsys.readouterr().out
    assert "(25, tiny)" in out and "and 5 more" in out and "--json" in out and out.count(".png") == 20


def test_labels_and_captions_have_room() -> None:
    bars = tuple((f"{i * 20 + 1}–{i * 20 + 20}", 1) for i in range(11))
    shown = Overview("x", Dataset((row("a", (9, 9), ("file", "fox " * 200)), row("b", (9, 9)))), (Histogram("Length", bars),))
    said = Reader(page(shown)).said
    assert "no caption" in said and said.count("\u00a0") == 5, "a bar without a label stands as high as its neighbours"
    assert sum("–" in text for text in said) == 6 and "fox " * 100 not in " ".join(said)


def test_buckets_of_any_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Pil.new("RGB", (90, 300)).save(folder / "tall.png")
    assert run("dataset", "buckets", folder, "--size", 128) == 0
    (folder / "tall.png").unlink()
    assert "   64 x 192" in capsys.readouterr().out, "no need to say --least where the usual one leaves one bucket"
    assert run("dataset", "buckets", folder, "--size", 32) == 1


def test_buckets_as_a_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("dataset", "buckets", folder, "--size", 256, "--least", 128) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [["192", "x", "320", "1", "10.0%", "0"], ["256", "x", "256", "2", "12.5%", "0"]]


def test_show_and_card(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [run("dataset", "show", folder, "--out", tmp_path / name) for name in ("x.html", "x.png")] == [0, 0]
    assert "foxes" in (tmp_path / "x.html").read_text() and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert run("dataset", "show", folder, "--out", tmp_path / "x.jpg") == 2
    assert run("dataset", "card", folder, "--out", tmp_path / "README.md", "--licence", "CC0") == 0
    assert "license: cc0-1.0" in (tmp_path / "README.md").read_text() and not (folder / "README.md").exists()
    capsys.readouterr()
    assert run("dataset", "card", folder, "--out", tmp_path / "README.md") == 1 and "--force" in capsys.readouterr().err
    assert run("dataset", "card", folder, "--out", tmp_path / "README.md", "--force") == 0
