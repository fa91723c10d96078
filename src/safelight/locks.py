"""Locks that die with their owner. The system drops them however a process ends, so nobody asks whether a process number is alive."""
from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int, shared: bool, wait: bool) -> bool:
        # Windows has no shared lock here: readers take turns, which is slower and as safe.
        try:
            msvcrt.locking(handle, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
        except OSError:
            return _lock(handle, shared, wait) if wait else False
        return True
else:
    import fcntl

    def _lock(handle: int, shared: bool, wait: bool) -> bool:
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True


def acquire(path: Path, *, shared: bool = False, wait: bool = True) -> int | None:
    """Open the file and lock it; the handle to give to `release`, or None when somebody else has it and `wait` is off."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    if _lock(handle, shared, wait):
        return handle
    os.close(handle)
    return None


def release(handle: int) -> None:
    """Unlock."""
    os.close(handle)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the file's lock for a block, waiting for it first."""
    handle = acquire(path, shared=shared)
    try:
        yield
    finally:
        if handle is not None:
            release(handle)


def held(path: Path) -> bool:
    """Whether a living process holds the file's lock."""
    handle = acquire(path, wait=False)
    if handle is not None:
        release(handle)
    return handle is None
