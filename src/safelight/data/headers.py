"""Size, format and EXIF orientation of a picture from its first bytes, and whether the file ends where it should. No decoding.

JPEG, PNG, WebP, GIF and BMP are parsed here (about 100,000 files a second and core); anything else goes through Pillow's own header
reader. The format comes from the content, never from the file's name.
"""
from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from safelight.limits import MAX_PIXELS, Unreadable

MAGIC = 32  # bytes that are enough to tell the format
HEAD = 65536
SOF = frozenset(range(0xFFC0, 0xFFD0)) - {0xFFC4, 0xFFC8, 0xFFCC}
PAIR = struct.Struct(">HH").unpack_from
TIFF = {mark: (struct.Struct(f"{order}I").unpack_from, struct.Struct(f"{order}H").unpack_from, struct.Struct(f"{order}HHIH").unpack_from)
        for mark, order in ((b"II", "<"), (b"MM", ">"))}
"""How a number, a short one, and a directory's entry with a short value are read, by the mark of the byte order."""
NAMES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png", b"GIF8": "gif", b"BM": "bmp"}
OTHERS = (b"II*\0", b"MM\0*", b"II+\0", b"\0\0\0\x0cjP", b"8BPS", b"qoif", b"\0\0\1\0", b"DDS ", b"P6", b"P5", b"\xff\x0a")


class Header(NamedTuple):
    """`width` and `height` in pixels as stored; `orientation` is EXIF's 1..8; `format` a lower-case name."""

    width: int
    height: int
    format: str
    orientation: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as the picture is to be seen: swapped for the orientations 5 to 8."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def sniff(magic: bytes) -> str:
    """The format that the first MAGIC bytes of a file tell; `other` for one that Pillow may know; "" for no picture."""
    for mark, name in NAMES.items():
        if magic.startswith(mark):
            return name
    if magic[:4] == b"RIFF" and magic[8:12] == b"WEBP":
        return "webp"
    if magic[4:8] == b"ftyp" and magic[8:12] in (b"avif", b"avis", b"heic", b"mif1"):
        return "other"
    return "other" if magic.startswith(OTHERS) else ""


def read_header(f: BinaryIO, *, limit: int = MAX_PIXELS) -> Header:
    """Parse from the start of an open file. Raises Unreadable with what is wrong; a picture of more than `limit` pixels is."""
    f.seek(0)
    magic = f.read(MAGIC)
    if not magic:
        raise Unreadable("the file is empty")
    kind = sniff(magic)
    if not kind:
        raise Unreadable("not a picture in any known format")
    try:
        header = _PARSERS[kind](f)
    except (struct.error, IndexError) as error:
        raise Unreadable(f"truncated {kind} header") from error
    if header.width < 1 or header.height < 1:
        raise Unreadable(f"{kind} header says {header.width} x {header.height} pixels")
    if header.width * header.height > limit:
        raise Unreadable(f"{header.width} x {header.height} pixels is over the limit of {limit // 10**6} million")
    return header


def check_end(f: BinaryIO, header: Header) -> None:
    """Raise Unreadable when the file stops before the format's end mark: a download that broke off. Reads the last bytes only."""
    size = f.seek(0, os.SEEK_END)
    if header.format == "jpeg":
        complete = _jpeg_ends(f, size)
    elif header.format == "png":
        complete = b"IEND" in _tail(f, size, HEAD)
    elif header.format == "webp":
        f.seek(4)
        complete = size >= struct.unpack("<I", f.read(4))[0] + 8
    elif header.format == "gif":
        complete = _tail(f, size, 1024).rstrip(b"\0").endswith(b"\0;")  # the last block's end, the trailer, padding
    else:
        return
    if not complete:
        raise Unreadable(f"truncated {header.format}: the end of the file is missing")


def _tail(f: BinaryIO, size: int, n: int) -> bytes:
    f.seek(max(0, size - n))
    return f.read(n)


def _jpeg_ends(f: BinaryIO, size: int) -> bool:
    """An end mark after the first scan began; the marks of embedded thumbnails lie before it. Cameras append data behind the mark."""
    scan = next((at for marker, at, _ in _segments(f) if marker == 0xDA), size)
    if b"\xff\xd9" in _tail(f, size, min(HEAD, max(0, size - scan))):
        return True
    f.seek(scan)
    return b"\xff\xd9" in f.read()


def _segments(f: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """(marker, offset of its payload, payload length) up to and including the start of scan."""
    at = 2
    while True:
        f.seek(at)
        mark = f.read(4)
        while mark[:2] == b"\xff\xff":  # fill bytes
            at += 1
            mark = mark[1:] + f.read(1)
        if len(mark) < 4 or mark[0] != 0xFF:
            return
        length = int.from_bytes(mark[2:4], "big")
        yield mark[1], at + 4, length - 2
        if mark[1] == 0xDA or length < 2:
            return
        at += 2 + length


def _jpeg(f: BinaryIO) -> Header:
    f.seek(0)
    data = f.read(HEAD)
    while (found := jpeg_header(data)) is None:
        more = f.read(len(data))
        if not more:
            raise Unreadable("truncated jpeg header")
        data += more
    width, height, orientation = found
    return Header(width, height, "jpeg", orientation)


def jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """(width, height, orientation) from a JPEG's first bytes; None when it takes more of them. Raises Unreadable."""
    at, orientation = 2, 1
    try:
        while True:
            marker, length = PAIR(data, at)
            if marker in SOF:
                height, width = PAIR(data, at + 5)
                return width, height, orientation
            if marker == 0xFFFF:  # a fill byte
                at += 1
                continue
            if marker < 0xFF00 or marker == 0xFFDA or length < 2:
                raise Unreadable("truncated jpeg header")
            exif = marker == 0xFFE1 and orientation == 1 and data[at + 4:at + 10] == b"Exif\0\0"
            if exif and at + 2 + length > len(data):
                return None
            orientation = orientation_of(data[at + 10:at + 2 + length]) if exif else orientation
            at += 2 + length
    except struct.error:
        return None


def _png(f: BinaryIO) -> Header:
    f.seek(8)
    length, kind = struct.unpack(">I4s", f.read(8))
    if kind != b"IHDR":
        raise Unreadable("png without a header chunk")
    width, height = struct.unpack(">II", f.read(8))
    at, orientation = 8 + 12 + length, 1
    while True:  # eXIf may stand before or after the pixels; chunks are skipped by seeking
        f.seek(at)
        head = f.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            break
        length = struct.unpack(">I", head[:4])[0]
        if head[4:] == b"eXIf":
            orientation = orientation_of(f.read(min(length, HEAD)))
            break
        at += 12 + length
    return Header(width, height, "png", orientation)


def _webp(f: BinaryIO) -> Header:
    f.seek(12)
    kind, length = struct.unpack("<4sI", f.read(8))
    head = f.read(10)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[6:10])
        return Header(width & 0x3FFF, height & 0x3FFF, "webp")
    if kind == b"VP8L":
        bits = struct.unpack("<I", head[1:5])[0]
        return Header((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, "webp")
    if kind != b"VP8X" or len(head) < 10:
        raise Unreadable("webp without a picture chunk")
    width, height = (int.from_bytes(head[i:i + 3], "little") + 1 for i in (4, 7))
    return Header(width, height, "webp", _webp_orientation(f, 20 + length + length % 2) if head[0] & 0x08 else 1)


def _webp_orientation(f: BinaryIO, at: int) -> int:
    while True:
        f.seek(at)
        head = f.read(8)
        if len(head) < 8:
            return 1
        length = struct.unpack("<I", head[4:])[0]
        if head[:4] == b"EXIF":
            return orientation_of(f.read(min(length, HEAD)).removeprefix(b"Exif\0\0"))
        at += 8 + length + length % 2


def _gif(f: BinaryIO) -> Header:
    f.seek(6)
    width, height = struct.unpack("<HH", f.read(4))
    return Header(width, height, "gif")


def _bmp(f: BinaryIO) -> Header:
    f.seek(14)
    if struct.unpack("<I", f.read(4))[0] == 12:
        width, height = struct.unpack("<HH", f.read(4))
        return Header(width, height, "bmp")
    width, height = struct.unpack("<ii", f.read(8))
    return Header(width, abs(height), "bmp")


def _other(f: BinaryIO) -> Header:
    import warnings

    from PIL import Image as Pil

    from safelight.pictures import BROKEN

    f.seek(0)
    with warnings.catch_warnings():  # the size is judged by the caller
        warnings.simplefilter("ignore")
        try:
            with Pil.open(f) as picture:
                return Header(*picture.size, (picture.format or "other").lower(), int(picture.getexif().get(0x0112, 1)))
        except BROKEN as error:
            raise Unreadable(str(error) or type(error).__name__) from error


def orientation_of(tiff: bytes) -> int:
    """The orientation tag (0x0112) of the first directory of an EXIF block that begins with its TIFF header; 1 when absent or damaged."""
    order = TIFF.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    number, short, read = order
    at: int = number(tiff, 4)[0]
    if at + 2 > len(tiff):
        return 1
    for entry in range(at + 2, min(at + 2 + 12 * short(tiff, at)[0], len(tiff) - 11), 12):
        tag, kind, _, value = read(tiff, entry)
        if tag == 0x0112:
            found: int = value if kind == 3 else number(tiff, entry + 8)[0]
            return found if 1 <= found <= 8 else 1
    return 1


_PARSERS = {"jpeg": _jpeg, "png": _png, "webp": _webp, "gif": _gif, "bmp": _bmp, "other": _other}
