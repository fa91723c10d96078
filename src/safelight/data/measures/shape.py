"""Measures that the header alone answers."""
from __future__ import annotations

from safelight.data.measures import Picture, measure


@measure(needs="header", label="width", unit="px")
def width(picture: Picture) -> float:
    """Pixels across, after EXIF orientation."""
    return picture.row.width


@measure(needs="header", label="height", unit="px")
def height(picture: Picture) -> float:
    """Pixels down, after EXIF orientation."""
    return picture.row.height


@measure(needs="header", label="shorter side", unit="px")
def min_side(picture: Picture) -> float:
    """The smaller of width and height in pixels."""
    return min(picture.row.width, picture.row.height)


@measure(needs="header", label="longer side", unit="px")
def max_side(picture: Picture) -> float:
    """The larger of width and height in pixels."""
    return max(picture.row.width, picture.row.height)


@measure(needs="header", label="aspect ratio")
def aspect(picture: Picture) -> float:
    """Width over height: 1 is square, above 1 is landscape."""
    return picture.row.width / picture.row.height


@measure(needs="header", label="file size", unit="bytes")
def file_bytes(picture: Picture) -> float:
    """The file's length in bytes, 0 when it was not recorded."""
    return float(picture.row.info.get("bytes", 0))
