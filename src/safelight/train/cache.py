"""Latents and text embeddings, made once: kept by what they are made of, so an entry is never stale and every run may share it."""
from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.computing import chosen
from safelight.disk import place
from safelight.events import Event, Progress
from safelight.families import attention
from safelight.families.latents import TILES
from safelight.pictures import floats, layers, read
from safelight.train.pictures import Cut
from safelight.values import Cond, Row, canonical, digest

if TYPE_CHECKING:
    from safelight.families import Family


class Shelf:
    """Named tensors on disk, by key: one small safetensors file each, written whole or not at all; any number of processes."""

    def __init__(self, folder: Path) -> None:
        """The folder is made when it is not there."""
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        os.utime(folder)  # in use: not to be swept while this process lives

    def has(self, key: str) -> bool:
        """Whether something was put under the key."""
        return self._path(key).is_file()

    def get(self, key: str, /) -> dict[str, Tensor] | None:
        """What was put under the key, or None."""
        path = self._path(key)
        return load_file(path) if path.is_file() else None

    def put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep float32 copies, of bytes as they are."""
        path = self._path(key)
        kept = {name: (t if t.dtype == torch.uint8 else t.detach().float()).cpu().contiguous() for name, t in tensors.items()}
        place(self.folder, path, lambda new: save_file(kept, new), flush=False)  # what a power cut spoils is encoded again

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def pictures(family: Family, encoder: str, wanted: Sequence[tuple[Row, Cut]], shelf: Shelf, *,
             masked: bool = False) -> Generator[Event, None, list[str]]:
    """The keys under which each cut of a row lies: `latent` (C, height/f, width/f) float32, `size` (see `Cut.told`), and with `masked` the
    row's `mask` (1, height/f, width/f). `encoder` is the VAE's fingerprint. A large picture may have been encoded in tiles, where memory
    was short; of several such latents the one in the largest is taken."""
    how = arithmetic(family)

    def named(row: Row, cut: Cut, tile: int) -> str:
        return digest("picture", row.picture.sha256, canonical(cut), encoder, how, str(tile), _mask(row)[1] if masked else "")

    whole = [named(row, cut, 0) for row, cut in wanted]
    keys = {key: next((k for k in (named(*given, tile) for tile in (0, *TILES)) if shelf.has(k)), "")
            for key, given in zip(whole, wanted, strict=True)}
    missing = {key: given for key, given in zip(whole, wanted, strict=True) if not keys[key]}
    for done, (key, (row, cut)) in enumerate(missing.items(), 1):  # each alone: an encoder's last bits depend on what it is encoded with
        pixels = cut.of(read(row.picture.path, least=max(cut.width, cut.height)))
        z = family.encode_image(torch.from_numpy(floats(pixels[None])))[0]
        keys[key] = named(row, cut, family.tile)
        told = {"latent": z, "size": cut.told(row.width, row.height)} | ({"mask": _masked(row, cut, z)} if masked else {})
        shelf.put(keys[key], told)
        yield Progress(step=done, total=len(missing), what="encode pictures", unit="picture")
    return [keys[key] for key in whole]


def arithmetic(family: Family) -> str:
    """What decides the last bits of what networks say here, beside what they are given: precision, the kind of machine, on a CPU how many
    threads share a sum, and the way attention is computed."""
    device, own = family.device, attention.wanted(family.device, family.dtype) and not chosen().compile
    if device.type == "cuda":
        return f"{family.dtype} {torch.cuda.get_device_name(device)}"
    return f"{family.dtype} {device.type} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()} {own}"


def _mask(row: Row) -> tuple[str, str]:
    """The file that says where a picture counts, by its brightness, and its hash; empty where the picture's own transparency does."""
    told = row.info.get("mask")
    return (told["path"], told["sha256"]) if told else ("", "alpha")


def _masked(row: Row, cut: Cut, latent: Tensor) -> Tensor:
    """(1, h, w) in [0, 1] beside a latent. ValueError when the mask has another aspect ratio than the picture."""
    path, _ = _mask(row)
    shown = read(path, grey=True) if path else layers(row.picture.path, most=1)[0][0][..., 3]
    if abs(shown.shape[1] * row.height - shown.shape[0] * row.width) > 2 * max(row.width, row.height):
        raise ValueError(f"train: the mask of {row.name} is {shown.shape[1]} x {shown.shape[0]}, the picture {row.width} x {row.height}; "
                         "expected the same shape")
    whole = torch.from_numpy(floats(cut.of(shown)))[None, None]
    return torch.nn.functional.interpolate(whole, latent.shape[-2:], mode="area")[0]


class Texts(Mapping[str, Cond]):
    """Conditions by prompt, one row each, read from the shelf when they are asked for, on the CPU."""

    def __init__(self, shelf: Shelf, keys: Mapping[str, str]) -> None:
        self.shelf, self.keyed = shelf, keys

    def __getitem__(self, prompt: str) -> Cond:
        """KeyError for a prompt that was not encoded."""
        found = there(self.shelf, self.keyed[prompt])
        return Cond(found.pop("tokens"), found)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keyed)

    def __len__(self) -> int:
        return len(self.keyed)


def texts(family: Family, encoder: str, prompts: Sequence[str], shelf: Shelf) -> Generator[Event, None, Texts]:
    """Each prompt's condition. `encoder` is the text encoder's fingerprint."""
    how = arithmetic(family)
    keys = {p: digest("text", p, encoder, how) for p in prompts}
    missing = [p for p, key in keys.items() if not shelf.has(key)]
    for done, prompt in enumerate(missing, 1):
        with torch.no_grad():
            cond = family.encode_text([prompt])
        shelf.put(keys[prompt], {"tokens": cond.tokens, **cond.extras})
        yield Progress(step=done, total=len(missing), what="encode captions", unit="caption")
    return Texts(shelf, keys)


def there(shelf: Shelf, key: str) -> dict[str, Tensor]:
    """What was put under the key. RuntimeError when it is gone."""
    found = shelf.get(key)
    if found is None:
        raise RuntimeError(f"cache: {shelf.folder}/{key} vanished while it was being filled; run again")
    return found
