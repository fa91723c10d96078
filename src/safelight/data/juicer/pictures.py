"""One picture of a row while it is measured: the file's status, its header, its pixels, each looked at once and when it is asked for."""
from __future__ import annotations

import io
import os
from functools import cached_property
from typing import TYPE_CHECKING

from safelight.data.headers import read_header
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

    @cached_property
    def stat(self) -> os.stat_result:
        """What the file system says of the file now. OSError when it is not there."""
        return os.stat(self.path)

    @cached_property
    def stamp(self) -> str:
        """Changes when the file does."""
        return f"{self.stat.st_size} {self.stat.st_mtime_ns}"

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) as the picture is to be seen, from its header. OSError or Unreadable."""
        width, height = self.known.answer(self, "size 1", _size)
        return width, height

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
    with open(handle, "rb", buffering=0) as raw:
        head = raw.read(HEAD)
        if head[:2] == b"\xff\xd8":
            try:
                return read_header(io.BytesIO(head), limit=LARGEST).size
            except Unreadable:  # it goes on behind what was read, or it is broken: the whole file tells
                pass
        with io.BufferedReader(raw) as f:
            return read_header(f, limit=LARGEST).size
