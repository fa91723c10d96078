"""How colourful a picture is."""
from __future__ import annotations

from safelight import pictures
from safelight.scoring import Subject, metric


@metric("colourfulness", label="colourfulness")
def colourfulness(subject: Subject) -> list[float]:
    """Hasler and Suesstrunk's M (2003): 0 is grey, 15 slight, 60 strong, 100 extreme."""
    return [pictures.colourfulness(p) for p in subject.image.bytes8()]
