"""The server's folders, and the one way from a name that somebody sent to a file in them."""
from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.disk import put
from safelight.folders import inside

MARKED = re.compile(r"^(.*?)\s*\[(input|output|temp)\]$")
COUNTED = re.compile(r"^(.*)_\d{5,}_(\.\w+)?$")
PICTURES = {f".{end}": f"image/{kind}" for end, kind in [("jpg", "jpeg"), *((k, k) for k in ("png", "jpeg", "webp", "gif", "bmp"))]}
LONGEST = 200
"""Bytes of a file's name; a path below a folder may have five times as many characters."""


class Outside(ValueError):
    """A name that leads out of its folder, by dots or by a link."""


@dataclass(frozen=True)
class Root:
    """A folder that names lead into, and never out of."""

    path: Path

    def find(self, *names: str) -> Path:
        """The place of a name below the folder; it need not be there. Outside when it leads elsewhere, links followed."""
        name = "/".join(n for n in names if n)
        try:
            plain = inside(name, "file")
        except ValueError as e:
            raise Outside(str(e)) from e
        parts = plain.split("/")
        if len(plain) > 5 * LONGEST or any(len(part.encode("utf-8", "replace")) > LONGEST or not part.isprintable() for part in parts):
            raise Outside(f"file: {name[:60]!a} has a part that is no name for a file")
        found = self.path / plain
        try:
            if not found.resolve().is_relative_to(self.path.resolve()):
                raise Outside(f"file: {name!r} is a link out of the folder")
        except (OSError, RuntimeError) as e:
            raise Outside(f"file: {name!r}: {e}") from e
        return found

    def newest(self) -> list[str]:
        """The files right in the folder, newest first."""
        found = [e for e in os.scandir(self.path) if e.is_file() and e.name[0] != "."] if self.path.is_dir() else []
        return [e.name for e in sorted(found, key=lambda e: -e.stat().st_mtime)]


@dataclass(frozen=True)
class Shelves:
    """All folders of one server below `home`: uploads, results, what is only looked at, what users keep, what workers are writing."""

    home: Path
    input: Root
    output: Root
    temp: Root
    user: Root
    staging: Path

    @staticmethod
    def below(home: Path, input: Path | None = None, output: Path | None = None) -> Shelves:
        """The folders, made where they are missing."""
        home = home.expanduser().absolute()
        results = (output or home / "output").expanduser().absolute()
        uploads = (input or home / "input").expanduser().absolute()
        made = Shelves(home, Root(uploads), Root(results), Root(results / "temp"), Root(home / "user"), results / ".staging")
        for path in (home, uploads, results, made.temp.path, made.user.path, made.staging):
            path.mkdir(parents=True, exist_ok=True)
        return made

    def clear(self) -> None:
        """Remove what nobody needs after an end: pictures that were only looked at, and half of what a worker wrote."""
        for folder in (self.temp.path, self.staging):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)

    def root(self, kind: str) -> Root:
        """By ComfyUI's name for it. ValueError for another name."""
        roots = {"input": self.input, "output": self.output, "temp": self.temp}
        if kind not in roots:
            raise ValueError(f"type: got {kind!r}, expected one of input, output, temp")
        return roots[kind]

    def picture(self, filename: str, kind: str = "output", subfolder: str = "") -> Path:
        """Where a picture lies that a request names; ` [output]` and the like behind the name count."""
        marked = MARKED.match(filename)
        return self.root(marked[2] if marked else kind).find(subfolder, marked[1] if marked else filename)

    def told(self, path: Path) -> dict[str, str]:
        """A picture's name as ComfyUI writes it: filename, subfolder, type."""
        kind, root = ("temp", self.temp) if path.is_relative_to(self.temp.path) else ("output", self.output)
        inner = path.relative_to(root.path)
        return {"filename": inner.name, "subfolder": "" if inner.parent == Path(".") else inner.parent.as_posix(), "type": kind}


class Names:
    """Free names for results: one number after the other for each prefix, whoever made the pictures. For one thread."""

    def __init__(self) -> None:
        self.last: dict[Path, int] = {}

    def free(self, root: Path, staged: str, chosen: dict[str, str]) -> Path:
        """The place of a result that a worker wrote as `staged`, a path below its folder: the same name with the next free number. Files of
        one numbered folder stay together: `chosen` holds what was found for one prompt."""
        parts = staged.split("/")
        at = next((i for i, part in enumerate(parts) if COUNTED.match(part)), len(parts) - 1)
        head, rest = "/".join(parts[: at + 1]), parts[at + 1 :]
        if head not in chosen:
            found = COUNTED.match(head)
            stem, suffix = (found[1], found[2] or "") if found else os.path.splitext(head)
            chosen[head] = head if not found and not (root / head).exists() else self._next(root, stem, suffix)
        place = root / "/".join([chosen[head], *rest])
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _next(self, root: Path, stem: str, suffix: str) -> str:
        base = root / stem
        number = self.last.get(base) or _highest(base)
        name = stem
        while name == stem or (root / name).exists():
            number += 1
            name = f"{stem}_{number:05}_{suffix}"
        self.last[base] = number
        if len(self.last) > 10_000:
            self.last.pop(next(iter(self.last)))
        return name


def _highest(base: Path) -> int:
    """The highest number that a prefix has in its folder."""
    if not base.parent.is_dir():
        return 0
    start = f"{base.name}_".lower()
    taken = [e.name[len(start) :].partition("_")[0] for e in os.scandir(base.parent) if e.name.lower().startswith(start)]
    return max((int(t) for t in taken if t.isdecimal()), default=0)


def keep_upload(root: Root, name: str, content: bytes, *, subfolder: str = "", overwrite: bool = False) -> Path:
    """Write an upload; of the same name and bytes nothing new is made, of other bytes `name (1).png`."""
    name = os.path.basename(name.replace("\\", "/"))
    place = root.find(subfolder, name)
    stem, suffix = os.path.splitext(name)
    count = 0
    while not overwrite and place.exists():
        if hashlib.sha256(place.read_bytes()).digest() == hashlib.sha256(content).digest():
            return place
        count += 1
        place = root.find(subfolder, f"{stem} ({count}){suffix}")
    put(place, content)
    return place


def media(path: Path) -> str:
    """The type a file is served with: a picture's own, for all else one that no browser opens."""
    return PICTURES.get(path.suffix.lower(), "application/octet-stream")


def info(path: Path, root: Path) -> dict[str, Any]:
    """Path below a root, size, and times in milliseconds."""
    stat = path.stat()
    times = {"modified": int(stat.st_mtime * 1000), "created": int(stat.st_ctime * 1000)}
    return {"path": path.relative_to(root).as_posix(), "size": stat.st_size, **times}
