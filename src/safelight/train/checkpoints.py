"""Checkpoints a power cut cannot harm: written whole beside the last one, flushed, then renamed into place."""
from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.disk import flushed

TENSORS, RECORD = "state.safetensors", "record.json"


@dataclass(frozen=True)
class Saved:
    """A checkpoint: the number of steps done, the tensors, what was noted on the way, and the settings that it belongs to."""

    step: int
    tensors: Mapping[str, Tensor]
    record: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)


class Checkpoints:
    """The newest checkpoint of one run, in `folder`."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], record: Mapping[str, Any], settings: Mapping[str, Any] | None = None) -> None:
        """All or nothing. What was saved before is removed once the new one is in place. OSError when there is no room."""
        before = self._all()
        new = self.folder / f".new-{os.getpid()}"
        noted = json.dumps({"step": step, "record": record, "settings": settings or {}}).encode()
        bytes_ = sum(t.numel() * t.element_size() for t in tensors.values()) + len(noted)
        for left in self.folder.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        try:
            new.mkdir()
            save_file({k: t.detach().cpu().contiguous() for k, t in tensors.items()}, new / TENSORS)
            (new / RECORD).write_bytes(noted)
            for file in (new / TENSORS, new / RECORD, new):
                flushed(file)
            number = int(before[-1].name) + 1 if before else 0
            new.rename(self.folder / f"{number:09d}")
            flushed(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(new, ignore_errors=True)
            raise self._no_room(step, bytes_, error) from error
        for old in before:
            shutil.rmtree(old, ignore_errors=True)

    def _no_room(self, step: int, needed: int, error: Exception) -> OSError:
        """What to say when a checkpoint could not be written; safetensors' error names the reason in its text alone."""
        free, last = shutil.disk_usage(self.folder).free, self.load()
        code = error.errno if isinstance(error, OSError) else errno.ENOSPC if "os error 28" in str(error) else errno.EIO
        kept = f"it goes on from step {last.step}, whose checkpoint is whole" if last else "there is none before it"
        return OSError(code, f"train: the checkpoint of step {step} needs {needed:,} bytes in {self.folder}, where {free:,} are free by "
                             f"the last one, and was not written ({error}). Make room and start again: {kept}")

    def load(self) -> Saved | None:
        """The newest checkpoint, or None."""
        found = self._all()
        if not found:
            return None
        noted = json.loads((found[-1] / RECORD).read_text(encoding="utf-8"))
        return Saved(noted["step"], load_file(found[-1] / TENSORS), noted["record"], noted["settings"])

    def _all(self) -> list[Path]:
        return sorted(p for p in self.folder.iterdir() if p.name.isdigit())
