"""Booru tags by the WD taggers: `model.onnx` and `selected_tags.csv`, through onnxruntime (the extra `onnx`)."""
from __future__ import annotations

import csv
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pil

from safelight.data.asking import Tagging
from safelight.data.captioners import Asked, captioner
from safelight.data.networks import find, looked
from safelight.events import Event
from safelight.pictures import read
from safelight.values import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

GENERAL, CHARACTER, RATING = 0, 4, 9
"""The categories of selected_tags.csv."""
FACE = 3  # names up to so many letters are faces, ^_^ and o_o, and keep their underscore


@dataclass(frozen=True)
class Tags:
    """What the network's outputs mean: names and categories, in their order."""

    names: tuple[str, ...]
    categories: tuple[int, ...]

    @staticmethod
    def of(path: Path) -> Tags:
        """From selected_tags.csv: tag_id, name, category, count. ValueError when it is not that table."""
        with open(path, encoding="utf-8", newline="") as f:
            rows = list(csv.DictReader(f))
        if not rows or not {"name", "category"} <= set(rows[0]):
            raise ValueError(f"caption: {path}: expected a table with the columns tag_id, name, category and count")
        return Tags(tuple(r["name"] for r in rows), tuple(int(r["category"]) for r in rows))


def prepared(path: Path, side: int) -> NDArray[np.float32]:
    """(side, side, 3) float32 in 0..255, blue first: the whole picture in the middle of a white square."""
    pixels = read(path)
    height, width = pixels.shape[:2]
    edge = max(height, width)
    page = Pil.new("RGB", (edge, edge), (255, 255, 255))
    page.paste(Pil.fromarray(pixels), ((edge - width) // 2, (edge - height) // 2))
    sized = page.resize((side, side), Pil.Resampling.BOX if edge > side else Pil.Resampling.LANCZOS)
    return np.ascontiguousarray(np.asarray(sized, dtype=np.float32)[:, :, ::-1])


def chosen(probabilities: NDArray[np.float32], tags: Tags, asked: Tagging) -> str:
    """(N,) probabilities -> the tags that are likely enough, in the table's order (frequent ones first), joined by `, `."""
    least = {GENERAL: asked.general_threshold, CHARACTER: asked.character_threshold}
    found: dict[int, list[str]] = {GENERAL: [], CHARACTER: []}
    for name, category, p in zip(tags.names, tags.categories, probabilities.tolist(), strict=True):
        if category in least and p >= least[category]:
            found[category].append(_written(name, asked))
    order = (CHARACTER, GENERAL) if asked.character_tags_first else (GENERAL, CHARACTER)
    unwanted = {_written(t, asked) for t in asked.undesired_tags}
    said = [t for category in order for t in found[category] if t not in unwanted]
    first = [t for t in (_written(t, asked) for t in asked.always_first_tags) if t in said]
    said = [*first, *(t for t in said if t not in first)]
    ratings = [i for i, category in enumerate(tags.categories) if category == RATING]
    if asked.rating != "no" and ratings:
        best = _written(tags.names[max(ratings, key=lambda i: float(probabilities[i]))], asked)
        said = [best, *said] if asked.rating == "first" else [*said, best]
    return ", ".join(said)


def _written(tag: str, asked: Tagging) -> str:
    return tag.replace("_", " ") if asked.remove_underscore and len(tag) > FACE else tag


def _session(file: Path) -> Any:
    try:
        runtime = import_module("onnxruntime")  # an extra: hundreds of megabytes that only this captioner needs
    except ImportError as error:
        raise ValueError("caption: by='wd14' needs onnxruntime, which is not installed; pip install 'safelight[onnx]'") from error
    able = [p for p in ("CUDAExecutionProvider", "CPUExecutionProvider") if p in runtime.get_available_providers()]
    return runtime.InferenceSession(str(file), providers=able)


@captioner("wd14")
def from_wd14(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """Tags by a WD tagger, each category with its own threshold. `network` holds model.onnx and selected_tags.csv. Yields Progress."""
    place = find("wd14", asked.looking.network)
    missing = [n for n in ("model.onnx", "selected_tags.csv") if not (place / n).is_file()]
    if missing:
        raise ValueError(f"caption: {place} has no {' and no '.join(missing)}; expected the folder of a WD tagger")
    session, tags = _session(place / "model.onnx"), Tags.of(place / "selected_tags.csv")
    [taken] = session.get_inputs()
    fixed, side, _, channels = taken.shape
    if channels != 3 or not isinstance(side, int):
        raise ValueError(f"caption: {place / 'model.onnx'} takes {taken.shape}; expected (N, side, side, 3), as SmilingWolf's taggers do")
    count = fixed if isinstance(fixed, int) and fixed > 0 else 0  # files exported with a fixed batch take just that many

    def say(some: Sequence[Row], pictures: list[NDArray[np.float32]]) -> list[str]:
        batch = np.stack([*pictures, *pictures[-1:] * (count - len(pictures))])
        seen = np.asarray(session.run(None, {taken.name: batch})[0], dtype=np.float32)
        if seen.shape[1] != len(tags.names):
            raise ValueError(f"caption: {place}: the network has {seen.shape[1]} outputs and selected_tags.csv {len(tags.names)} rows")
        return [chosen(p, tags, asked.tagging) for p in seen[:len(some)]]

    return (yield from looked(rows, asked.looking, lambda path: prepared(path, side), say, size=count))
