"""A file of pictures to draw: a prompt a line, with its negative prompt and seed."""
from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.sampling.settings import Guidance, Sampling

NUMBERS: Mapping[str, Callable[[Any], int | float]] = {"seed": int, "steps": int, "scale": float}
KNOWN = ("prompt", "negative", *NUMBERS)


@dataclass(frozen=True)
class Line:
    """One picture. None: as the op's own setting. Without a seed the line's number counts, from 0: the file alone says what is drawn."""

    prompt: str
    seed: int
    negative: str | None = None
    steps: int | None = None
    scale: float | None = None

    def over(self, sampling: Sampling, guidance: Guidance) -> tuple[Sampling, Guidance]:
        """The op's own settings, where the line says nothing else."""
        steps = sampling.steps if self.steps is None else self.steps
        negative = guidance.negative if self.negative is None else self.negative
        scale = guidance.scale if self.scale is None else self.scale
        return dataclasses.replace(sampling, steps=steps), dataclasses.replace(guidance, negative=negative, scale=scale)


def read(path: Path) -> list[Line]:
    """The lines of a .txt (prompt, then negative prompt and seed after tabs), .csv (columns), .jsonl or .yaml (mappings or bare prompts).

    Columns: prompt, negative, seed, steps, scale. Empty lines and lines that begin with # are left out. ValueError naming the line.
    """
    if path.suffix.lower() not in READERS:
        raise ValueError(f"storyboard: {path.name} is not one of {', '.join(READERS)}")
    if not path.is_file():
        raise ValueError(f"storyboard: there is no file {path}")
    rows = READERS[path.suffix.lower()](path.read_text(encoding="utf-8-sig"))
    lines = [_line(path, i, row) for i, row in enumerate(rows)]
    if not lines:
        raise ValueError(f"storyboard: {path} has no prompt in it")
    return lines


def _txt(text: str) -> Iterable[Mapping[str, Any]]:
    for line in text.splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield dict(zip(("prompt", "negative", "seed"), line.split("\t"), strict=False))


def _csv(text: str) -> Iterable[Mapping[str, Any]]:
    return csv.DictReader(text.splitlines())


def _jsonl(text: str) -> Iterable[Mapping[str, Any]]:
    return (_bare(json.loads(line)) for line in text.splitlines() if line.strip())


def _yaml(text: str) -> Iterable[Mapping[str, Any]]:
    import yaml

    loaded = yaml.safe_load(text) or []
    if not isinstance(loaded, list):
        raise ValueError(f"storyboard: expected a list of prompts or mappings, got a {type(loaded).__name__}")
    return map(_bare, loaded)


def _bare(row: Any) -> Mapping[str, Any]:
    return row if isinstance(row, dict) else {"prompt": row}


READERS: Mapping[str, Callable[[str], Iterable[Mapping[str, Any]]]] = {
    ".txt": _txt, ".csv": _csv, ".jsonl": _jsonl, ".yaml": _yaml, ".yml": _yaml,
}


def _line(path: Path, number: int, row: Mapping[str, Any]) -> Line:
    given = {k: v for k, v in row.items() if v not in (None, "")}
    unknown = [k for k in given if k not in KNOWN]
    if unknown or not str(given.get("prompt", "")).strip():
        wrong = f"unknown column {unknown[0]!r}" if unknown else "no prompt"
        raise ValueError(f"storyboard {path.name}, picture {number}: {wrong}; expected {', '.join(KNOWN)}")
    try:
        numbers = {name: kind(given[name]) for name, kind in NUMBERS.items() if name in given}
    except ValueError as e:
        raise ValueError(f"storyboard {path.name}, picture {number}: {e}") from e
    seed = int(numbers.pop("seed", -1))
    negative = str(given["negative"]) if "negative" in given else None
    return Line(str(given["prompt"]).strip(), number if seed < 0 else seed, negative, **numbers)  # type: ignore[arg-type]
