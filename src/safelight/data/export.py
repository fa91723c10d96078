"""Datasets as folders that other trainers read: imagefolder, kohya, numbered JPEGs with a table, WebDataset shards. A folder appears whole
or not at all."""
from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import tarfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from safelight.data.metadata import parquet, plain
from safelight.disk import flushed, place
from safelight.values import Dataset, Row

SUFFIX = {"jpeg": "jpg", "tiff": "tif"}  # where a format's usual ending is not its name


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """A folder beside the given one to write into; it takes the given place when the block ends, and vanishes when the block fails.

    ValueError when something is at that place already, an empty folder excepted.
    """
    folder = Path(folder).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"export: {folder} is not empty; give a folder that does not exist yet")
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    work.mkdir()
    try:
        yield work
        if folder.exists():
            folder.rmdir()
        os.replace(work, folder)
        flushed(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def imagefolder(data: Dataset, folder: Path, *, table: str = "jsonl", bom: bool = False) -> Path:
    """The kept pictures, byte for byte under their own names, and `metadata.jsonl`, `.csv` or `.parquet` (file_name, text); its path.

    bom: begin the table with a byte-order mark, as spreadsheets want it for Chinese; not for parquet. Layers of captions do not go into
    the csv. ValueError for parquet without pyarrow.
    """
    if table not in ("jsonl", "csv", "parquet"):
        raise ValueError(f"export: table: got {table!r}, expected jsonl, csv or parquet")
    if table == "parquet":
        parquet("export: writing parquet")  # said before anything is copied
    with appearing(folder) as work:
        names = _names(data, lambda row: PurePosixPath(row.name))
        for row, name in zip(data, names, strict=True):
            _copy(row, work / name)
        _write_table(work / f"metadata.{table}", [(n, r) for n, r in zip(names, data, strict=True)], bom=bom)
    return Path(folder) / f"metadata.{table}"


def kohya(data: Dataset, folder: Path, *, name: str = "pictures", repeats: int = 1, suffix: str = ".txt") -> Path:
    """`FOLDER/REPEATS_NAME/` with the pictures and a caption file beside each; the inner folder. Give FOLDER as train_data_dir."""
    if not 1 <= repeats <= 999:
        raise ValueError(f"export: repeats: got {repeats}, expected 1 to 999")
    inner = f"{repeats}_{name.replace('/', ' ')}"
    with appearing(folder) as work:
        (work / inner).mkdir()
        names = _names(data, lambda row: PurePosixPath(PurePosixPath(row.name).name))
        for row, file in zip(data, names, strict=True):
            _copy(row, work / inner / file)
            (work / inner / file).with_suffix(suffix).write_text(row.caption + "\n", "utf-8")
    return Path(folder) / inner


def numbered(data: Dataset, folder: Path, *, quality: int = 95, bom: bool = True) -> Path:
    """`FOLDER/train/0.jpg, 1.jpg, ...` saved again as RGB JPEG, upright, with `metadata.csv` (file_name, text); the table's path.

    Beside `train` lies `metadata.jsonl` as Data-Juicer reads it: `{"text": ..., "image": ["train/0.jpg"]}`.
    """
    from PIL import Image as Pil

    from safelight.pictures import read

    with appearing(folder) as work:
        (work / "train").mkdir()
        listed = [(f"{i}.jpg", row) for i, row in enumerate(data)]
        for name, row in listed:
            Pil.fromarray(read(row.picture.path)).save(work / "train" / name, quality=quality)
        _write_table(work / "train" / "metadata.csv", listed, bom=bom)
        lines = [json.dumps({"text": row.caption, "image": [f"train/{name}"]}, ensure_ascii=False) + "\n" for name, row in listed]
        (work / "metadata.jsonl").write_text("".join(lines), "utf-8")
    return Path(folder) / "train" / "metadata.csv"


def webdataset(data: Dataset, folder: Path, *, most: int = 1000, size: int = 500 * 10**6) -> Path:
    """`FOLDER/000000.tar, 000001.tar, ...` as WebDataset and `collect` read them; the folder. A shard ends before it has more than `most`
    pictures, or more than `size` bytes of them.

    A sample is `KEY.jpg` (or png, ...: the file's bytes), `KEY.txt` (the caption) and `KEY.json` (file_name, text, captions as [by, text],
    width, height, sha256, origin). Keys are nine digits, counted through all shards. The same rows give the same bytes.
    """
    if most < 1:
        raise ValueError(f"export: most: got {most}, expected at least one picture in a shard")
    with appearing(folder) as work:
        for number, shard in enumerate(_shards(data, most, size)):
            place(work, work / f"{number:06}.tar", partial(_tar, shard))
        flushed(work)
    return Path(folder)


EXPORTS: Mapping[str, Callable[..., Path]] = {
    "imagefolder": imagefolder, "imagefolder-csv": partial(imagefolder, table="csv", bom=True),
    "imagefolder-parquet": partial(imagefolder, table="parquet"), "kohya": kohya, "numbered": numbered, "webdataset": webdataset,
}


def _shards(data: Dataset, most: int, size: int) -> Iterator[list[tuple[str, Row]]]:
    """The rows with their keys, as many together as go into one file."""
    shard: list[tuple[str, Row]] = []
    held = 0
    for i, row in enumerate(data):
        length = Path(row.picture.path).stat().st_size
        if shard and (len(shard) == most or held + length > size):
            yield shard
            shard, held = [], 0
        shard.append((f"{i:09}", row))
        held += length
    if shard:
        yield shard


def _tar(shard: list[tuple[str, Row]], to: Path) -> None:
    """Members belong to nobody and have no time, so that the bytes tell nothing but the rows."""
    with tarfile.open(to, "w", format=tarfile.USTAR_FORMAT) as tar:
        for key, row in shard:
            kind = str(row.info.get("format", "other"))
            suffix = PurePosixPath(row.name).suffix.lower()[1:] if kind == "other" else SUFFIX.get(kind, kind)
            told = {**row.info.get("metadata", {}), **row.info.get("origin", {}), "file_name": row.name, **_said(row), "width": row.width,
                    "height": row.height, "sha256": row.picture.sha256}
            told_bytes = json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")
            for name, content in ((suffix, _content(row)), ("txt", row.caption.encode()), ("json", told_bytes)):
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _names(data: Dataset, of: Callable[[Row], PurePosixPath]) -> list[str]:
    """A name below the folder for every kept row; stems that are taken get -2, -3, ... so that caption files stay apart."""
    taken: set[str] = set()
    names = []
    for row in data:
        path = PurePosixPath(*[p for p in of(row).parts if p not in ("..", "/")])
        name, n = path, 1
        while str(name.with_suffix("")).casefold() in taken:
            n += 1
            name = path.with_stem(f"{path.stem}-{n}")
        taken.add(str(name.with_suffix("")).casefold())
        names.append(str(name))
    return names


def _copy(row: Row, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_bytes(_content(row))


def _content(row: Row) -> bytes:
    """The picture's bytes. ValueError when they are no longer the ones that were read."""
    content = Path(row.picture.path).read_bytes()
    if hashlib.sha256(content).hexdigest() != row.picture.sha256:
        raise ValueError(f"export: {row.picture.path} was changed since the dataset was made; read the folder again")
    return content


def _said(row: Row) -> dict[str, Any]:
    return {"text": row.caption, "captions": [[c.by, c.text] for c in row.captions]}


def _write_table(path: Path, rows: list[tuple[str, Row]], *, bom: bool) -> None:
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
        return
    text = io.StringIO(newline="")
    if path.suffix == ".csv":
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", "text"])
        writer.writerows([name, plain(row.caption)] for name, row in rows)
    else:
        for name, row in rows:
            text.write(json.dumps({"file_name": name, **_said(row)}, ensure_ascii=False) + "\n")
    path.write_text(text.getvalue(), "utf-8-sig" if bom else "utf-8", newline="")


def _write_parquet(path: Path, rows: list[tuple[str, Row]]) -> None:
    table = parquet("export: writing parquet")
    import pyarrow

    text = pyarrow.string()
    schema = pyarrow.schema({"file_name": text, "text": text, "captions": pyarrow.list_(pyarrow.list_(text))})
    table.write_table(pyarrow.Table.from_pylist([{"file_name": name, **_said(row)} for name, row in rows], schema), path)
