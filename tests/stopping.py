"""Running a training to its end, or only so far."""
from collections.abc import Generator
from typing import Any

from safelight.values import Patch


def end(work: Generator[Any, Any, Patch], stop_after: int | None = None) -> Patch | None:
    """The patch; None when the work was closed after so many events of training."""
    seen = 0
    while True:
        try:
            event = next(work)
        except StopIteration as done:
            patch: Patch = done.value
            return patch
        seen += getattr(event, "what", "") == "train"
        if stop_after is not None and seen >= stop_after:
            work.close()
            return None
