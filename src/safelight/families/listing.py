"""What lies in the models folders: names with family, kind and size. No torch for files that are known already."""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safelight import index
from safelight.families import edition
from safelight.families.checkpoint import ABOUT, asked
from safelight.families.sources import Folder
from safelight.folders import Folders


@dataclass(frozen=True)
class Listed:
    """An entry of a models folder: `family` of whole models, else `kind` (lora, vae, ..., or pickle for what is not looked into)."""

    name: str
    at: str
    size: int
    family: str
    kind: str
    problem: str = ""

    @property
    def path(self) -> Path:
        """Where it lies."""
        return Path(self.at)


def listed(folders: Folders, kind: str) -> list[Listed]:
    """Everything of a kind, by name. What is known already costs a look at its size and time; new files have their headers read."""
    there = sorted(dict(reversed(list(folders.walk(kind)))).items())
    files = {entry.path: entry.stat() for name, entry in there if name.lower().endswith((".safetensors", ".sft")) and entry.is_file()}
    known = index.survey(files, ABOUT, asked, version=edition())
    rows = []
    for name, entry in there:
        told = known.get(entry.path)
        rows.append(Listed(name, entry.path, files[entry.path].st_size, *told) if told else _other(name, Path(entry.path)))
    return rows


def _other(name: str, path: Path) -> Listed:
    """A pickle, which is not looked into, or a folder."""
    if path.is_file():
        return Listed(name, str(path), path.stat().st_size, "", "pickle")
    size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    if not (path / "model_index.json").is_file():
        return Listed(name, str(path), size, "", "folder")
    try:
        return Listed(name, str(path), size, Folder(path).family, "model")
    except (ValueError, OSError) as e:
        return Listed(name, str(path), size, "", "folder", str(e))
