"""Measures that need the decoded picture; all of them at the same reduced scale, so one decode serves them together; most need
the luma alone, which a JPEG gives without its colours."""
from __future__ import annotations

from safelight import pictures
from safelight.data.measures import Picture, measure


@measure(needs="pixels", label="sharpness", version=3)
def sharpness(picture: Picture) -> float:
    """Variance of the Laplacian, 0 upwards; below about 20 reads as blurred. Flat drawings are low without being blurred."""
    return pictures.sharpness(picture.grey)


@measure(needs="pixels", label="contrast", version=3)
def contrast(picture: Picture) -> float:
    """Standard deviation of the luma in [0, 0.5]; below 0.02 a picture is as good as blank."""
    return pictures.contrast(picture.histogram)


@measure(needs="pixels", label="brightness", version=3)
def brightness(picture: Picture) -> float:
    """Mean luma in [0, 1]."""
    return pictures.brightness(picture.histogram)


@measure(needs="pixels", label="colourfulness")
def colourfulness(picture: Picture) -> float:
    """Hasler and Suesstrunk's M: 0 is grey, 60 strongly coloured, 100 extreme."""
    return pictures.colourfulness(picture.pixels)


@measure(needs="pixels", label="entropy", unit="bits", version=3)
def entropy(picture: Picture) -> float:
    """Shannon entropy of the luma histogram, 0 to 8 bits."""
    return pictures.entropy(picture.histogram)
