"""What a prompt read that found all its results in the store. While that is as it was, it comes to the same again, and no worker need be
asked. Folders of pictures, the Hugging Face cache and other people's classes are not followed."""
from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

from safelight.comfy.check import Ops
from safelight.comfy.models import EMBEDDED
from safelight.graph import GraphError, read
from safelight.index import FRESH

READS: Mapping[str, tuple[str, ...]] = {"model": ("name", "vae", "unet"), **dict.fromkeys(
    ("load_image", "load_mask", "load_embedding", "load_lora", "load_control"), ("path",))}
"""Ops whose results depend on files alone, and the settings that name them."""
BESIDE, MOST = ("", "../config.json", "../adapter_config.json"), 1000
Marks = dict[str, tuple[int, ...]]


def files(graphs: Sequence[Mapping[str, Any]], ops: Ops) -> list[str] | None:
    """Those that graphs read, with what counts beside them; None when they read anything else, or what is there no more."""
    paths: list[str] = []
    try:
        nodes = [node for graph in graphs for node in read(graph, ops)[0]]
    except GraphError:
        return None
    for op, literals in ((n.op.spec, n.literals) for n in nodes if n.op.spec.fingerprint is not None):
        free = (k for k, s in op.setting.items() if s.kind in ("str", "path") and s.names is None and literals.get(k))
        given = {k: str(literals[k]) for k in free if (op.name, str(literals[k])) != ("model", EMBEDDED)}
        sound = (k in READS[op.name] and os.path.isabs(v) and os.path.isfile(v) for k, v in given.items())
        if op.name not in READS or not all(sound):
            return None
        paths += given.values()
    return [os.path.normpath(os.path.join(p, more)) for p in paths for more in BESIDE]


def marks(paths: Iterable[str], roots: Iterable[str] = ()) -> Marks | None:
    """What is another when a file is, or what a folder (or any below `roots`) holds; None for too many, and while one may change unseen."""
    found: Marks = {}
    for path in chain(paths, roots, (at for root in roots for at, _, _ in os.walk(root, followlinks=True))):
        s = os.stat(path) if os.path.exists(path) else None
        found[path] = (s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) if s else ()
        if len(found) > MOST or max(found[path][3:], default=0) > time.time_ns() - FRESH:
            return None
    return found
