"""Datasets of Hugging Face and ModelScope: `hf:owner/name`, `ms:owner/name`. Parquet, WebDataset, zip, or loose pictures with captions.

Which files a subset and a split have is what the card says (`configs`), else what their names say.
"""
from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from fnmatch import fnmatch
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from safelight.data.folder import PICTURES, SIDECARS
from safelight.data.metadata import TABLES, decoded, plain, read_table
from safelight.data.request import Pick
from safelight.data.sources import Asked, Item, origin, safe, shards, source
from safelight.events import Event, Note
from safelight.pulling.choose import Remote
from safelight.pulling.http import Refused
from safelight.pulling.hubs import Hub, open_hub
from safelight.pulling.names import HUBS, ID, Wanted
from safelight.values import Caption

SPLITS = {"train": ("train", "training"), "validation": ("validation", "valid", "val", "dev"), "test": ("test", "testing", "eval")}


@source("hf")
def hugging_face(asked: Asked) -> Generator[Item | Event, None, None]:
    """A dataset of Hugging Face ($HF_ENDPOINT, HF_TOKEN)."""
    return _dataset("hf", asked)


@source("ms")
def modelscope(asked: Asked) -> Generator[Item | Event, None, None]:
    """A dataset of ModelScope ($MODELSCOPE_DOMAIN, $MODELSCOPE_API_TOKEN)."""
    return _dataset("ms", asked)


def _dataset(name: str, asked: Asked) -> Generator[Item | Event, None, None]:
    if not ID.fullmatch(asked.source):
        raise ValueError(f"collect {name}:{asked.source}: expected {name}:owner/name, as in {name}:AI-ModelScope/lowres_anime")
    hub = open_hub(Wanted(name, asked.source), asked.pick.revision or None, "dataset")
    listed = hub.files()
    card = hub.card()
    files = chosen(f"{name}:{asked.source}", listed, card, asked.pick)
    known = origin(source=f"{name}:{asked.source}", licence=_licence(card), page=f"{hub.http.endpoint}/datasets/{asked.source}",
                   attribution=f"{asked.source} on {HUBS[name]}")
    packed = _packed(files)
    try:
        if packed:
            for file in packed:
                yield from shards.items(_key(file), asked, known, partial(_remote, hub, file))
        else:
            yield from _loose(hub, files, asked, known)
    except Refused as e:
        raise hub.denied(e) from e


def _key(file: Remote) -> str:
    """Another content is another key, whatever the revision."""
    return f"{file.name}@{file.hash.partition(':')[2][:12]}"


def _remote(hub: Hub, file: Remote) -> shards.Remote:
    return shards.Remote(hub.http, hub.url(file), file.size)


def _licence(card: Mapping[str, Any]) -> str:
    said = card.get("license") or ""
    return ", ".join(map(str, said)) if isinstance(said, list) else str(said)


def _packed(files: Sequence[Remote]) -> list[Remote]:
    """The shards, all of one kind, the first kind there is; a table beside loose pictures is none."""
    found = sorted((f for f in files if shards.is_shard(f.name) and PurePosixPath(f.name).stem != "metadata"), key=lambda f: f.name)
    for suffix in shards.READERS:
        if kind := [f for f in found if f.name.lower().endswith(suffix)]:
            return kind
    return []


def chosen(name: str, files: Sequence[Remote], card: Mapping[str, Any], pick: Pick) -> list[Remote]:
    """The files of the subset and split. ValueError naming those that there are."""
    configs = [c for c in card.get("configs") or () if isinstance(c, dict) and c.get("data_files", c.get("data_dir"))]
    if configs:
        return _configured(name, files, configs, pick)
    data = [f for f in files if not f.name.startswith(".") and not f.name.lower().endswith((".md", ".py"))]
    below = [f for f in data if pick.subset in (*PurePosixPath(f.name).parts[:-1], PurePosixPath(f.name).stem)]
    if not below and pick.subset not in ("", "default"):
        raise _no(name, "subset", pick.subset, {PurePosixPath(f.name).parts[0] for f in data if "/" in f.name})
    return _split(name, below or data, pick.split)


def _configured(name: str, files: Sequence[Remote], configs: Sequence[Mapping[str, Any]], pick: Pick) -> list[Remote]:
    named = {str(c.get("config_name", "default")): c for c in configs}
    first = next((n for n, c in named.items() if c.get("default")), "default" if "default" in named else next(iter(named)))
    subset = first if pick.subset in ("", "default") and pick.subset not in named else pick.subset
    if subset not in named:
        raise _no(name, "subset", subset, named)
    given, below = named[subset].get("data_files"), str(named[subset].get("data_dir") or "").strip("./")
    if given is None:
        return _split(name, [f for f in files if f.name.startswith(f"{below}/")], pick.split)
    if isinstance(given, str) or all(isinstance(g, str) for g in given):
        given = [{"split": "train", "path": given}]
    splits = {str(g.get("split", "train")): g["path"] for g in given}
    if pick.split not in (*splits, "all"):
        raise _no(name, "split", pick.split, splits)
    patterns = [p for split, paths in splits.items() if pick.split in (split, "all") for p in _listed(paths)]
    return [f for f in files if any(fnmatch(f.name, f"{below}/{p}" if below else p) for p in patterns)]


def _listed(paths: Any) -> list[str]:
    """Patterns; `**/` may also be no folder at all."""
    given = [paths] if isinstance(paths, str) else [str(p) for p in paths]
    return [*given, *(p.replace("**/", "") for p in given if "**/" in p)]


def _split(name: str, files: Sequence[Remote], split: str) -> list[Remote]:
    told = {f: _told(f.name) for f in files}
    there = {s for s in told.values() if s}
    if split == "all" or (not there and split == "train"):
        return list(files)
    wanted = next((s for s, words in SPLITS.items() if split in words), split)
    if wanted not in there:
        raise _no(name, "split", split, there or {"train"})
    return [f for f, s in told.items() if s == wanted]


def _told(path: str) -> str:
    """The split that a path names as a word of its own."""
    words = set(re.split(r"[^a-z]+", path.lower()))
    return next((split for split, known in SPLITS.items() if words & set(known)), "")


def _no(name: str, what: str, given: str, there: Iterable[str]) -> ValueError:
    return ValueError(f"collect {name}: there is no {what} {given!r}; it has {', '.join(sorted(there)) or 'none that its files name'}")


def _loose(hub: Hub, files: Sequence[Remote], asked: Asked, known: Mapping[str, str]) -> Generator[Item | Event, None, None]:
    """Pictures as files of their own; captions from tables above them, text files beside them, or the folder's name."""
    there = {f.name: f for f in files}
    told = yield from _tables(hub, [f for f in files if PurePosixPath(f.name).name in TABLES], asked)
    for name in sorted(n for n in there if PurePosixPath(n).suffix.lower() in PICTURES):
        if asked.had(key := _key(there[name])):
            yield Item(key)
            continue
        stem = str(PurePosixPath(name).with_suffix(""))
        beside = next((there[stem + s] for s in SIDECARS if stem + s in there), None)
        text = told.get(name) or (plain(decoded(hub.http.read(hub.url(beside)))) if beside else "")
        by, text = ("source", text) if text else ("folder", _label(name))
        url = hub.url(there[name])
        yield Item(key, safe(stem), url, captions=(Caption(by, text),) if text else (), origin={**known, "url": url},
                   hash=there[name].hash, http=hub.http)


def _tables(hub: Hub, tables: Sequence[Remote], asked: Asked) -> Generator[Event, None, dict[str, str]]:
    """Captions by the path of the picture."""
    told: dict[str, str] = {}
    for number, file in enumerate(tables):
        place = asked.folder / "tables" / f"{number}-{PurePosixPath(file.name).name}"
        for step in hub.http.fetch(hub.url(file), place, file):
            if isinstance(step, Note):
                yield step
        folder = PurePosixPath(file.name).parent
        told |= {str(folder / entry.file): entry.text for entry in read_table(place).entries}
    return told


def _label(name: str) -> str:
    """`train/red fox/1.jpg` -> `red fox`; nothing when the folder is no more than a split or `data`."""
    folder = PurePosixPath(name).parent.name
    words = {w for known in SPLITS.values() for w in known} | {"", "data", "images", "image", "img", "imgs", "pictures", "default"}
    return "" if folder.lower() in words else plain(folder)
