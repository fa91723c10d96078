"""How much memory is left on a device, and work that takes less of it where it is short."""
from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")

log = logging.getLogger(__name__)

ENDED = ("out of memory", "can't allocate memory", "std::bad_alloc", "could not create a memory object", "could not create a primitive")
"""What torch's allocators and oneDNN say in a RuntimeError when there is no memory left."""

GROUP = Path("/sys/fs/cgroup")
"""Where Linux tells a container of its limits (cgroup v2)."""


class Way(NamedTuple):
    """One way to do some work: its name, how many bytes it is expected to take, and the arguments that make the work so."""

    name: str
    bytes: int
    plan: tuple[int, ...]


def free(device: torch.device) -> int | None:
    """Bytes that can still be had on the device, those that torch holds back for itself among them; None where nobody says."""
    if device.type == "cuda":
        held_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held_back
    if device.type != "cpu":
        return None
    told = [n for n in (_machine(), _container()) if n is not None]
    return min(told, default=None)


def _machine() -> int | None:
    return next((n * 1024 for name, n in _table(Path("/proc/meminfo")) if name == "MemAvailable:"), None)


def _container() -> int | None:
    """What a container's limit leaves; files that are only cached do not count as used."""
    try:
        most, used = (GROUP.joinpath(f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return None
    cached = sum(n for name, n in _table(GROUP / "memory.stat") if name == "inactive_file")
    return int(most) - int(used) + cached if most.isdigit() else None


def _table(path: Path) -> list[tuple[str, int]]:
    """Lines of a name and a number."""
    try:
        return [(line[0], int(line[1])) for line in map(str.split, path.read_text().splitlines()) if line[1:] and line[1].isdigit()]
    except OSError:
        return []


def ran_out(error: BaseException) -> bool:
    """Whether the error says that memory ended."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error).lower() for words in ENDED)


def collect() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def sparing(do: Callable[..., T], ways: Sequence[Way], *, free: int | None, what: str) -> T:
    """The first of the ways that fits into `free` bytes and does not run out of memory; the last is tried whatever is free.

    What was changed is logged. RuntimeError, as torch raised it, when the last way runs out of memory too.
    """
    fits = [w for w in ways[:-1] if free is None or w.bytes <= free]
    for way in fits:
        try:
            return _told(do, way, ways[0], what)
        except (RuntimeError, MemoryError) as e:
            if not ran_out(e):
                raise
        collect()  # here, where the error no longer holds what it ran over
    return _told(do, ways[-1], ways[0], what)


def _told(do: Callable[..., T], way: Way, first: Way, what: str) -> T:
    if way is not first:
        log.warning("%s: memory is short for %s; doing it %s", what, first.name, way.name)
    return do(*way.plan)
