"""Headers without decoding: sizes and orientations agree with Pillow, damaged files say what is wrong."""
from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil
from PIL import ImageOps

from safelight.data.headers import check_end, orientation_of, read_header, sniff
from safelight.pictures import MAX_PIXELS, Unreadable, read

NOISE = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
EXIF_FORMATS = {"jpeg": {}, "png": {}, "webp": {}, "webp lossless": {"lossless": True}}
PLAIN_FORMATS = {"gif": "GIF", "bmp": "BMP", "tiff": "TIFF", "ppm": "PPM", "jpeg2000": "JPEG2000", "ico": "ICO"}


def encoded(kind: str, orientation: int = 1, **options: object) -> bytes:
    """NOISE (61 x 37 as stored) as a file of that kind."""
    out = io.BytesIO()
    exif = Pil.Exif()
    exif[0x0112] = orientation
    Pil.fromarray(NOISE).save(out, kind, exif=exif, **options)
    return out.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", EXIF_FORMATS)
def test_size_after_orientation(kind: str, orientation: int, tmp_path: Path) -> None:
    raw = encoded(kind.split()[0], orientation, **EXIF_FORMATS[kind])
    header = read_header(io.BytesIO(raw))
    upright = ImageOps.exif_transpose(Pil.open(io.BytesIO(raw)))
    assert header.orientation == orientation
    assert header.size == upright.size
    (tmp_path / "x").write_bytes(raw)
    assert read(tmp_path / "x").shape[:2] == header.size[::-1]


@pytest.mark.parametrize("kind", PLAIN_FORMATS)
def test_other_formats(kind: str) -> None:
    out = io.BytesIO()
    Pil.fromarray(NOISE[:32, :32]).save(out, PLAIN_FORMATS[kind])
    assert read_header(io.BytesIO(out.getvalue())).size == (32, 32)


def test_progressive_jpeg_with_thumbnail_and_comment() -> None:
    raw = encoded("jpeg", progressive=True, comment=b"\xff\xd9 an end mark inside a comment")
    header = read_header(io.BytesIO(raw))
    assert header.size == (61, 37)
    with pytest.raises(Unreadable, match="truncated jpeg"):
        check_end(io.BytesIO(raw[:-40]), header)
    check_end(io.BytesIO(raw + b"what a camera appends" * 9), header)


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp", "gif"])
def test_every_truncation_is_noticed(kind: str) -> None:
    """Whatever prefix is left, the file is refused; nothing but Unreadable is raised."""
    out = io.BytesIO()
    Pil.fromarray(NOISE).save(out, kind)
    raw = out.getvalue()
    for length in range(0, len(raw) - 2, 7):
        with pytest.raises(Unreadable):
            check_end(io.BytesIO(raw[:length]), read_header(io.BytesIO(raw[:length])))


def test_random_damage_never_escapes() -> None:
    rng = np.random.default_rng(1)
    for kind in ("jpeg", "png", "webp", "gif", "bmp", "tiff"):
        out = io.BytesIO()
        Pil.fromarray(NOISE).save(out, kind)
        for _ in range(60):
            raw = bytearray(out.getvalue())
            for at in rng.integers(0, min(len(raw), 400), 6):
                raw[at] = rng.integers(0, 256)
            try:
                check_end(io.BytesIO(raw), read_header(io.BytesIO(raw)))
            except Unreadable:
                continue


def test_a_bomb_is_refused_by_its_header() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    raw = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", side, side, 8, 2, 0, 0, 0) + b"\0\0\0\0"
    with pytest.raises(Unreadable, match="over the limit"):
        read_header(io.BytesIO(raw))


@pytest.mark.parametrize(("raw", "said"), [
    (b"", "empty"), (b"<html><body>not found", "not a picture"), (b"\xff\xd8\xff", "truncated jpeg")])
def test_no_pictures(raw: bytes, said: str) -> None:
    with pytest.raises(Unreadable, match=said):
        read_header(io.BytesIO(raw))


def test_sniff_reads_content() -> None:
    assert sniff(encoded("png")[:32]) == "png"
    assert sniff(encoded("webp")[:32]) == "webp"
    assert sniff(b"%PDF-1.7") == ""


@pytest.mark.parametrize("tiff", [b"", b"II*\0", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_exif_is_upright(tiff: bytes) -> None:
    assert orientation_of(tiff) == 1
