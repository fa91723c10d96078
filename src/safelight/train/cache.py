"""Latents and text embeddings, made once: kept by what they are made of, so an entry is never stale and every run may share it."""
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.disk import place
from safelight.events import Event, Progress
from safelight.pictures import floats, read, square
from safelight.values import Cond, Row, digest

if TYPE_CHECKING:
    from safelight.families import Family

AT_ONCE = 8


class Shelf:
    """Named tensors on disk, by key: one small safetensors file each, written whole or not at all; any number of processes."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """What was put under the key, or None."""
        path = self._path(key)
        return load_file(path) if path.is_file() else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep float32 copies."""
        path = self._path(key)
        kept = {name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}
        place(self.folder, path, lambda new: save_file(kept, new), flush=False)  # what a power cut spoils is encoded again

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def latents(family: Family, encoder: str, rows: Sequence[Row], side: int, shelf: Shelf) -> Generator[Event, None, Tensor]:
    """(N, C, side/f, side/f) float32: the rows' middle squares at `side` pixels through the VAE. `encoder` is the VAE's fingerprint."""
    keys = [digest("latent", row.picture.sha256, f"square {side}", encoder, str(family.dtype)) for row in rows]
    missing = [i for i, key in enumerate(keys) if shelf.get(key) is None]
    for start in range(0, len(missing), AT_ONCE):
        some = missing[start : start + AT_ONCE]
        pixels = torch.stack([torch.from_numpy(floats(square(read(rows[i].picture.path, least=side), side))) for i in some])
        for i, z in zip(some, family.encode_image(pixels), strict=True):
            shelf.put(keys[i], {"latent": z})
        yield Progress(step=start + len(some), total=len(missing), what="encode pictures", unit="picture")
    return torch.stack([there(shelf, key)["latent"] for key in keys])


def texts(family: Family, encoder: str, prompts: Sequence[str], shelf: Shelf) -> Generator[Event, None, dict[str, Cond]]:
    """Each prompt's condition, one row each, on the family's device. `encoder` is the text encoder's fingerprint."""
    keys = {p: digest("text", p, encoder, str(family.dtype)) for p in prompts}
    missing = [p for p, key in keys.items() if shelf.get(key) is None]
    for done, prompt in enumerate(missing, 1):
        with torch.no_grad():
            cond = family.encode_text([prompt])
        shelf.put(keys[prompt], {"tokens": cond.tokens, **cond.extras})
        yield Progress(step=done, total=len(missing), what="encode captions", unit="caption")
    out: dict[str, Cond] = {}
    for prompt, key in keys.items():
        found = {name: t.to(family.device) for name, t in there(shelf, key).items()}
        out[prompt] = Cond(found.pop("tokens"), found)
    return out


def there(shelf: Shelf, key: str) -> dict[str, Tensor]:
    """What was put under the key. RuntimeError when it is gone."""
    found = shelf.get(key)
    if found is None:
        raise RuntimeError(f"cache: {shelf.folder}/{key} vanished while it was being filled; run again")
    return found
