"""What is asked for when pictures are collected. No network here: surfaces read these."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from safelight.spec import Knob
from safelight.values import Knobs


@dataclass(frozen=True)
class Pick(Knobs):
    """What of a dataset or a table is taken."""

    subset: Annotated[str, "subset of a hub's dataset; nothing or default: the default one"] = ""
    split: Annotated[str, "split of a hub's dataset: train, test, validation, or all"] = "train"
    revision: Annotated[str, "branch, tag or commit of a hub's dataset; nothing: the newest"] = ""
    picture: Annotated[str, "column with the picture or its address; nothing: it is found"] = ""
    text: Annotated[str, "column with the caption; nothing: it is found"] = ""


@dataclass(frozen=True)
class Fetch(Knobs):
    """How pictures are brought over the network."""

    at_once: Annotated[int, Knob(1, 256, help="pictures on their way at a time")] = 16
    per_host: Annotated[int, Knob(1, 64, help="of these, from one host")] = 4
    tries: Annotated[int, Knob(1, 20, help="how often a picture is tried when the connection breaks or the server is busy")] = 4
    seconds: Annotated[float, Knob(1, 3600, help="time limit for one picture")] = 60.0
    max_mb: Annotated[float, Knob(0.01, 1024, help="size limit for one picture, in MiB")] = 50.0
    allow_private: Annotated[bool, "ask addresses inside this network too"] = False
    heed_robots: Annotated[bool, "leave out what its server marks as noai, noimageai, noindex or noimageindex"] = True

    def refused(self, size: int) -> str:
        """Why a picture of so many bytes is not taken, or nothing."""
        return f"{size / 2**20:.3g} MiB, more than max_mb = {self.max_mb:g}" if size > self.max_mb * 2**20 else ""


PICK, FETCH = Pick(), Fetch()
