"""What lies in the models folders: names with family, kind and size. No torch for files that are known already."""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from safelight import index
from safelight.families import edition
from safelight.families.checkpoint import ABOUT, about
from safelight.families.sources import Folder
from safelight.folders import Folders


@dataclass(frozen=True)
class Listed:
    """An entry of a models folder: `family` of whole models, else `kind` (lora, vae, ..., or pickle for what is not looked into)."""

    name: str
    path: Path
    size: int
    family: str
    kind: str
    problem: str = ""


def listed(folders: Folders, kind: str) -> list[Listed]:
    """Everything of a kind, by name. What is known already costs a look at its size and time; new files have their headers read."""
    there = dict(reversed(list(folders.walk(kind))))
    known = index.recall(there.values(), ABOUT, version=edition())
    return [Listed(name, path, _bytes(path), *(known.get(path) or _found(path))) for name, path in sorted(there.items())]


def _found(path: Path) -> tuple[str, str, str]:
    """Family, kind and what is wrong with it."""
    try:
        if path.is_dir():
            return (Folder(path).family, "model", "") if (path / "model_index.json").is_file() else ("", "folder", "")
        return (*about(path), "") if path.suffix.lower() in (".safetensors", ".sft") else ("", "pickle", "")
    except (ValueError, OSError) as e:
        return "", "", str(e)


def _bytes(path: Path) -> int:
    seen = os.stat(path)
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else seen.st_size
