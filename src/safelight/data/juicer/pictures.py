"""One picture of a row while it is measured: the file's status, its header, its pixels, each looked at once and when it is asked for."""
from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from safelight.data.headers import jpeg_header, read_header
from safelight.data.juicer.known import Known
from safelight.limits import MAX_PIXELS, Unreadable

if TYPE_CHECKING:
    from PIL import Image as Pil

HEAD = 4096
"""Bytes that hold the header of nearly every JPEG; when they do not, the file is read further."""
LARGEST = 2 * MAX_PIXELS
"""Where Pillow, and so Data-Juicer, refuses a picture."""


class Picture:
    """`least`: the pixels that the shorter side must keep when the picture is decoded; 0: all there are."""

    def __init__(self, path: str, known: Known, least: int = 0) -> None:
        self.path, self.known, self.least = path, known, least
        self._stat: os.stat_result | None = None
        self._size: tuple[int, int] | None = None

    @property
    def stat(self) -> os.stat_result:
        """What the file system says of the file now. OSError when it is not there."""
        found = self._stat
        if found is None:
            found = self._stat = os.stat(self.path)
        return found

    def seen(self, stat: os.stat_result) -> None:
        """What is known of the file from having it open; cheaper than asking for it by its name."""
        self._stat = self._stat or stat

    @property
    def stamp(self) -> str:
        """Changes when the file does."""
        stat = self.stat
        return f"{stat.st_size} {stat.st_mtime_ns}"

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as the picture is to be seen, from its header. OSError or Unreadable."""
        found = self._size
        if found is None:
            width, height = self.known.answer(self, "size 1", _size)
            found = self._size = width, height
        return found

    @cached_property
    def pixels(self) -> Pil.Image:
        """RGB, upright, as Data-Juicer loads it (transparency is dropped); a JPEG by 1/2, 1/4 or 1/8 when `least` allows. Unreadable."""
        import warnings

        from PIL import Image, ImageFile, ImageOps

        from safelight.pictures import BROKEN

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


def _size(picture: Picture) -> tuple[int, int]:
    handle = os.open(picture.path, os.O_RDONLY)
    try:
        if picture.known.file is not None:
            picture.seen(os.fstat(handle))
        head = os.read(handle, HEAD)
    finally:
        os.close(handle)
    found = jpeg_header(head) if head[:3] == b"\xff\xd8\xff" else None
    if found is not None and 0 < found[0] * found[1] <= LARGEST:
        width, height, orientation = found
        return (height, width) if orientation >= 5 else (width, height)
    with open(picture.path, "rb") as f:
        return read_header(f, limit=LARGEST).size
