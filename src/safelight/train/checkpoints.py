"""Checkpoints a power cut cannot harm: written whole beside the last one, flushed, then renamed into place."""
from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.disk import flushed

TENSORS, RECORD = "state.safetensors", "record.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint: the number of steps done, the tensors, and what was noted on the way."""

    step: int
    tensors: Mapping[str, Tensor]
    record: dict[str, Any]


class Checkpoints:
    """The newest checkpoint of one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
        """Both files or neither. What was saved before is removed once the new one is in place."""
        before = self._all()
        new = self.folder / f".new-{os.getpid()}"
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, new / TENSORS)
        (new / RECORD).write_text(json.dumps({"step": step, "record": record}), encoding="utf-8")
        for file in (new / TENSORS, new / RECORD, new):
            flushed(file)
        number = int(before[-1].name) + 1 if before else 0
        new.rename(self.folder / f"{number:09d}")
        flushed(self.folder)
        for old in (*before, *self.folder.glob(".new-*")):
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> Saved | None:
        """The newest checkpoint, or None."""
        found = self._all()
        if not found:
            return None
        noted = json.loads((found[-1] / RECORD).read_text(encoding="utf-8"))
        return Saved(noted["step"], load_file(found[-1] / TENSORS), noted["record"])

    def _all(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.name.isdigit())
