"""Where a model comes from, behind one waist: its parts by name, whatever the layout. No torch before a part is built."""
from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safelight.families import of_pipeline
from safelight.values import Blob, digest

if TYPE_CHECKING:
    import torch

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
READ = (".safetensors", ".json", ".txt", ".model")


class Parts(Protocol):
    """A model's parts by diffusers' names (`unet`, `vae`, `text_encoder`, `tokenizer`, `scheduler`, ...): what families read models by."""

    source: str  # the path, for messages
    family: str

    def fingerprint(self, *parts: str) -> str:
        """32 hex digits of what these parts hold, of all of them when none is named."""
        ...

    def config(self, part: str) -> dict[str, Any]:
        """The part's configuration in diffusers' or transformers' terms. ValueError when the model has no such part."""
        ...

    def folder(self, part: str) -> Path:
        """A folder with the files of a part that is no network (a tokenizer). ValueError when there is none."""
        ...

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The part as a network of the class `cls`, frozen and in eval mode. ValueError when it is missing or another class's."""
        ...


def open_source(source: str | Path) -> Parts:
    """The parts of a model on disk. ValueError when it is no model we know."""
    return Folder(Path(source))


class Folder:
    """A folder in diffusers layout. Only the classes a family names are made, whatever its files ask for; weights come from safetensors."""

    def __init__(self, folder: Path) -> None:
        """ValueError when the folder is no model we know."""
        self.path, self.source, self.family = folder, str(folder), _family(folder)

    def fingerprint(self, *parts: str) -> str:
        """Every weight, configuration and vocabulary file of the parts, by name and content."""
        named = parts or PARTS
        files = sorted(f for part in named for f in (self.path / part).rglob("*") if f.suffix in READ and f.is_file())
        if not files:
            raise ValueError(f"model: {self.path} has nothing under {', '.join(named)}")
        return digest(*[p for f in files for p in (f.relative_to(self.path).as_posix(), _sha(f))])

    def config(self, part: str) -> dict[str, Any]:
        """config.json of the part; scheduler_config.json of the scheduler."""
        path = self.path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if not path.is_file():
            raise ValueError(f"model folder {self.path}: no {path.name} under {part}/; expected a folder in diffusers layout")
        return dict(json.loads(path.read_text("utf-8")))

    def folder(self, part: str) -> Path:
        """The part's own folder."""
        if not (self.path / part).is_dir():
            raise ValueError(f"model folder {self.path}: no {part}/; expected a folder in diffusers layout")
        return self.path / part

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """By the library's own loader, which knows shards, variants and old names."""
        config = self.config(part)
        named = config.get("_class_name") or (config.get("architectures") or [cls.__name__])[0]
        if named not in (cls.__name__, "CLIPModel"):
            raise ValueError(f"model folder {self.path}: {part} is a {named}; this family expects {cls.__name__}")
        if not any((self.path / part).glob("*.safetensors")):
            raise ValueError(f"model folder {self.path}: no .safetensors under {part}/; convert its weights to safetensors first")
        kind = {"torch_dtype": dtype} if "_class_name" in config else {"dtype": dtype}
        net = cls.from_pretrained(self.path / part, use_safetensors=True, local_files_only=True, **kind)
        return net.to(device).eval().requires_grad_(False)


def _family(folder: Path) -> str:
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model: {folder} has no model_index.json; expected a folder in diffusers layout")
    try:
        return of_pipeline(str(json.loads(index.read_text("utf-8")).get("_class_name", "")))
    except ValueError as e:
        raise ValueError(f"model: {index}: {e}") from e


def _sha(path: Path) -> str:
    stat = path.stat()
    return _sha_at(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4096)
def _sha_at(path: str, size: int, mtime: int) -> str:
    del size, mtime  # part of the cache's key: a file that changed is read again
    return Blob.of(path).sha256
