"""What the store has of a training, while it runs and ever after: its curves, its samples over the steps, what it found hard."""
from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safelight.limits import FAR
from safelight.server.studio import Studio
from safelight.store import Missing, current
from safelight.values import Patch

SAMPLE = re.compile(r"step-(\d{6,})-(\d+)\.png")
COLUMNS = 9
"""Steps of a strip; of more, some are left out."""


@dataclass(frozen=True)
class Run:
    """`record` is as a training writes it (`loss`, `held_out`, `hard`, ...), `files` where its sample pictures lie, by name. `columns` are
    the strip's steps, `rows` are (prompt, a picture's name or nothing for each of the columns)."""

    record: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    columns: Sequence[int] = ()
    rows: Sequence[tuple[str, Sequence[str]]] = ()

    @property
    def last(self) -> int:
        """The last step that was taken."""
        return 1 + int(self.record["loss"][-1][0]) if self.record.get("loss") else 0

    @property
    def hard(self) -> list[tuple[str, str, float]]:
        """(name, caption, how many times the usual loss it has) of the pictures that are furthest above it at the last look."""
        found: Sequence[Sequence[Any]] = self.record.get("hard") or []
        return [(name, caption, factor) for step, name, caption, factor, _ in found if step == found[-1][0]][:6]

    @property
    def doubtful(self) -> list[tuple[str, str, float]]:
        """(name, caption, median deviations from what captions help) of those whose captions fit far less than the others'."""
        return [(name, caption, far) for _, name, caption, far in self.record.get("doubtful") or () if far > FAR]


def run(at: Studio, id: str, prompts: Sequence[str] = ()) -> Run:
    """What is there of a job's training; nothing where it did not come to that, or the store was cleared. `prompts` are those of its
    samples, as far as they are known before it ends."""
    recipe = _recipe(at, id)
    if not recipe:
        return Run()
    record, files = _ended(recipe) or _going(current().root / "work" / recipe)
    told = {s["file"]: str(s["prompt"]) for s in record.get("samples", ())}
    steps: dict[int, dict[int, str]] = {}
    for name in files:
        if found := SAMPLE.fullmatch(Path(name).name):
            steps.setdefault(int(found[2]), {})[int(found[1])] = name
    columns = _spread(sorted({step for some in steps.values() for step in some}))
    named = {i: next((told[n] for n in some.values() if n in told), prompts[i] if i < len(prompts) else "") for i, some in steps.items()}
    rows = [(named[i], [steps[i].get(step, "") for step in columns]) for i in sorted(steps)]
    return Run(record, files, columns, rows)


def _spread(steps: Sequence[int]) -> list[int]:
    """The first, the last, and some between."""
    most = len(steps) - 1
    return [steps[round(i * most / (COLUMNS - 1))] for i in range(COLUMNS)] if most >= COLUMNS else list(steps)


def _recipe(at: Studio, id: str) -> str:
    telling, file = at.tellings.get(id), at.curve(id)
    if telling is not None:
        return next((key for node, key in telling.keys.items() if telling.nodes.get(node, "").startswith("train_")), "")
    kept = json.loads(file.read_bytes()) if file.is_file() else {}
    return str(kept.get("recipe", "")) if isinstance(kept, dict) else ""


def _ended(recipe: str) -> tuple[Mapping[str, Any], Mapping[str, Path]] | None:
    """Of a training that came to its end."""
    found = current().get(recipe)
    try:
        patch = current().load(found) if found is not None else None
    except Missing:
        return None
    if not isinstance(patch, Patch) or "record.json" not in patch.files:
        return None
    files = {name: Path(blob.path) for name, blob in patch.files.items()}
    return json.loads(files["record.json"].read_bytes()), files


def _going(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Path]]:
    """Of one that runs or was stopped, by what lies in its folder."""
    lines = _lines(folder / "metrics.jsonl")
    record: dict[str, Any] = {
        "loss": [[x["step"], x["loss"]] for x in lines if "loss" in x],
        "held_out": [[x["step"], x["held_out"], x["low"], x["high"]] for x in lines if "held_out" in x],
    }
    flight = folder / "preflight.json"
    if flight.is_file():
        record["preflight"] = json.loads(flight.read_bytes())
    return record, {f"samples/{p.name}": p for p in sorted((folder / "samples").glob("*.png"))}


def _lines(file: Path) -> list[dict[str, Any]]:
    """What is whole of a file that somebody may be writing."""
    text = file.read_text("utf-8") if file.is_file() else ""
    return list(map(json.loads, _whole(text)))


def _whole(text: str) -> Iterable[str]:
    return (line[:-1] for line in text.splitlines(keepends=True) if line.endswith("\n"))
