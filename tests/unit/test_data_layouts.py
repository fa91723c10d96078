"""Datasets for other programs: tar shards and tables, read back by what reads them here."""
from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.cli.op_command import LAYOUTS
from safelight.data.export import EXPORTS, imagefolder, webdataset
from safelight.data.folder import read_folder
from safelight.data.sources import FACTS, Asked, Item, shards
from safelight.values import Caption, Dataset


def finished(work: Generator[Any, None, Any]) -> tuple[list[Any], Any]:
    said = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as stop:
            return said, stop.value


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    for i, name in enumerate(["x/1.v2.png", "狐.jpg", "wrong.png"]):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Pil.fromarray(np.random.default_rng(i).integers(0, 255, (20 + i, 30, 3), dtype=np.uint8))
        picture.save(path, "PNG" if i == 0 else "JPEG")
        path.with_suffix(".txt").write_text(f"字 {i}")
    (tmp_path / "in" / "broken.png").write_text("no")
    found: Dataset = finished(read_folder(tmp_path / "in"))[1]
    rows = [r if r.name != "狐.jpg" else type(r)(r.picture, r.name, r.width, r.height, (*r.captions, Caption("human", "a fox, 狐")), "",
            {**r.info, "origin": {"licence": "CC0", "author": "A"}}) for r in found.rows]
    return Dataset(tuple(rows), found.info)


def test_the_commands_layouts_are_those_there_are() -> None:
    assert set(LAYOUTS) == set(EXPORTS)


def brought(path: Path, folder: Path) -> list[Item]:
    known = dict.fromkeys(FACTS, "") | {"source": "here"}
    found, count = finished(shards.items(f"data/{path.name}@1", Asked("", folder), known, lambda: io.FileIO(path)))
    assert count == len(found)
    return found


def test_shards_are_read_back(tmp_path: Path, data: Dataset) -> None:
    folder = webdataset(data, tmp_path / "out", most=2)
    assert sorted(p.name for p in folder.iterdir()) == ["000000.tar", "000001.tar"]
    found = [item for path in sorted(folder.iterdir()) for item in brought(path, tmp_path)]
    assert [i.data for i in found] == [Path(r.picture.path).read_bytes() for r in data]
    assert [i.captions[-1].text for i in found] == [r.caption for r in data] and "a fox, 狐" in [r.caption for r in data]
    assert [i.hash for i in found] == [f"sha256:{r.picture.sha256}" for r in data]
    fox = next(i for i in found if "狐" in i.captions[-1].text)
    assert fox.origin["licence"] == "CC0" and fox.origin["author"] == "A"


def test_a_shards_members_and_bytes(tmp_path: Path, data: Dataset) -> None:
    with tarfile.open(webdataset(data, tmp_path / "out") / "000000.tar") as tar:
        members = tar.getmembers()
        told = json.load(tar.extractfile("000000002.json") or pytest.fail("no record"))
    kinds = ["jpg" if r.info["format"] == "jpeg" else "png" for r in data]
    assert sorted(kinds) == ["jpg", "jpg", "png"], "named by what they are"
    assert [m.name for m in members] == [f"{i:09}.{s}" for i, kind in enumerate(kinds) for s in (kind, "txt", "json")]
    assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(0, 0, "", 0o644)}
    assert told["captions"][-1] == ["human", "a fox, 狐"] and (told["width"], told["height"]) == (30, 21)
    webdataset(data, tmp_path / "again")
    assert (tmp_path / "again" / "000000.tar").read_bytes() == (tmp_path / "out" / "000000.tar").read_bytes()


def test_a_shard_ends_at_its_size_and_holds_one_at_least(tmp_path: Path, data: Dataset) -> None:
    sizes = [Path(r.picture.path).stat().st_size for r in data]
    assert len(list(webdataset(data, tmp_path / "one", size=1).iterdir())) == 3
    assert len(list(webdataset(data, tmp_path / "two", size=sizes[0] + sizes[1]).iterdir())) == 2
    with pytest.raises(ValueError, match="most: got 0"):
        webdataset(data, tmp_path / "none", most=0)


def test_no_shard_stays_of_an_export_that_fails(tmp_path: Path, data: Dataset) -> None:
    (tmp_path / "in" / "wrong.png").write_bytes(b"changed")
    with pytest.raises(ValueError, match="was changed"):
        webdataset(data, tmp_path / "out", most=1)
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_parquet_round_trip(tmp_path: Path, data: Dataset) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = EXPORTS["imagefolder-parquet"](data, tmp_path / "out")
    assert path.name == "metadata.parquet" and parquet.read_schema(path).names == ["file_name", "text", "captions"]
    again = finished(read_folder(tmp_path / "out"))[1]
    assert again.key == data.key and [r.captions for r in again] == [r.captions for r in data]
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"metadata\.parquet is no parquet file"):
        finished(read_folder(tmp_path / "out"))


def test_without_pyarrow(tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r"export: writing parquet needs pyarrow; `pip install 'safelight\[parquet\]'`"):
        imagefolder(data, tmp_path / "out", table="parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


def test_the_csv_begins_with_its_mark(tmp_path: Path, data: Dataset) -> None:
    path = EXPORTS["imagefolder-csv"](data, tmp_path / "out")
    assert path.name == "metadata.csv" and path.read_bytes().startswith(b"\xef\xbb\xbffile_name,text\n")
    with pytest.raises(ValueError, match="table: got 'xml'"):
        imagefolder(data, tmp_path / "x", table="xml")
