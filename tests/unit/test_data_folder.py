"""Folders and tables as datasets: every file has one stated outcome, nothing is lost."""
from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.data.export import imagefolder, kohya, numbered
from safelight.data.folder import fingerprint, read_folder
from safelight.events import Event, Note, Progress
from safelight.values import Dataset


def finished(work: object) -> tuple[Dataset, list[Event]]:
    """A generator's events and what it returned."""
    events = []
    while True:
        try:
            events.append(next(work))  # type: ignore[call-overload]
        except StopIteration as stop:
            return stop.value, events


def load(path: Path) -> Dataset:
    return finished(read_folder(path))[0]


def picture(path: Path, colour: int = 0, size: tuple[int, int] = (20, 10)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(colour).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Pil.fromarray(noise).save(path, {".dat": "PNG"}.get(path.suffix))
    return path


def test_recursive_sorted_and_captioned(tmp_path: Path) -> None:
    for i, name in enumerate(["b.png", "a/2.jpg", "a/1.webp", "c.PNG"]):
        picture(tmp_path / name, i)
    (tmp_path / "b.txt").write_bytes("\ufeff  一只  狐狸\n在雪里 ".encode())
    (tmp_path / "a" / "2.caption").write_text("a fox")
    (tmp_path / "notes.md").write_text("no picture")
    data, events = finished(read_folder(tmp_path))
    assert [r.name for r in data.rows] == ["a/1.webp", "a/2.jpg", "b.png", "c.PNG"]
    assert [r.caption for r in data.rows] == ["", "a fox", "一只 狐狸 在雪里", ""]
    assert all((r.width, r.height) == (20, 10) and not r.dropped for r in data)
    assert isinstance(events[-1], Progress) and events[-1].step == events[-1].total == 4
    assert load(tmp_path).key == data.key


def test_every_outcome(tmp_path: Path) -> None:
    """The torture set: what is wrong with a file is in its row, and the good ones are untouched by it."""
    good = picture(tmp_path / "good.png")
    raw = picture(tmp_path / "x.jpg", 1).read_bytes()
    (tmp_path / "x.jpg").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "zero.png").touch()
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    shutil.copy(good, tmp_path / "really-a-png.jpg")
    picture(tmp_path / "unknown.dat")
    (tmp_path / "dangling.png").symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    picture(tmp_path / "deep" / "cmyk.jpg", 3)
    (tmp_path / ".hidden.png").write_bytes(b"not looked at")
    open(os.fsencode(tmp_path) + b"/name-\xff.png", "wb").close()
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "gone.png", "text": "was here"}\nnot json\n{"text": "no file"}\n')
    data, events = finished(read_folder(tmp_path))
    outcome = {r.name: r.dropped for r in data.rows}
    assert {n for n, why in outcome.items() if not why} == {"good.png", "really-a-png.jpg", "unknown.dat", "deep/cmyk.jpg"}
    for name, said in {"x.jpg": "truncated jpeg", "zero.png": "empty", "page.jpg": "not a picture", "dangling.png": "No such file",
                       "self.png": "symbolic links", "name-\ufffd.png": "not UTF-8", "gone.png": "missing: metadata.jsonl line 1"}.items():
        assert said in outcome[name], (name, outcome[name])
    assert len(data.rows) == 11
    assert [p for p in data.info["problems"] if "line 2" in p] and [p for p in data.info["problems"] if "line 3" in p]
    notes = [e for e in events if isinstance(e, Note)]
    assert len(notes) == 1 and notes[0].level == "warning" and "7 pictures" in notes[0].text


def test_tables(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "sub/3.png"):
        picture(tmp_path / name, len(name))
    (tmp_path / "metadata.csv").write_bytes('\ufefffile_name,text,licence\n1.png,"二次元, 红",CC0\nsub/3.png,deep,\n'.encode())
    (tmp_path / "sub" / "metadata.jsonl").write_text(
        json.dumps({"text": "<__dj__image> closer <|__dj__eoc|>", "image": [str(tmp_path / "sub" / "3.png")]}) + "\n")
    rows = {r.name: r for r in load(tmp_path).rows}
    assert rows["1.png"].caption == "二次元, 红" and rows["1.png"].info["metadata"] == {"licence": "CC0"}
    assert [c.text for c in rows["sub/3.png"].captions] == ["deep", "closer"]
    assert rows["2.png"].captions == ()


def test_a_table_is_a_path_too(tmp_path: Path) -> None:
    picture(tmp_path / "here" / "a.png")
    picture(tmp_path / "there" / "b.png", 1)
    table = tmp_path / "here" / "list.jsonl"
    table.write_text('{"file_name": "a.png", "text": "A"}\n{"images": ["../there/b.png"], "text": "B"}\n{"file_name": "c.png"}\n')
    data = load(table)
    assert sorted(r.caption for r in data) == ["A", "B"]
    assert not any(".." in r.name for r in data.rows)
    assert [r.dropped for r in data.rows if r.dropped] == ["missing: list.jsonl line 3 names it, but it is not there"]
    folder_only = table.rename(tmp_path / "here" / "metadata.jsonl").parent
    assert any("outside the folder" in r.dropped for r in load(folder_only).rows)


def test_kohya_folders(tmp_path: Path) -> None:
    picture(tmp_path / "10_red fox" / "a.png")
    picture(tmp_path / "10_red fox" / "b.png", 1)
    (tmp_path / "10_red fox" / "b.txt").write_text("in snow")
    picture(tmp_path / "2023_summer" / "c.png", 2)
    rows = {r.name: r for r in load(tmp_path).rows}
    assert rows["10_red fox/a.png"].caption == "red fox" and rows["10_red fox/a.png"].info["repeats"] == 10
    assert [c.by for c in rows["10_red fox/b.png"].captions] == ["folder", "file"]
    assert rows["2023_summer/c.png"].captions == ()  # a year is no number of repeats


@pytest.mark.parametrize(("content", "said"), [
    ("a,b\n1,2\n", "no column for the file"), (b"file_name,text\n1.png,\xb6\xfe\n", "not UTF-8"), ("", "an empty table")])
def test_unusable_tables_are_errors(tmp_path: Path, content: str | bytes, said: str) -> None:
    picture(tmp_path / "1.png")
    (tmp_path / "metadata.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=said):
        load(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pictures"):
        load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "no")


def test_an_unreadable_caption_costs_the_caption_only(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    data = load(tmp_path)
    assert len(data) == 1 and data.rows[0].captions == () and "not UTF-8" in data.info["problems"][0]


def test_fingerprint_sees_every_change(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    seen = {fingerprint(tmp_path)}
    assert fingerprint(tmp_path) in seen
    (tmp_path / "a.txt").write_text("x")
    seen.add(fingerprint(tmp_path))
    os.utime(tmp_path / "a.txt", ns=(1, 1))
    seen.add(fingerprint(tmp_path))
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    seen.add(fingerprint(tmp_path))
    assert len(seen) == 4


def captioned(tmp_path: Path) -> Dataset:
    for i, name in enumerate(["x/1.png", "y/1.jpg", "2.webp"]):
        picture(tmp_path / "in" / name, i)
        (tmp_path / "in" / name).with_suffix(".txt").write_text(f"字 {i}")
    (tmp_path / "in" / "broken.png").write_text("no")
    return load(tmp_path / "in")


@pytest.mark.parametrize("bom", [False, True])
@pytest.mark.parametrize("table", ["jsonl", "csv"])
def test_imagefolder_round_trip(tmp_path: Path, table: str, bom: bool) -> None:
    data = captioned(tmp_path)
    path = imagefolder(data, tmp_path / "out", table=table, bom=bom)
    assert path.read_bytes().startswith(b"\xef\xbb\xbf") is bom
    again = load(tmp_path / "out")
    assert again.key == data.key and [r.name for r in again.rows] == [r.name for r in data]
    if table == "jsonl":
        assert [r.captions for r in again] == [r.captions for r in data]


def test_kohya_round_trip(tmp_path: Path) -> None:
    data = captioned(tmp_path)
    inner = kohya(data, tmp_path / "out", name="fox", repeats=7)
    assert inner.name == "7_fox" and sorted(p.name for p in inner.iterdir()) == ["1-2.jpg", "1-2.txt", "1.png", "1.txt", "2.txt", "2.webp"]
    again = load(tmp_path / "out")
    assert sorted(r.caption for r in again) == sorted(r.caption for r in data)
    assert {r.info["repeats"] for r in again} == {7}


def test_numbered_jpegs(tmp_path: Path) -> None:
    data = captioned(tmp_path)
    table = numbered(data, tmp_path / "out")
    assert table.read_bytes().decode("utf-8-sig").splitlines()[0] == "file_name,text"
    assert [r.caption for r in load(tmp_path / "out")] == [r.caption for r in data]


def test_an_export_appears_whole_or_not(tmp_path: Path) -> None:
    data = captioned(tmp_path)
    (tmp_path / "in" / "y" / "1.jpg").write_bytes(b"changed")
    with pytest.raises(ValueError, match="was changed"):
        imagefolder(data, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ValueError, match="not empty"):
        kohya(data, tmp_path / "full")
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]
