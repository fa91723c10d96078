"""Makes room in a store: keeps the most recently used results up to a size, and all that living processes use."""
from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from safelight.locks import held, locked
from safelight.store import Record, Store

NEVER = 2**63


@dataclass
class Swept:
    """What a collection did: bytes and files removed, bytes kept, processes whose results were left alone."""

    freed: int = 0
    removed: int = 0
    kept: int = 0
    living: int = 0


@dataclass
class _Entry:
    """Something that is kept or removed as a whole: a record with its value and blobs, a work folder, or a converted checkpoint."""

    used: int
    files: tuple[Path, ...]
    record: Record | None = None
    path: Path = field(default_factory=Path)


def sweep(store: Store, keep: int) -> Swept:
    """Remove the least recently used results until at most `keep` bytes are left.

    Never removed: what was used since the oldest living pin was set. Records from which a kept one descends stay as records (their
    values may go), so that the lineage of what is kept stays whole.
    """
    done = Swept()
    with locked(store.root / "lock"):
        since, done.living = _pins(store.root / "pins")
        for path in (store.root / "tmp").iterdir():  # whoever writes there holds the lock that we hold now
            _remove(path, done)
        for path in (store.root / "claims").iterdir():
            if not held(path):
                path.unlink(missing_ok=True)
        entries = sorted((*_results(store), *_work(store.root / "work"), *_converted(store.root / "weights")), key=lambda e: -e.used)
        kept = _choose(entries, keep, since)
        _drop(store, entries, kept, since, done)
        done.kept = sum(_size(p) for p in kept)
    return done


def _pins(folder: Path) -> tuple[int, int]:
    """When the oldest living pin was set, and how many live; the dead ones are removed."""
    since, living = NEVER, 0
    for path in folder.iterdir():
        if held(path):
            since, living = min(since, path.stat().st_mtime_ns), living + 1
        else:
            path.unlink(missing_ok=True)
    return since, living


def _results(store: Store) -> Iterator[_Entry]:
    blobs: dict[str, list[Path]] = {}
    for path in store.root.glob("blobs/*/*"):
        blobs.setdefault(path.name[:64], []).append(path)
    for path in store.root.glob("records/*/*.json"):
        try:
            record = Record.read(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError, KeyError):
            yield _Entry(0, (path,), None, path)
            continue
        stem = store.root / "values" / record.exact[:2] / record.exact
        value = [stem.with_suffix(s) for s in (".json", ".arrays", ".tensors")]
        files = [path, *value, *(b for sha in record.blobs for b in blobs.get(sha, ()))]
        yield _Entry(path.stat().st_mtime_ns, tuple(f for f in files if f.is_file()), record, path)


def _work(folder: Path) -> Iterator[_Entry]:
    for path in folder.iterdir():
        files = tuple(p for p in path.rglob("*") if p.is_file())
        yield _Entry(max(p.stat().st_mtime_ns for p in (path, *files)), files, None, path)


def _converted(folder: Path) -> Iterator[_Entry]:
    """Checkpoints that `weights.pickles` made safetensors, and what it left half done when it was stopped; the lock beside each is touched
    whenever it is used, and held while it is made."""
    for path in (*folder.glob("*.safetensors"), *folder.glob("*.part")):
        lock = path.with_suffix(".lock")
        at_work = lock.is_file() and held(lock)
        yield _Entry(NEVER if at_work else (lock if lock.is_file() else path).stat().st_mtime_ns, (path,), None, path)


def _choose(entries: list[_Entry], keep: int, since: int) -> set[Path]:
    """The files to keep: newest first while they fit, and all that is newer than the oldest pin. Shared files count once."""
    kept: set[Path] = set()
    total = 0
    for e in entries:
        more = sum(_size(p) for p in set(e.files) - kept)
        if e.used >= since or total + more <= keep:
            kept |= {*e.files, e.path}
            total += more
    return kept


def _drop(store: Store, entries: list[_Entry], kept: set[Path], since: int, done: Swept) -> None:
    ancestors = _ancestors(entries, kept)
    for e in entries:
        if e.record is None and e.path not in kept:
            _remove(e.path, done)
    for path in store.root.glob("records/*/*.json"):
        if path not in kept and path.stem not in ancestors:
            _remove(path, done)
    for kind in ("values", "blobs"):
        for path in store.root.glob(f"{kind}/*/*"):
            if path not in kept and path.stat().st_mtime_ns < since:
                _remove(path, done)
    left = {p.stem for p in store.root.glob("records/*/*.json")}
    for path in store.root.glob("by/*/*"):
        if path.read_text(encoding="utf-8") not in left:
            path.unlink(missing_ok=True)


def _ancestors(entries: list[_Entry], kept: set[Path]) -> set[str]:
    """Recipes from which kept records descend."""
    records = {e.record.made.recipe: e.record for e in entries if e.record is not None}
    todo = [e.record for e in entries if e.record is not None and e.path in kept]
    found: set[str] = set()
    while todo:
        parents = {r for parent in todo.pop().made.parents() for r in parent.recipes()} & records.keys()
        todo += [records[r] for r in parents - found]
        found |= parents
    return found


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _remove(path: Path, done: Swept) -> None:
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    done.freed += sum(_size(p) for p in files)
    done.removed += len(files)
    remove: Callable[[Path], None] = shutil.rmtree if path.is_dir() else os.unlink
    remove(path)


def parse_size(text: str) -> int:
    """`10GB`, `500 MB`, `0` -> bytes (powers of 1024). ValueError when it is no size."""
    units = {"": 1, "b": 1, "kb": 2**10, "mb": 2**20, "gb": 2**30, "tb": 2**40, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
    number = text.strip().rstrip("abgkmtABGKMT ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError):
        raise ValueError(f"store gc: keep: got {text!r}, expected a size such as 10GB or 500MB") from None
