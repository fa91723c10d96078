"""Filters that look with OpenCV: faces by its Haar cascade, collages by their straight lines. OpenCV is imported when one runs."""
from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.data.juicer.pictures import Picture
from safelight.data.juicer.registry import STRATEGY, Param, Pictures, Sample, Settings, picture_filter, row_filter, settle

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEARCH: dict[str, Any] = {
    "cv_classifier": "", "scaleFactor": 1.1, "minNeighbors": 3, "minSize": Param(None, (list,)), "maxSize": Param(None, (list,)),
}
Line = tuple[float, float, float, float]


@cache
def opencv() -> Any:
    """The module. ImportError says what to install."""
    try:
        return import_module("cv2")
    except ImportError as error:
        raise ImportError("the face and subplot filters need OpenCV 4: pip install 'opencv-contrib-python-headless<5'") from error


@cache
def _cascade(path: str) -> Any:
    cv2 = opencv()
    found = cv2.CascadeClassifier(path or str(Path(cv2.data.haarcascades) / "haarcascade_frontalface_alt.xml"))
    if found.empty():
        raise ImportError(f"cv_classifier: {path} is no cascade that OpenCV can read")
    return found


def _grey(picture: Picture) -> NDArray[np.uint8]:
    import numpy as np

    found: NDArray[np.uint8] = opencv().cvtColor(np.asarray(picture.pixels), opencv().COLOR_RGB2GRAY)
    return found


def _faces(picture: Picture, s: Settings) -> list[tuple[int, int]]:
    """Width and height of every face, cut at the picture's edge."""
    grey = _grey(picture)
    height, width = grey.shape
    sizes = {k: tuple(s[k]) if s[k] else None for k in ("minSize", "maxSize")}
    found = _cascade(s["cv_classifier"]).detectMultiScale(grey, scaleFactor=s["scaleFactor"], minNeighbors=s["minNeighbors"], **sizes)
    return [(min(int(w), width - max(int(x), 0)), min(int(h), height - max(int(y), 0))) for x, y, w, h in found]


@picture_filter({"face_counts": ("min_face_count", "max_face_count")}, needs="pixels", **SEARCH, min_face_count=1, max_face_count=1)
def image_face_count_filter(picture: Picture, s: Settings) -> tuple[int]:
    """Faces seen from the front."""
    return (len(_faces(picture, s)),)


@picture_filter({"face_ratios": ("min_ratio", "max_ratio")}, needs="pixels", **SEARCH, min_ratio=0.0, max_ratio=0.4)
def image_face_ratio_filter(picture: Picture, s: Settings) -> tuple[float]:
    """The largest face's share of the picture, in [0, 1]."""
    width, height = picture.pixels.size
    return (max((w * h for w, h in _faces(picture, s)), default=0.0) / (width * height),)


@row_filter(
    "image_subplot_confidence", "horizontal_peak_count", "vertical_peak_count", "subplot_detected", needs="pixels",
    any_or_all=STRATEGY, min_horizontal_lines=3, min_vertical_lines=3, min_confidence=0.5, canny_threshold1=70, canny_threshold2=190,
    hough_threshold=110, min_line_length=110, max_line_gap=18, angle_tolerance=4.0,
)
def image_subplot_filter(sample: Sample, pictures: Pictures, s: Settings) -> str:
    """Drop collages and sheets of figures: pictures with many level and upright lines at even distances."""
    found = [p.known.answer(p, _asked(s), lambda p: _collage(p, s)) for p in pictures]
    sample.stats.update({
        "image_subplot_confidence": settle([c for c, _, _ in found]), "horizontal_peak_count": [h for _, h, _ in found],
        "vertical_peak_count": [v for _, _, v in found],
        "subplot_detected": max((c for c, _, _ in found), default=0.0) >= s["min_confidence"] if found else False,
    })
    judged = [c >= s["min_confidence"] and h >= s["min_horizontal_lines"] and v >= s["min_vertical_lines"] for c, h, v in found]
    collage = bool(judged) and (any(judged) if s["any_or_all"] == "any" else all(judged))
    return f"looks like a collage: {max(c for c, _, _ in found):.2f}" if collage else ""


def _asked(s: Settings) -> str:
    return " ".join(["subplot 1", *[f"{k}={s[k]}" for k in sorted(s) if k.startswith(("canny", "hough", "angle", "min_", "max_line"))]])


def _collage(picture: Picture, s: Settings) -> tuple[float, int, int]:
    """(confidence in [0, 1], level lines, upright lines) by Canny's edges and Hough's transform."""
    import numpy as np

    cv2 = opencv()
    grey = cv2.GaussianBlur(_grey(picture), (5, 5), 0)
    height, width = grey.shape
    edges = cv2.Canny(grey, s["canny_threshold1"], s["canny_threshold2"])
    lines = cv2.HoughLinesP(
        edges, 1, np.pi / 180, s["hough_threshold"], minLineLength=s["min_line_length"], maxLineGap=s["max_line_gap"])
    if lines is None:
        return 0.0, 0, 0
    all_lines: list[Line] = [tuple(line[0].tolist()) for line in lines]
    angles = [90.0 if x1 == x2 else float(np.degrees(np.arctan2(y2 - y1, x2 - x1))) for x1, y1, x2, y2 in all_lines]
    near = s["angle_tolerance"]
    level = [x for x, a in zip(all_lines, angles, strict=True) if abs(a) <= near or abs(a - 180) <= near]
    upright = [x for x, a in zip(all_lines, angles, strict=True) if x not in level and (abs(a - 90) <= near or abs(a + 90) <= near)]
    if not level or not upright:
        return 0.0, len(level), len(upright)
    many = min(len(level) / s["min_horizontal_lines"], 1.0) + min(len(upright) / s["min_vertical_lines"], 1.0)
    even = _even([(a[1] + a[3]) / 2 for a in level], 0.05 * height) + _even([(a[0] + a[2]) / 2 for a in upright], 0.05 * width)
    alike = _alike([abs(a[2] - a[0]) for a in level], 0.3 * width) + _alike([abs(a[3] - a[1]) for a in upright], 0.3 * height)
    grid = min(len(level) * len(upright) / (width * height) * 1000, 1.0) if len(level) > 1 and len(upright) > 1 else 0.0
    return min(float(0.2 * many + 0.15 * even + 0.2 * grid + 0.05 * alike), 1.0), len(level), len(upright)


def _even(positions: list[float], least: float) -> float:
    """How evenly lines are spaced, in [0, 1]; half of it when they lie closer than `least` in the mean."""
    import numpy as np

    return _alike(np.diff(sorted(positions)).tolist(), least) if len(positions) > 1 else 0.0


def _alike(values: list[float], least: float) -> float:
    """1 less the coefficient of variation, not below 0; half of it when the mean is below `least`."""
    import numpy as np

    mean = float(np.mean(values)) if values else 0.0
    if mean == 0:
        return 0.0
    return max(0.0, 1 - float(np.std(values)) / mean) * (0.5 if mean < least else 1.0)
