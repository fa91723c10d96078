"""How sharp a picture is."""
from __future__ import annotations

from safelight import pictures
from safelight.scoring import Subject, metric


@metric("sharpness", label="sharpness")
def sharpness(subject: Subject) -> list[float]:
    """Variance of the Laplacian of the luma (0..255) at a shorter side of at most 256; 0 is flat, below about 20 blurred."""
    return [pictures.sharpness(p) for p in subject.image.bytes8()]
