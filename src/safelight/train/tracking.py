"""What others read of a run while it runs: metrics.jsonl, and TensorBoard's event files.

Both are written from the record and nothing else, so a run that goes on from a checkpoint leaves no line twice and none out.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def lines(record: Mapping[str, Any], losses: int = 0, looks: int = 0) -> list[dict[str, Any]]:
    """The record as lines, but for the first so many of either kind: `step`, `loss` and `lr` of a step; `step`, `held_out`, `low`,
    `high` and `bands` ([sigma, loss, low, high] each) of the look before it."""
    steps = zip(record.get("loss", ())[losses:], record.get("lr", ())[losses:], strict=True)
    out: list[dict[str, Any]] = [{"step": step, "loss": loss, "lr": lr} for (step, loss), (_, lr) in steps]
    bands: dict[int, list[Sequence[float]]] = {}
    for step, *band in record.get("bands", ()):
        bands.setdefault(step, []).append(band)
    for step, loss, *ends in record.get("held_out", ())[looks:]:
        out.append({"step": step, "held_out": loss, "low": ends[0], "high": ends[1], "bands": bands.get(step, [])})
    return sorted(out, key=lambda line: (line["step"], "loss" in line))


class Tracker:
    """Writes what is new in a record to `folder`/metrics.jsonl, and to event files in `board` where one is named. `folder` is the run's
    own, where its sample pictures are."""

    def __init__(self, folder: Path, board: str = "") -> None:
        """ValueError when TensorBoard is asked for and not there."""
        self.folder, self.begun = folder, False
        self.losses = self.looks = self.drawn = 0
        self.board: Any = None
        self.wanted = board
        if board:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ValueError("train: tensorboard is not installed; pip install 'safelight[tensorboard]', or name no folder") from error
            self.board = SummaryWriter

    def __call__(self, record: Mapping[str, Any]) -> None:
        """The first time, the files are begun anew with all that the record has."""
        first, self.begun = not self.begun, True
        new = lines(record, self.losses, self.looks)
        if first and self.board:
            self.board = self.board(self.wanted, purge_step=0)  # what an earlier process showed is shown anew
        if new or first:
            with open(self.folder / METRICS, "w" if first else "a", encoding="utf-8") as out:
                out.writelines(json.dumps(line) + "\n" for line in new)
        if self.board:
            self._show(new, record.get("samples", ())[self.drawn :])
        self.losses, self.looks, self.drawn = len(record["loss"]), len(record["held_out"]), len(record.get("samples", ()))

    def _show(self, new: Sequence[Mapping[str, Any]], samples: Sequence[Mapping[str, Any]]) -> None:
        import numpy as np
        from PIL import Image

        for line in new:
            for name, value in line.items():
                if name not in ("step", "bands"):
                    self.board.add_scalar(name, value, line["step"])
            for sigma, loss, _, _ in line.get("bands", ()):
                self.board.add_scalar(f"held_out/sigma {sigma:.3g}", loss, line["step"])
        for taken in samples:
            picture = np.asarray(Image.open(self.folder / taken["file"]))
            self.board.add_image(taken["prompt"], picture, taken["step"], dataformats="HWC")
        self.board.flush()
