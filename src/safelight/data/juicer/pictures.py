"""One picture of a row while it is measured: the file's status, its header, its pixels, each looked at once and when it is asked for."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from functools import cached_property
from stat import S_ISREG
from typing import TYPE_CHECKING

from safelight.data.headers import jpeg_header, read_header
from safelight.data.juicer.known import Known, Told
from safelight.limits import MAX_PIXELS, Unreadable

if TYPE_CHECKING:
    from PIL import Image as Pil

READ = os.O_RDONLY if sys.platform == "win32" else os.O_RDONLY | os.O_NONBLOCK  # a pipe does not hold everything up
HEAD = 4096
"""Bytes that hold the header of nearly every JPEG; when they do not, the file is read further."""
LARGEST = 2 * MAX_PIXELS
"""Where Pillow, and so Data-Juicer, refuses a picture."""


SIZE = "size 2"
"""Under which name width << 32 | height is kept."""
Size = tuple[int, int]


class Picture:
    """`least`: the pixels that the shorter side must keep when the picture is decoded; 0: all there are. `size`: when it is known."""

    def __init__(self, path: str, known: Known, least: int = 0, size: Size | None = None) -> None:
        self.path, self.known, self.least = path, known, least
        self._stat: os.stat_result | None = None
        self._size = size

    @property
    def stat(self) -> os.stat_result:
        """What the file system says of the file now. OSError when it is not there."""
        found = self._stat
        if found is None:
            found = self._stat = os.stat(self.path)
        return found

    @property
    def size(self) -> Size:
        """(width, height) as the picture is to be seen, from its header. OSError or Unreadable."""
        found = self._size
        if found is None:
            packed = self.known.answer(self, SIZE, lambda p: _pack(measured(p.path)[0]))
            found = self._size = packed >> 32, packed & 0xFFFFFFFF
        return found

    @cached_property
    def pixels(self) -> Pil.Image:
        """RGB, upright, as Data-Juicer loads it (transparency is dropped); a JPEG by 1/2, 1/4 or 1/8 when `least` allows. Unreadable."""
        import warnings

        from PIL import Image, ImageFile, ImageOps

        from safelight.pictures import BROKEN

        if not S_ISREG(self.stat.st_mode):
            raise Unreadable("not a file but a folder, pipe or device")
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            with warnings.catch_warnings(), Image.open(self.path) as file:
                warnings.simplefilter("ignore")
                if self.least:
                    scale = min(1.0, self.least / min(file.size))
                    file.draft("RGB", (max(1, int(file.width * scale)), max(1, int(file.height * scale))))
                file.load()
                return ImageOps.exif_transpose(file).convert("RGB")
        except BROKEN as error:
            raise Unreadable(str(error) or type(error).__name__) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def sizes(paths: Iterable[str], known: Known) -> dict[str, Size]:
    """`Picture.size` of many pictures, in one loop. One that cannot be read is left out; asked alone it says why."""
    found: dict[str, Size] = {}
    old = known.about(SIZE)
    for path in paths:
        try:
            packed = _still(path, old[path]) if path in old else 0
            found[path] = (packed >> 32, packed & 0xFFFFFFFF) if packed else _noted(path, known)
        except (OSError, ValueError):
            continue
    return found


def _still(path: str, told: Told) -> int:
    """What is known of a file, or 0 when it is not as it was."""
    stat = os.stat(path)
    return int(told[2]) if stat.st_mtime_ns == told[1] and stat.st_size == told[0] else 0


def _noted(path: str, known: Known) -> Size:
    size, stat = measured(path, known.file is not None)
    if stat is not None:
        known.note(path, SIZE, stat, _pack(size))
    return size


def _pack(size: Size) -> int:
    return size[0] << 32 | size[1]


def measured(path: str, keeps: bool = False) -> tuple[Size, os.stat_result | None]:
    """(width, height) from the file's header, and its status if it is to be kept. OSError or Unreadable."""
    handle = os.open(path, READ)
    try:
        stat = os.fstat(handle) if keeps else None
        head = os.read(handle, HEAD)
    finally:
        os.close(handle)
    if not head:
        raise Unreadable("the file is empty" if S_ISREG(os.stat(path).st_mode) else "not a file but a pipe or device")
    found = jpeg_header(head) if head[:3] == b"\xff\xd8\xff" else None
    if found is not None and 0 < found[0] * found[1] <= LARGEST:
        width, height, orientation = found
        return ((height, width) if orientation >= 5 else (width, height)), stat
    with open(path, "rb") as f:
        return read_header(f, limit=LARGEST).size, stat
