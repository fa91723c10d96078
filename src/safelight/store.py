"""Results by recipe key, on disk and in memory; shared by any number of processes.

    records/ab/<recipe>.json                  what made a value: op, version, settings, inputs; and the value's keys
    values/ab/<exact>.json .arrays .tensors   the value (JSON; numpy arrays and torch tensors as safetensors)
    blobs/ab/<sha256><suffix>                 files named by content
    by/ab/<key>                               the recipe that made the value with this content or exact key last
    work/<name>/                              folders an op works in and may resume from
    weights/                                  pickled checkpoints made into safetensors (weights.pickles), in the default store alone
    pins/, claims/, tmp/, lock                what living processes hold

Every file is written beside its place, flushed, and renamed into it: a reader sees all of it or nothing, a process may die anywhere. What a
process touches while it holds a pin is newer than the pin, and `gc` removes nothing that is newer than the oldest living pin.
"""
from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from safelight.codec import Encoded, decode, encode, exact_key, is_tensor
from safelight.disk import copy, place
from safelight.index import home
from safelight.locks import acquire, locked, release
from safelight.values import Blob, Value

FORMAT = 1
SUFFIXES = {"numpy": ".arrays", "torch": ".tensors"}


class Missing(LookupError):
    """The value was there once: a collected result, or a picture outside the store that was moved or changed."""


@dataclass(frozen=True)
class Input:
    """One value an op was given: its type, content and exact key, and the recipe that made it (empty: nobody knows).

    `about` says what a lineage tells of it: a dataset's rows, or all that is known of a value that no recipe made.
    """

    type: str
    value: str
    exact: str
    recipe: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)

    def recipes(self) -> set[str]:
        """The recipes it is known to come from: its own, or those of the pictures it was chosen from."""
        return {r for r in (self.recipe, *(o[0] for o in self.about.get("origins", ()))) if r}


@dataclass(frozen=True)
class Made:
    """What made a value. `settings` are all literals, defaults included, as JSON data; `tag` is the op's version or source hash."""

    recipe: str
    op: str
    tag: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, Input | tuple[Input, ...] | None]
    fingerprint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def parents(self) -> Iterator[Input]:
        """All inputs, lists opened."""
        for given in self.inputs.values():
            if isinstance(given, Input):
                yield given
            elif given:
                yield from given


@dataclass(frozen=True)
class Record:
    """A kept result. `value` and `exact` are its content and exact key, `about` its summary, `blobs` the store's files it needs."""

    made: Made
    type: str
    value: str
    exact: str
    about: Mapping[str, Any] = field(default_factory=dict)
    blobs: tuple[str, ...] = ()
    seconds: float = 0.0
    at: float = 0.0

    def as_input(self) -> Input:
        """This result as another op's input."""
        return Input(self.type, self.value, self.exact, self.made.recipe)

    def json(self) -> str:
        """One line of JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, ensure_ascii=False)

    @staticmethod
    def read(text: str) -> Record:
        """The inverse of `json`. ValueError when it is not a record of this format."""
        data = json.loads(text)
        if data.pop("format", None) != FORMAT:
            raise ValueError("a record of another format")
        made = data.pop("made")
        made["inputs"] = {k: _input(v) for k, v in made["inputs"].items()}
        data["blobs"] = tuple(data["blobs"])
        return Record(made=Made(**made), **data)


def _input(data: Any) -> Input | tuple[Input, ...] | None:
    if data is None:
        return None
    return tuple(Input(**d) for d in data) if isinstance(data, list) else Input(**data)


class Store:
    """Results below `root`. `memory` bytes of values are kept in memory, the least recently used leave first."""

    def __init__(self, root: str | Path, memory: int = 2**30) -> None:
        self.root = Path(root).expanduser().absolute()
        self.memory = memory
        self._values: OrderedDict[str, tuple[Value, int]] = OrderedDict()
        self._guard = threading.Lock()
        self._held = ExitStack()
        self._holding = False
        for name in ("records", "values", "blobs", "by", "work", "pins", "claims", "tmp"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    # What living processes hold.

    @contextmanager
    def pin(self) -> Iterator[None]:
        """Nothing used from here to the end of the block is collected, by any process."""
        path = self.root / "pins" / f"{os.getpid()}-{uuid.uuid4().hex}"
        with self.shared():  # so that gc cannot come between making the file and locking it
            handle = acquire(path)
        try:
            yield
        finally:
            if handle is not None:
                release(handle)
            path.unlink(missing_ok=True)

    def hold(self) -> None:
        """A pin for as long as the process lives: a script may use a value long after the call that made it."""
        if not self._holding:
            self._holding = True
            self._held.enter_context(self.pin())

    def close(self) -> None:
        """End what `hold` began."""
        self._held.close()
        self._holding = False

    @contextmanager
    def claim(self, recipe: str) -> Iterator[bool]:
        """Whether this caller alone makes the recipe now. False: somebody else is at it."""
        with self.shared():
            handle = acquire(self.root / "claims" / recipe, wait=False)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                release(handle)

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Keep `gc` out for a block."""
        with locked(self.root / "lock", shared=True):
            yield

    # Results.

    def get(self, recipe: str) -> Record | None:
        """The record of a recipe, marked as used now; None when there is none that can be read."""
        path = self._path("records", recipe, ".json")
        with self.shared():
            try:
                record = Record.read(path.read_text(encoding="utf-8"))
                os.utime(path)
            except (OSError, ValueError, TypeError, KeyError):
                return None
        return record

    def load(self, record: Record) -> Value:
        """The record's value. Missing when it, or a file it names, is not there any more."""
        with self._guard:
            if record.exact in self._values:
                self._values.move_to_end(record.exact)
                return self._values[record.exact][0]
        path = self._path("values", record.exact, ".json")
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            arrays = self._read_arrays(record.exact)
        except (OSError, ValueError) as e:
            raise Missing(f"the value of {record.made.op} ({record.exact}) is not in {self.root}") from e
        files = {sha: self._find(sha, *where) for sha, where in data["files"].items()}
        value: Value = decode(data["tree"], arrays, files.__getitem__)
        self._remember(record.exact, value, sum(int(a.nbytes) for a in arrays.values()) + path.stat().st_size)
        return value

    def put(self, value: Value, made: Made, *, seconds: float = 0.0, about: Mapping[str, Any] | None = None, disk: bool = True) -> Record:
        """Keep a value under `made.recipe`. A second put of the same recipe replaces the first. Without `disk` only the record is written,
        and the value is there while memory holds it."""
        encoded = encode(value)
        exact = exact_key(value, encoded)
        own = tuple(s for s, b in encoded.blobs.items() if self._owns(b))
        record = Record(made, type(value).__name__, value.key, exact, about or {}, own, round(seconds, 3), round(time.time(), 3))
        self._remember(exact, value, encoded.size)
        with self.shared():
            if disk:
                self._write_value(exact, encoded)
            self._write(self._path("records", made.recipe, ".json"), record.json().encode())
            for key in {record.value, exact}:
                self._write(self._path("by", key), made.recipe.encode(), flush=False)
        return record

    def producer(self, key: str) -> Record | None:
        """The record that made the value with this content or exact key, the last one if there were several."""
        try:
            recipe = self._path("by", key).read_text(encoding="utf-8")
        except OSError:
            return None
        return self.get(recipe)

    def records(self) -> Iterator[Record]:
        """All records on disk, in no order."""
        for path in self.root.glob("records/*/*.json"):
            try:
                yield Record.read(path.read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError, KeyError):
                continue

    # Files.

    def blob(self, content: str | Path | bytes, suffix: str = "") -> Blob:
        """A copy of a file (or of bytes) in the store, named by its content. OSError when the file cannot be read."""
        if not isinstance(content, bytes) and not suffix:
            suffix = Path(content).suffix
        with self.shared():
            tmp = self.root / "tmp" / uuid.uuid4().hex
            try:
                sha = copy(content, tmp)
                path = self._path("blobs", sha, suffix)
                if path.is_file():
                    os.utime(path)
                else:
                    path.parent.mkdir(exist_ok=True)
                    os.replace(tmp, path)
            finally:
                tmp.unlink(missing_ok=True)
        return Blob(str(path), sha)

    def folder(self, name: str) -> Path:
        """A folder to work in and to resume from; the same name gives the same folder. An op removes it when it has finished."""
        path = self.root / "work" / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def _owns(self, blob: Blob) -> bool:
        return Path(blob.path).is_relative_to(self.root)

    def _find(self, sha: str, path: str, size: int, mtime: int) -> Blob:
        """Where a file lies now. Outside the store only an unchanged file counts: same size and time, or the same hash."""
        where = self.root / path  # an absolute path stays what it is
        try:
            stat = where.stat()
            if stat.st_size == size and (stat.st_mtime_ns == mtime or not Path(path).is_absolute() or Blob.of(where).sha256 == sha):
                return Blob(str(where), sha)
        except OSError:
            pass
        raise Missing(f"{where} is gone or was changed")

    # Bytes on disk.

    def _path(self, kind: str, key: str, suffix: str = "") -> Path:
        return self.root / kind / key[:2] / f"{key}{suffix}"

    def _write(self, path: Path, data: bytes, *, flush: bool = True) -> None:
        place(self.root / "tmp", path, lambda tmp: tmp.write_bytes(data), flush=flush)

    def _write_value(self, exact: str, e: Encoded) -> None:
        path = self._path("values", exact, ".json")
        tensors = {k: v.detach().cpu().contiguous() for k, v in e.arrays.items() if is_tensor(v)}
        arrays = {k: v for k, v in e.arrays.items() if k not in tensors}
        for kind, held in (("numpy", arrays), ("torch", tensors)):
            if held:
                write = partial(import_module(f"safetensors.{kind}").save_file, held)
                place(self.root / "tmp", path.with_suffix(SUFFIXES[kind]), write)
        files = {sha: self._where(blob) for sha, blob in e.blobs.items()}
        self._write(path, json.dumps({"tree": e.tree, "files": files}, ensure_ascii=False).encode())

    def _where(self, blob: Blob) -> tuple[str, int, int]:
        path = Path(blob.path).absolute()
        stat = path.stat()
        return str(path.relative_to(self.root) if self._owns(blob) else path), stat.st_size, stat.st_mtime_ns

    def _read_arrays(self, exact: str) -> dict[str, Any]:
        """The value's arrays and tensors by name. ValueError when a file is damaged."""
        path = self._path("values", exact)
        kinds = [k for k in ("numpy", "torch") if path.with_suffix(SUFFIXES[k]).is_file()]
        if not kinds:
            return {}
        from safetensors import SafetensorError

        try:
            files = [import_module(f"safetensors.{kind}").load_file(path.with_suffix(SUFFIXES[kind])) for kind in kinds]
        except SafetensorError as e:
            raise ValueError(str(e)) from e
        return {name: array for file in files for name, array in file.items()}

    def _remember(self, exact: str, value: Value, size: int) -> None:
        with self._guard:
            self._values[exact] = (value, size)
            self._values.move_to_end(exact)
            total = sum(s for _, s in self._values.values())
            while total > self.memory and len(self._values) > 1:
                total -= self._values.popitem(last=False)[1][1]


# The store in use.

_current: ContextVar[Store | None] = ContextVar("store", default=None)
_making: ContextVar[Made | None] = ContextVar("making", default=None)


@cache
def _at(root: Path) -> Store:
    return Store(root)


def current() -> Store:
    """The store of the op that runs now, or the default one. Op bodies make blobs and work folders with it."""
    return _current.get() or _at(home())


def making() -> Made | None:
    """What the op that runs now is making: its recipe key, settings and inputs; None outside of ops."""
    return _making.get()


@contextmanager
def using(store: Store, made: Made | None = None) -> Iterator[None]:
    """Make a store the current one for a block."""
    tokens = _current.set(store), _making.set(made)
    try:
        yield
    finally:
        _current.reset(tokens[0])
        _making.reset(tokens[1])
