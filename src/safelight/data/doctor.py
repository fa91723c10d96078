"""What is wrong with a folder of captioned pictures, before a step is spent on it. Files are read, never changed.

A check is a function from the folder as it was read to findings; each finding names one file and one kind, and one defect is told once.
"""
from __future__ import annotations

import codecs
import dataclasses
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from safelight.data.curation import Known, copies, hashed
from safelight.data.folder import OTHERS, SIDECARS, Listing, is_picture, listed, read_row, walk
from safelight.data.headers import MAGIC, read_header, sniff
from safelight.data.juicer.known import contents
from safelight.data.measures import Picture
from safelight.data.metadata import TABLES, Table, chinese, read_table
from safelight.events import Event, Progress
from safelight.pictures import Unreadable
from safelight.values import Row

KINDS = {
    "corrupt": ("Files that cannot be decoded", "Download or export them again, or remove them."),
    "table": ("Lines of a table that cannot be used", "Repair the line; every line names a picture that is there."),
    "encoding": ("Text that is not plain UTF-8", "Save it again as UTF-8 without a byte-order mark."),
    "no-caption": ("Pictures without a caption", "Write NAME.txt beside the picture, a metadata.csv, or run safelight caption."),
    "empty-caption": ("Captions that are empty", "Write something, or remove the file; some trainers stop at an empty one."),
    "lines": ("Captions of several lines", "Most trainers read the first line alone; put everything on it."),
    "long-caption": ("Captions longer than the model reads at once", "Shorten them; what is beyond the limit is cut by most trainers."),
    "orphan": ("Captions without a picture", "Rename one of the two, so that both have the same name, or remove it."),
    "shared-caption": ("Pictures that share one caption file", "Rename one of them; its caption is the other's."),
    "extension": ("Files that training scripts do not read", "Give pictures the extension of what they are, captions .txt or .caption."),
    "rotated": ("Pictures that are upright by EXIF only", "Save them turned; several trainers ignore EXIF and learn them lying down."),
    "tiny": ("Pictures that are too small", "Remove them, or take a larger version; enlarged ones teach blur."),
    "aspect": ("Pictures of an odd shape", "Crop them; much of such a picture is cut off or squeezed."),
    "duplicate": ("Files that are there twice", "Remove one; safelight curate drops it."),
    "conflict": ("The same picture with different captions", "Decide for one caption."),
    "near-duplicate": ("Pictures that look alike", "Keep the better one; safelight curate drops the others."),
    "leak": ("Held-out pictures that are also trained on", "Take them out of one side; the held-out loss tells nothing otherwise."),
}
"""kind -> (heading, what to do)."""

READ = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
"""Extensions that sd-scripts and its relatives read."""
SUFFIXES = {"jpeg": (".jpg", ".jpeg", ".jfif"), "png": (".png",), "webp": (".webp",), "gif": (".gif",), "bmp": (".bmp",)}
HELD_OUT = re.compile(r"(val|valid|validation|test|eval|evaluation|held[-_ ]?out|hold[-_ ]?out)(set|s)?", re.IGNORECASE)
NO_CAPTION = re.compile(r"(readme|licen[cs]e|copying|notice|changelog|prompts?|samples?|notes?|attribution|credits)\b", re.IGNORECASE)
EVERY = 20


@dataclass(frozen=True)
class Limits:
    """What counts as wrong: shorter side in pixels, greatest ratio of the sides, bits of 64 in which look-alikes differ, tokens.

    `count` says how many tokens a caption has; nothing: they are not counted.
    """

    min_side: int = 256
    max_aspect: float = 3.0
    distance: int = 6
    room: int = 75
    count: Callable[[str], int] | None = None


@dataclass(frozen=True)
class Finding:
    """One defect: which kind (KINDS), which file below the folder, what exactly, and the pictures it is about."""

    kind: str
    file: str
    text: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Examined:
    """The pictures that were looked at, and the findings by kind, then file."""

    rows: tuple[Row, ...]
    findings: tuple[Finding, ...]
    files: int


@dataclass
class Ward:
    """The folder as it was read."""

    root: Path
    limits: Limits
    files: list[Path] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    held: set[str] = field(default_factory=set)
    known: Known = field(default_factory=dict)
    hashes: dict[str, int] = field(default_factory=dict)
    found: list[Finding] = field(default_factory=list)

    @property
    def sound(self) -> list[Row]:
        """Rows that decode."""
        broken = {f.file for f in self.found if f.kind == "corrupt"}
        return [r for r in self.rows if not r.dropped and r.name not in broken]

    def name(self, path: Path) -> str:
        """Below the folder, with forward slashes."""
        return path.relative_to(self.root).as_posix().encode("utf-8", "replace").decode("utf-8", "replace")

    def say(self, kind: str, file: str, text: str, *rows: Row) -> None:
        """Add a finding."""
        self.found.append(Finding(kind, file, text, rows))


def examine(root: Path, limits: Limits, held_out: Path | None = None, kept: Path | None = None) -> Generator[Event, None, Examined]:
    """Look at everything below the folder. `held_out`: a folder of pictures not to be trained on, besides folders named test, val, ...
    `kept`: the file of kept measures; a picture that is known there is not decoded again.

    Yields Progress. ValueError when the folder is none or has no file at all.
    """
    ward = Ward(Path(root).expanduser(), limits)
    _read(ward)
    if not ward.files:
        raise ValueError(f"dataset check: {root} has no files; expected a folder of pictures")
    ward.held = {r.name for r in ward.rows if any(HELD_OUT.fullmatch(part) for part in PurePosixPath(r.name).parts[:-1])}
    if held_out is not None:
        _hold_out(ward, Path(held_out).expanduser())
    todo = [r for r in ward.rows if not r.dropped]
    with contents(kept, [r.picture.sha256 for r in todo]) as ward.known:
        for n, row in enumerate(todo):
            if n % EVERY == 0:
                yield Progress(step=n, total=len(todo), what="looking at pictures", unit="picture")
            try:
                ward.hashes[row.name] = hashed(Picture(row), ward.known)
            except Unreadable as error:
                ward.say("corrupt", row.name, str(error), row)
        yield Progress(step=len(todo), total=len(todo), what="looking at pictures", unit="picture")
        for check in CHECKS:
            check(ward)
    order = list(KINDS)
    return Examined(tuple(ward.rows), tuple(sorted(ward.found, key=lambda f: (order.index(f.kind), f.file))), len(ward.files))


def _hold_out(ward: Ward, folder: Path) -> None:
    """Pictures of a folder are not to be trained on; one that lies elsewhere is read, and its pictures are named after it."""
    if not folder.is_dir():
        raise ValueError(f"dataset check: {folder} is no folder; give a folder of held-out pictures")
    if not folder.absolute().is_relative_to(ward.root.absolute()):
        other = Ward(folder, ward.limits)
        _read(other)
        ward.rows += [dataclasses.replace(row, name=f"{folder.name}/{row.name}") for row in other.rows]
        ward.found += [dataclasses.replace(f, file=f"{folder.name}/{f.file}") for f in other.found]
    ward.held |= {r.name for r in ward.rows if Path(r.picture.path).is_relative_to(folder.absolute())}


def _read(ward: Ward) -> None:
    """Files, tables and rows; a table that cannot be read is a finding and not the end."""
    if not ward.root.is_dir():
        raise ValueError(f"dataset check: {ward.root} is no folder; give the folder of pictures")
    ward.files = sorted(walk(ward.root, Listing(ward.root)))
    tables: list[Table] = []
    for path in (f for f in ward.files if f.name in TABLES):
        if path.suffix != ".parquet" and not _text(ward, path):
            continue
        try:
            tables.append(read_table(path))
        except ValueError as error:
            ward.say("table", ward.name(path), str(error))
    said = listed(ward.root, tables)
    for table in tables:
        for problem in table.problems:
            ward.say("table", ward.name(table.path), problem)
    ward.rows = [read_row(path, ward.root, said.pop(path, None), []) for path in ward.files if is_picture(path)]
    for path, what in said.items():
        if not path.exists():
            ward.say("table", os.path.relpath(path, ward.root), f"{what.place} names it, but it is not there")


def _text(ward: Ward, path: Path) -> str:
    """A text file's content; what is wrong with its encoding becomes a finding, and then it is empty or without its mark."""
    name = ward.name(path)
    if not path.is_file():
        ward.say("corrupt", name, "it is no file but a pipe or device, or a link that leads nowhere")
        return ""
    raw = path.read_bytes()
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in raw[:200]:
        ward.say("encoding", name, "it is UTF-16, so other programs read it as garbage or stop")
        return ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        guess = " ".join(chinese(raw).split())[:40]
        ward.say("encoding", name, f"it is not UTF-8 (byte {error.start})" + (f"; as GBK it reads: {guess}" if guess else ""))
        return ""
    if raw.startswith(codecs.BOM_UTF8) and path.suffix != ".csv":  # spreadsheets need the mark in a table
        ward.say("encoding", name, "it begins with a byte-order mark, which becomes part of the caption's first word")
    return text


def _corrupt(ward: Ward) -> None:
    for row in ward.rows:
        if row.dropped:
            ward.say("corrupt", row.name, row.dropped.partition(": ")[2], row)


def _captions(ward: Ward) -> None:
    """What caption files say, and pictures nobody says anything of."""
    beside: dict[str, list[Row]] = {}
    for row in ward.rows:
        beside.setdefault(str(Path(row.picture.path).with_suffix("")), []).append(row)
    told: set[str] = set()
    for path in (f for f in ward.files if f.suffix in SIDECARS):
        rows = beside.get(str(path.absolute().with_suffix("")), [])
        if not rows and NO_CAPTION.match(path.name):
            continue
        before, text = len(ward.found), _text(ward, path)
        told |= {r.name for r in rows}
        if not rows and path.is_file():
            ward.say("orphan", ward.name(path), "no picture has this name")
        elif len(rows) > 1:
            ward.say("shared-caption", ward.name(path), "it is read for " + " and ".join(r.name for r in rows), *rows)
        if not text.strip() and len(ward.found) == before and not rows[0].caption:
            ward.say("empty-caption", ward.name(path), "the file is empty", *rows)
        elif len([line for line in text.splitlines() if line.strip()]) > 1:
            ward.say("lines", ward.name(path), f"it has {len(text.strip().splitlines())} lines", *rows)
    for row in ward.rows:
        if not row.dropped and not row.caption and row.name not in told:
            ward.say("no-caption", row.name, "no file, table or folder name says anything", row)


def _lengths(ward: Ward) -> None:
    count = ward.limits.count
    for row in ward.sound if count else ():
        if count and (n := count(row.caption)) > ward.limits.room:
            ward.say("long-caption", row.name, f"{n} tokens, of which {ward.limits.room} are read at once", row)


def _extensions(ward: Ward) -> None:
    """Pictures under a name that is not read or is another format's, and files that look like captions or tables and are not."""
    stems = {str(Path(r.picture.path).with_suffix("")) for r in ward.rows}
    pictures = {Path(r.picture.path): r for r in ward.rows}
    for path in ward.files:
        suffix, row = path.suffix, pictures.get(path.absolute())
        if row is not None:
            kind = str(row.info.get("format", ""))
            if suffix.lower() not in READ:
                ward.say("extension", row.name, f"{suffix or 'no extension'}; training scripts read {', '.join(sorted(READ))}", row)
            elif kind in SUFFIXES and suffix.lower() not in SUFFIXES[kind]:
                ward.say("extension", row.name, f"it is a {kind} file", row)
        elif suffix in OTHERS:
            if _looks_like_picture(path):
                ward.say("extension", ward.name(path), "it holds a picture")
            elif path.stem == "metadata" and path.name not in TABLES:
                ward.say("extension", ward.name(path), f"tables are read when they are named {' or '.join(TABLES)}")
        elif str(path.absolute().with_suffix("")) in stems or path.stem == "metadata":
            ward.say("extension", ward.name(path), f"captions are read from {', '.join(SIDECARS)} and {', '.join(TABLES)}")


def _looks_like_picture(path: Path) -> bool:
    if not path.is_file():
        return False
    with open(path, "rb") as f:
        return sniff(f.read(MAGIC)) in SUFFIXES


def _shapes(ward: Ward) -> None:
    for row in ward.sound:
        with open(row.picture.path, "rb") as f:
            orientation = read_header(f).orientation
        if orientation != 1:
            ward.say("rotated", row.name, f"EXIF orientation {orientation}: stored otherwise than shown", row)
        if min(row.width, row.height) < ward.limits.min_side:
            ward.say("tiny", row.name, f"{row.width} x {row.height}, the shorter side is below {ward.limits.min_side}", row)
        if max(row.width, row.height) > ward.limits.max_aspect * min(row.width, row.height):
            ward.say("aspect", row.name, f"{row.width} x {row.height}, more than {ward.limits.max_aspect:g} to 1", row)


def _twins(ward: Ward) -> None:
    """Copies and look-alikes. Across the two sides they are leaks, and a copy with another caption is a conflict."""
    first: dict[str, Row] = {}
    single = []
    for row in _trained_first(ward):
        other = first.setdefault(row.picture.sha256, row)
        if other is row:
            single.append(row)
        elif (row.name in ward.held) != (other.name in ward.held):
            ward.say("leak", row.name, f"the same file as {other.name}", row, other)
        elif row.caption != other.caption and row.caption and other.caption:
            ward.say("conflict", row.name, f"says “{row.caption}”, and {other.name} says “{other.caption}”", row, other)
        else:
            ward.say("duplicate", row.name, f"the same file as {other.name}", row, other)
    if ward.limits.distance < 0:
        return
    for at, (kept, bits) in copies(single, [ward.hashes[r.name] for r in single], ward.limits.distance, ward.known).items():
        row, other = single[at], single[kept]
        across = (row.name in ward.held) != (other.name in ward.held)
        ward.say("leak" if across else "near-duplicate", row.name, f"looks like {other.name} ({bits} of 64 bits differ)", row, other)


def _trained_first(ward: Ward) -> Sequence[Row]:
    """Larger pictures first; those held out after all others, so that what leaks is named on their side."""
    return sorted(ward.sound, key=lambda r: (r.name in ward.held, -r.width * r.height, len(r.name), r.name))


CHECKS: tuple[Callable[[Ward], None], ...] = (_corrupt, _captions, _lengths, _extensions, _shapes, _twins)


def by_kind(findings: Sequence[Finding]) -> Iterator[tuple[str, list[Finding]]]:
    """Kinds that were found, in the order of KINDS."""
    for kind in KINDS:
        some = [f for f in findings if f.kind == kind]
        if some:
            yield kind, some
