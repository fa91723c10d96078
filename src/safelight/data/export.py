"""Datasets as folders that other trainers read: imagefolder, kohya, numbered JPEGs with a table. A folder appears whole or not at all."""
from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from safelight.data.metadata import plain
from safelight.values import Dataset, Row


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
    finally:
        shutil.rmtree(work, ignore_errors=True)


def imagefolder(data: Dataset, folder: Path, *, table: str = "jsonl", bom: bool = False) -> Path:
    """The kept pictures, byte for byte under their own names, and `metadata.jsonl` or `metadata.csv` (file_name, text); its path.

    bom: begin the table with a byte-order mark, as spreadsheets want it for Chinese. Layers of captions go into the jsonl only.
    """
    if table not in ("jsonl", "csv"):
        raise ValueError(f"export: table: got {table!r}, expected jsonl or csv")
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


EXPORTS: Mapping[str, Callable[..., Path]] = {"imagefolder": imagefolder, "kohya": kohya, "numbered": numbered}


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
    """Copy the picture's bytes and see that they are still the ones that were read."""
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(row.picture.path, to)
    with open(to, "rb") as f:
        if hashlib.file_digest(f, "sha256").hexdigest() != row.picture.sha256:
            raise ValueError(f"export: {row.picture.path} was changed since the dataset was made; read the folder again")


def _write_table(path: Path, rows: list[tuple[str, Row]], *, bom: bool) -> None:
    text = io.StringIO(newline="")
    if path.suffix == ".csv":
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["file_name", "text"])
        writer.writerows([name, plain(row.caption)] for name, row in rows)
    else:
        for name, row in rows:
            record = {"file_name": name, "text": row.caption, "captions": [[c.by, c.text] for c in row.captions]}
            text.write(json.dumps(record, ensure_ascii=False) + "\n")
    path.write_text(text.getvalue(), "utf-8-sig" if bom else "utf-8", newline="")
