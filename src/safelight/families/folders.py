"""Model folders in diffusers layout: which family one is of, and what it holds. No torch here."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from safelight.values import Blob, digest

PIPELINES = {"StableDiffusionPipeline": "sd"}
"""Pipeline class named in model_index.json -> the family's module."""

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
READ = (".safetensors", ".json", ".txt", ".model")


def family_of(folder: Path) -> str:
    """The family's name. ValueError when the folder is not a model we know."""
    return PIPELINES[_pipeline(folder)]


def _pipeline(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model: {folder} has no model_index.json; expected a folder in diffusers layout")
    name = str(json.loads(index.read_text("utf-8")).get("_class_name", ""))
    if name not in PIPELINES:
        raise ValueError(f"model: {folder} is a {name or 'nameless pipeline'}; known are {', '.join(PIPELINES)}")
    return name


def fingerprint(folder: Path, parts: tuple[str, ...] = PARTS) -> str:
    """32 hex digits of what the named parts hold: every weight, configuration and vocabulary file, by name and content."""
    files = sorted(f for part in parts for f in (folder / part).rglob("*") if f.suffix in READ and f.is_file())
    if not files:
        raise ValueError(f"model: {folder} has nothing under {', '.join(parts)}")
    return digest(*[p for f in files for p in (f.relative_to(folder).as_posix(), _sha(f))])


def _sha(path: Path) -> str:
    stat = path.stat()
    return _sha_at(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha_at(path: str, size: int, mtime: int) -> str:
    del size, mtime  # part of the cache's key: a file that changed is read again
    return Blob.of(path).sha256
