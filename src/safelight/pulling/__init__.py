"""Models from Hugging Face and ModelScope: only the files that are needed, checked, and going on where it broke off. No torch."""
from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight.events import Note, Progress
from safelight.index import home
from safelight.locks import locked
from safelight.pulling.choose import INDEX, Remote, matching, needed
from safelight.pulling.http import Brought, Refused, right
from safelight.pulling.hubs import Hub, open_hub
from safelight.pulling.names import KNOWN, Known, Wanted, wanted
from safelight.spec import Work
from safelight.values import digest

__all__ = ["KNOWN", "Known", "Plan", "Pulled", "Remote", "Wanted", "plan", "pull", "wanted"]

RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
HASH = re.compile(r"sha256:[0-9a-f]{64}|git:[0-9a-f]{40}")
BAD = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\]')


@dataclass(frozen=True)
class Plan:
    """What will be fetched from where: `folder` is its place, None for the hub's own cache."""

    wanted: Wanted
    hub: Hub
    files: tuple[Remote, ...]
    folder: Path | None

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(f.size for f in self.files)


@dataclass(frozen=True)
class Pulled:
    """What a pull leaves: the folder a model is read from, its files, and how many bytes came over the network."""

    folder: Path
    files: tuple[Path, ...]
    fetched: int


def plan(name: str, *, to: Path | None = None, revision: str | None = None, only: Sequence[str] = ()) -> Plan:
    """Ask the hub and choose the files. ValueError when there is no such model, or its file names lead elsewhere; OSError offline."""
    asked = wanted(name)
    if revision is not None and (BAD.search(revision) or ".." in revision or revision.startswith("/")):
        raise ValueError(f"pull {name}: {revision!r} is no revision")
    hub = open_hub(asked, revision)
    files = hub.files()
    chosen = matching(files, only) if only else needed(files, _index(hub, files))
    for f in chosen:
        _check(asked, f)
    if to is None and (asked.hub == "ms" or not all(f.hash for f in chosen)):
        to = _models() / (asked.kind or ("diffusers" if any(f.name == INDEX for f in chosen) else "")) / asked.name
    return Plan(asked, hub, tuple(chosen), to)


def pull(plan: Plan) -> Work[Pulled]:
    """Fetch what a plan says and is not there yet. A file is whole and checked or not there; closing the work keeps what came of it."""
    before, started, there, http = 0, time.monotonic(), list[Path](), plan.hub.http
    for f in plan.files:
        target = _target(plan, f)
        for step in _brought(plan, target, f):
            rate = http.came / 2**20 / max(time.monotonic() - started, 1e-3)
            yield step if isinstance(step, Note) else _progress(plan, before + step, rate)
        there.append(target if plan.folder is not None else plan.hub.link(f))
        before += f.size
    return Pulled(plan.folder or there[0].parents[plan.files[0].name.count("/")], tuple(there), http.came)


def _progress(plan: Plan, done: int, rate: float) -> Progress:
    return Progress(step=done >> 20, total=plan.size >> 20, what=plan.wanted.name, unit="MB", values=(("MB/s", rate),))


def _brought(plan: Plan, target: Path, f: Remote) -> Brought:
    """The file's way to its place; nothing when it is there. In a hub's cache a blob's name is its hash."""
    with _alone(target):
        if target.is_file() if plan.folder is None else right(target, f):
            return
        try:
            yield from plan.hub.http.fetch(plan.hub.url(f), target, f)
        except Refused as e:
            raise plan.hub.denied(e) from e
    if not f.hash:
        yield Note(text=f"{f.name}: the hub tells no hash of it, so only its size was checked", level="warning")


def _index(hub: Hub, files: Sequence[Remote]) -> Mapping[str, Any] | None:
    """What model_index.json says, if there is one."""
    found = next((f for f in files if f.name == INDEX), None)
    if found is None:
        return None
    try:
        told = hub.http.json(hub.url(found))
    except Refused as e:
        raise hub.denied(e) from e
    if not isinstance(told, dict):
        raise ValueError(f"pull: {INDEX} is no table")
    return told


def _check(asked: Wanted, f: Remote) -> None:
    """ValueError when a hub's names would lead out of a folder, or be no names on some system."""
    parts = f.name.split("/")
    if BAD.search(f.name) or any(p in ("", ".", "..") or p.endswith((" ", ".")) or RESERVED.fullmatch(p) for p in parts):
        raise ValueError(f"pull {asked.hub}:{asked.id}: its file {f.name[:200]!a} has no name that can be written; nothing was fetched")
    if f.size < 0 or (f.hash and not HASH.fullmatch(f.hash)):
        raise ValueError(f"pull {asked.hub}:{asked.id}: the hub tells of {f.name!r} size {f.size} and hash {f.hash[:99]!a}; not fetched")


def _target(plan: Plan, f: Remote) -> Path:
    if plan.folder is None:
        blob = plan.hub.blob(f)
        assert blob is not None
        return blob
    target = plan.folder / f.name
    if not target.resolve().is_relative_to(plan.folder.resolve()):
        raise ValueError(f"pull: {target} lies outside {plan.folder}, by a link; choose another folder with --to")
    return target


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """One process at a time brings a file; a second waits, and then finds it."""
    folder = home() / "pulls"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / digest("pull", str(target.absolute()))):
        yield


def _models() -> Path:
    """The first models folder: of $SAFELIGHT_MODELS, or `models` here."""
    given = [Path(p).expanduser() for p in os.environ.get("SAFELIGHT_MODELS", "").split(os.pathsep) if p]
    return next((p for p in given if p.suffix.lower() not in (".yaml", ".yml")), Path("models"))
