"""Files that are there whole or not at all."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

PART = ".part"
"""How the names of half-written files end; torch.save wants something before a dot and after it."""


def place(tmp: Path, path: Path, write: Callable[[Path], object], *, flush: bool = True) -> None:
    """Let `write` fill a hidden file in the folder `tmp`, flush it to the disk, rename it to `path` (same file system)."""
    beside = tmp / f".{os.urandom(16).hex()}{PART}"
    try:
        write(beside)
        if flush:
            flushed(beside)
        path.parent.mkdir(exist_ok=True)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def put(path: Path, content: bytes) -> None:
    """Write the bytes beside the place and rename, making the folders above: nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    place(path.parent, path, lambda beside: beside.write_bytes(content))


def sweep(folder: Path) -> None:
    """Remove what killed processes left half written by `place` anywhere below a folder that nobody else writes to."""
    for left in folder.rglob(f".{'[0-9a-f]' * 32}{PART}"):
        left.unlink(missing_ok=True)


def copy(content: str | Path | bytes, to: Path) -> str:
    """Write a file's content or the bytes to `to`, flushed; the sha256 as 64 hex digits."""
    import hashlib

    h = hashlib.sha256()
    with open(to, "wb") as out:
        for chunk in _chunks(content):
            h.update(chunk)
            out.write(chunk)
    flushed(to)
    return h.hexdigest()


def _chunks(content: str | Path | bytes) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    with open(content, "rb") as f:
        while chunk := f.read(2**20):
            yield chunk


def flushed(path: Path) -> None:
    """Wait until what was written to a file, or which names a folder has, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
