"""What a prompt came to that found everything in the store, and what it had read: while that is as it was, it comes to the same again, and
no worker need be asked. A folder that is read, the Hugging Face cache and other people's classes are not followed here: then one is."""
from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safelight.comfy.check import Ops
from safelight.comfy.models import EMBEDDED
from safelight.comfy.node import Places
from safelight.folders import hub
from safelight.graph import read
from safelight.index import FRESH

READS: Mapping[str, Sequence[str]] = {
    "model": ("name", "vae", "unet"), "load_image": ("path",), "load_mask": ("path",), "load_embedding": ("path",),
    "load_lora": ("path", "adapter_config.json"), "load_control": ("path", "config.json"),
}
"""Ops whose results depend on files alone: the settings that name one, and what may lie beside it and counts as well."""


@dataclass(frozen=True)
class Noting(Places):
    """Places that note where names were found; an empty path: nowhere."""

    found: dict[tuple[str, str], str] = field(default_factory=dict)

    def find(self, kind: str, name: str) -> str:
        """See `Places`."""
        self.found[kind, name] = ""
        self.found[kind, name] = found = super().find(kind, name)
        return found


@dataclass(frozen=True)
class Known:
    """One such prompt: its nodes' classes by id, its ends and words as the queue has them, what was said of it and what it read."""

    nodes: Mapping[str, str]
    ends: str
    words: str
    lines: Sequence[Mapping[str, Any]]
    result: Mapping[str, Any]
    names: Sequence[tuple[str, str, str]]
    files: Mapping[str, Any]

    def holds(self, places: Places) -> bool:
        """Whether all that was read is as it was."""
        return all(marks(path) == mark for path, mark in self.files.items()) and all(_at(places, *n[:2]) == n[2] for n in self.names)


def workflow(extra: Mapping[str, Any]) -> Any:
    """The editor's graph, of what was sent beside a prompt."""
    told = extra.get("extra_pnginfo")
    return told.get("workflow") if isinstance(told, dict) else None


def key(prompt: str, workflow: Any) -> str:
    """What the same prompt (JSON) of the same editor's graph is known by."""
    return hashlib.sha256(f"{prompt}\0{json.dumps(workflow)}".encode()).hexdigest()


def _at(places: Places, kind: str, name: str) -> str:
    try:
        return places.find(kind, name)
    except ValueError:
        return ""


def marks(path: str) -> list[int] | None:
    """What changes when the file does; nothing for no file."""
    try:
        s = os.stat(path)
    except OSError:
        return None
    return [s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]


def files(graph: Mapping[str, Any], ops: Ops) -> dict[str, list[int] | None] | None:
    """The files that a graph reads, with their marks; None when it reads something else, or one that may still be written."""
    found: dict[str, list[int] | None] = {}
    for node in read(graph, ops)[0]:
        if node.op.spec.fingerprint is None:
            continue
        op = node.op.spec.name
        given = {k: str(v) for k, v in node.literals.items() if v and (op, str(v)) != ("model", EMBEDDED)}
        first, *more = READS.get(op, ("",))
        if not first or any(os.sep in v and k not in (first, *more) for k, v in given.items()):
            return None
        for path in (given[k] for k in (first, *more) if k in given):
            if not os.path.isfile(path) or not os.path.isabs(path) or path.startswith(str(hub())):
                return None
            beside = (os.path.join(os.path.dirname(path), name) for name in more if name.endswith(".json"))
            found |= {p: marks(p) for p in (path, *beside)}
    soon = time.time_ns() - FRESH
    return None if any(m and max(m[3:]) > soon for m in found.values()) else found
