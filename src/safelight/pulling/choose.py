"""Which files of a repository are needed: of a diffusers folder its configurations, vocabularies and one set of weights a part, no more."""
from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

INDEX = "model_index.json"
WORDS = (".json", ".txt", ".model", ".jinja")
VARIANTS = ("fp16", "", "bf16")  # the best first; any other comes last
UNUSED = ("safety_checker", "feature_extractor")
STANDARD = ("model", "pytorch_model", "diffusion_pytorch_model", "adapter_model")
"""What diffusers, transformers and peft call a part's weights."""

WEIGHT = re.compile(
    r"(?P<stem>.+?)(?P<shard>-\d{5}-of-\d{5})?(\.(?P<variant>fp16|bf16|fp32|fp8|non_ema|ema))?(?P<shard2>-\d{5}-of-\d{5})?"
    r"\.(?P<kind>safetensors|bin|ckpt|pth?)(?P<index>\.index(\.(?P<variant2>\w+))?\.json)?"
)
"""`model.fp16-00001-of-00002.safetensors`, `model.safetensors.index.fp16.json` and the like."""


@dataclass(frozen=True)
class Remote:
    """A file of a repository: its path there, its bytes, and its hash as `sha256:...` or `git:...` (empty: the hub tells none)."""

    name: str
    size: int
    hash: str = ""


@dataclass(frozen=True)
class _Weight:
    """What a weight file's name says; `index` for the table of a sharded set."""

    file: Remote
    stem: str
    variant: str
    kind: str
    sharded: bool
    index: bool


def matching(files: Sequence[Remote], patterns: Iterable[str]) -> list[Remote]:
    """The files whose path fits one of the patterns (`*`, `?`, `[...]`; `*` crosses folders). ValueError when a pattern fits none."""
    found: dict[str, Remote] = {}
    for pattern in patterns:
        fit = [f for f in files if fnmatchcase(f.name, pattern)]
        if not fit:
            raise ValueError(f"--only {pattern!r} fits none of the {len(files)} files; there are {_some(files)}")
        found |= {f.name: f for f in fit}
    return list(found.values())


def needed(files: Sequence[Remote], index: Mapping[str, Any] | None) -> list[Remote]:
    """What a model is read from. `index` is the content of model_index.json, None where there is none.

    Weights are safetensors where a part has them, pickles only where it has nothing else; of several precisions fp16. Pictures, ONNX, Flax
    and code are never taken, nor a safety checker. ValueError when no weights are left.
    """
    if index is None:
        chosen = _loose(files)
    else:
        parts = [name for name, kind in index.items() if isinstance(kind, list) and any(kind) and name not in UNUSED]
        chosen = [f for f in files if f.name == INDEX]
        for part in parts:
            chosen += _part([f for f in files if f.name.startswith(f"{part}/") and f.name.count("/") == 1])
    if not _weights(chosen):
        raise ValueError(f"there are no weights in it that can be read; it has {_some(files)}; choose with --only")
    return chosen


def _weights(files: Sequence[Remote]) -> list[_Weight]:
    found = []
    for f in files:
        folder, _, name = f.name.rpartition("/")
        m = WEIGHT.fullmatch(name)
        if m:
            variant = m["variant"] or m["variant2"] or ""
            found.append(_Weight(f, f"{folder}/{m['stem']}", variant, m["kind"], bool(m["shard"] or m["shard2"]), bool(m["index"])))
    return found


def _loose(files: Sequence[Remote]) -> list[Remote]:
    """A repository that is no pipeline: one part, when config.json lies on top; else every weight file once."""
    top = [f for f in files if "/" not in f.name]
    if any(f.name in ("config.json", "adapter_config.json") for f in top):
        return _part(top)
    all_of_it = _weights(files)
    safe = [w for w in all_of_it if w.kind == "safetensors"] or all_of_it
    sets = {(w.stem, w.kind): [v for v in safe if (v.stem, v.kind) == (w.stem, w.kind)] for w in safe}
    return [f for some in sets.values() for f in _best(some)]


def _part(files: Sequence[Remote]) -> list[Remote]:
    """One part's files: words, and one set of weights under the names that libraries look for."""
    words = [f for f in files if f.name.endswith(WORDS) and ".index." not in f.name]
    weights = [w for w in _weights(files) if w.stem.rpartition("/")[2] in STANDARD]
    safe = [w for w in weights if w.kind == "safetensors"]
    return words + _best(safe or [w for w in weights if w.kind == "bin"])


def _best(weights: Sequence[_Weight]) -> list[Remote]:
    """One precision of a set; a single file rather than the same in shards, shards with their table."""
    tensors = [w for w in weights if not w.index]
    best = min((w.variant for w in tensors), key=lambda v: VARIANTS.index(v) if v in VARIANTS else len(VARIANTS), default="")
    chosen = [w for w in tensors if w.variant == best]
    whole = [w for w in chosen if not w.sharded]
    tables = [w for w in weights if w.index and w.variant == best]
    return [w.file for w in whole or [*chosen, *tables]]


def _some(files: Sequence[Remote]) -> str:
    names = [f.name for f in files[:12]]
    return ", ".join(names) + (", ..." if len(files) > 12 else "") if names else "nothing"
