"""A folder (or a table) of pictures as a Dataset. Every file that looks like a picture becomes a row; what cannot be used says why.

Captions come, oldest layer first, from kohya's folder names (`10_red fox`), from `metadata.csv|jsonl` in the same folder or above, and
from `NAME.txt` or `NAME.caption` beside the picture; the newest layer is the one in use.
"""
from __future__ import annotations

import os
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISREG
from typing import Any

from safelight.data.headers import MAGIC, check_end, read_header, sniff
from safelight.data.metadata import TABLES, Table, plain, read_table, read_text
from safelight.events import Event, Note, Progress
from safelight.pictures import Unreadable
from safelight.values import Blob, Caption, Dataset, Row, digest

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"})
OTHERS = frozenset({".txt", ".caption", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".npz", ".safetensors", ".yaml", ".yml", ".toml",
                    ".md", ".html", ".log", ".py", ".tar", ".zip", ".gz"})
SIDECARS = (".txt", ".caption")
KOHYA = re.compile(r"(\d{1,3})_(.+)")
EVERY = 50  # pictures between two progress events


@dataclass
class Listing:
    """What a walk found, below `root`: picture paths, tables, and folders or names that could not be used."""

    root: Path
    pictures: list[Path] = field(default_factory=list)
    tables: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    others: int = 0


@dataclass(frozen=True)
class Said:
    """What the tables say about one picture: captions, other columns, and where it was named."""

    captions: tuple[Caption, ...]
    extra: Mapping[str, Any]
    place: str


def read_folder(path: Path) -> Generator[Event, None, Dataset]:
    """All pictures below a folder, or all that a .csv, .jsonl or .parquet table names, sorted by name.

    Yields Progress and one Note on problems.

    Rows that cannot be used have `dropped` set: `unreadable: ...` or `missing: ...`. ValueError when there is no picture at all.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise ValueError(f"folder: {path} does not exist; give a folder of pictures, or a metadata.csv, .jsonl or .parquet")
    found, said = _from_table(path) if path.is_file() else _from_folder(path)
    rows: list[Row] = []
    for i, picture in enumerate(found.pictures):
        if i % EVERY == 0:
            yield Progress(step=i, total=len(found.pictures), what="reading pictures", unit="picture")
        rows.append(read_row(picture, found.root, said.pop(picture, None), found.problems))
    rows += [_absent(picture, found.root, what) for picture, what in said.items()]
    yield Progress(step=len(found.pictures), total=len(found.pictures), what="reading pictures", unit="picture")
    if not rows:
        raise ValueError(f"folder: no pictures in {path} ({found.others} other files); expected png, jpeg, webp, gif, bmp, tiff or avif")
    lost = sum(bool(r.dropped) for r in rows)
    if lost or found.problems:
        yield Note(text=_summary(lost, found.problems), level="warning")
    rows.sort(key=lambda r: r.name)
    return Dataset(tuple(rows), {"source": str(path.resolve()), "problems": found.problems})


def _absent(picture: Path, root: Path, said: Said) -> Row:
    if picture.exists():
        reason = f"missing: {said.place} names a file outside the folder; give that table itself as the path"
    else:
        reason = f"missing: {said.place} names it, but it is not there"
    return Row(Blob(str(picture), ""), _name(picture, root), 0, 0, dropped=reason)


def _summary(lost: int, problems: list[str]) -> str:
    parts = [f"{lost} pictures cannot be used (they are listed with the reason)"] if lost else []
    return "folder: " + "; ".join([*parts, *problems[:3], *([f"and {len(problems) - 3} more"] if len(problems) > 3 else [])])


def fingerprint(path: Path) -> str:
    """Changes when any file below the path is added, removed, renamed, resized or written; reads names and stat only."""
    path = Path(path).expanduser()
    stats = []
    for file in [path] if path.is_file() else walk(path, Listing(path)):
        try:
            stat = file.stat()
        except OSError:  # a broken link, or gone meanwhile
            stats.append(os.fsencode(file))
            continue
        stats.append(os.fsencode(file) + f" {stat.st_size} {stat.st_mtime_ns}".encode())
    if path.is_file():
        stats += [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}".encode() for p in listed(path.parent, [read_table(path)]) if p.exists()]
    return digest("folder", os.fsencode(path.resolve()), *sorted(stats))


def walk(root: Path, found: Listing) -> Iterator[Path]:
    """Every file below root, links followed, each real folder once; hidden files and folders are left out."""
    seen: set[tuple[int, int]] = set()
    stack = [root]
    while stack:
        here = stack.pop()
        try:
            stat = here.stat()
            if (stat.st_dev, stat.st_ino) in seen:
                continue
            seen.add((stat.st_dev, stat.st_ino))
            with os.scandir(here) as entries:
                items = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            found.problems.append(f"{_name(here, root)}: {error.strerror}")
            continue
        for entry in items:
            if _is_folder(entry):
                stack.append(Path(entry.path))
            else:
                yield Path(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _from_folder(root: Path) -> tuple[Listing, dict[Path, Said]]:
    found = Listing(root)
    for file in walk(root, found):
        if file.name in TABLES:
            found.tables.append(file)
        elif is_picture(file):
            found.pictures.append(file)
        else:
            found.others += 1
    tables = [read_table(t) for t in sorted(found.tables, key=lambda t: (len(t.parts), t.name))]
    found.problems += [p for t in tables for p in t.problems]
    said = listed(root, tables)
    found.pictures = sorted({*found.pictures, *(p for p in said if p.is_relative_to(root) and p.exists())})
    return found, said


def _from_table(path: Path) -> tuple[Listing, dict[Path, Said]]:
    table = read_table(path)
    said = listed(path.parent, [table])
    return Listing(path.parent, [p for p in said if p.exists()], [path], list(table.problems)), said


def listed(root: Path, tables: list[Table]) -> dict[Path, Said]:
    """What the tables say, by picture; later tables (deeper folders) add their captions on top."""
    said: dict[Path, Said] = {}
    for table in tables:
        for entry in table.entries:
            picture = _below(root, table.path.parent / entry.file)
            before = said.get(picture, Said((), {}, ""))
            layers = entry.layers or ((("metadata", entry.text),) if entry.text else ())
            captions = (*before.captions, *(Caption(by, text) for by, text in layers))
            said[picture] = Said(captions, {**before.extra, **entry.extra}, f"{table.path.name} line {entry.line}")
    return said


def _below(root: Path, path: Path) -> Path:
    """The path as a walk from root would give it; a path outside of root stands for itself."""
    relative = os.path.relpath(path, root)
    return Path(os.path.abspath(path)) if relative.startswith("..") else root / relative


def is_picture(file: Path) -> bool:
    """Whether a file is taken for a picture: by extension when that is known, else by content."""
    suffix = file.suffix.lower()
    if suffix in PICTURES:
        return True
    if suffix in OTHERS:
        return False
    try:
        if not S_ISREG(os.stat(file).st_mode):
            return False
        with open(file, "rb") as f:
            return bool(sniff(f.read(MAGIC)))
    except OSError:
        return False


def _name(path: Path, root: Path) -> str:
    """The path below root with forward slashes; characters that are no Unicode are shown as U+FFFD. Never leads out of root."""
    relative = Path(os.path.relpath(path, root))
    if ".." in relative.parts:  # a table may name files elsewhere; their folders stay apart
        relative = Path(digest(os.fsencode(path.parent))[:6], path.name)
    return os.fsencode(relative.as_posix()).decode("utf-8", "replace")


def read_row(picture: Path, root: Path, said: Said | None, problems: list[str]) -> Row:
    """One picture with its captions. Never raises for what is wrong with the file: the row's `dropped` says it."""
    name = _name(picture, root)
    captions, info = _captions(picture, root, said, problems)
    blob, size = Blob(os.fsencode(picture.absolute()).decode("utf-8", "replace"), ""), (0, 0)
    try:
        if "\ufffd" in name:
            raise Unreadable("the file's name is not UTF-8; rename it")
        if not S_ISREG(os.stat(picture).st_mode):
            raise Unreadable("not a file but a folder, pipe or device")
        with open(picture, "rb") as f:
            stat = os.fstat(f.fileno())
            blob = Blob.of(picture.absolute())
            header = read_header(f)
            info |= {"format": header.format, "bytes": stat.st_size}
            size = header.size
            check_end(f, header)
    except OSError as error:
        return Row(blob, name, *size, captions, f"unreadable: {error.strerror or error}", info)
    except Unreadable as error:
        return Row(blob, name, *size, captions, f"unreadable: {error}", info)
    return Row(blob, name, *size, captions, "", info)


def _mask(path: Path, problems: list[str]) -> dict[str, Any]:
    """The picture that says where another one counts, by its brightness."""
    try:
        return {"mask": vars(Blob.of(path.absolute()))}
    except OSError as error:
        problems.append(f"mask {path}: {error.strerror or error}")
        return {}


def _captions(picture: Path, root: Path, said: Said | None, problems: list[str]) -> tuple[tuple[Caption, ...], dict[str, Any]]:
    layers: list[Caption] = []
    info: dict[str, Any] = {}
    kohya = KOHYA.fullmatch(picture.parent.name) if picture.parent != root or KOHYA.fullmatch(root.name) else None
    if kohya:
        info["repeats"] = int(kohya[1])
        layers.append(Caption("folder", plain(kohya[2])))
    if said:
        layers += said.captions
        info |= {"metadata": dict(said.extra)} if said.extra else {}
        if isinstance(mask := said.extra.get("mask"), str) and mask:
            info |= _mask(picture.parent / mask, problems)
    for suffix in SIDECARS:
        file = picture.with_suffix(suffix)
        try:
            text = plain(read_text(file))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        if text:
            layers.append(Caption("file", text))
            break
    return tuple(layers), info
