"""The process that reads an untrusted checkpoint: standard library only, small limits, and it can open, start and connect nothing.

Run as `python -I -S -c ... SOURCE TARGET SHA256` by `pickles`. It tells how it goes in lines of JSON: `step` and `total` in bytes, then
`done` or `error`.
"""
from __future__ import annotations

import codecs
import gc
import json
import mmap
import os
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from safelight.weights.header import BITS
from safelight.weights.torch_file import load, pickled
from safelight.weights.writing import check, copy, header, tensors

BASE = 2**27  # bytes of memory beside the mapped file
EACH = 64  # bytes of memory for a byte of pickle
MOST = 2**31  # bytes of memory for a pickle
SECONDS = 60
ENCODINGS = ("utf-8", "latin-1", "cp437", "raw_unicode_escape")
"""What zip archives and pickles are written in; looked up while modules may still be imported."""

QUIET = {
    "builtins.id", "mmap.__new__", "object.__getattr__", "object.__setattr__", "object.__delattr__", "sys._getframe", "resource.setrlimit",
}
"""What Python does on its own and reports; all other reports stop the process."""


def main() -> int:
    """Convert and say how it went. Exit status 1 when the file was refused."""
    source, target, sha = sys.argv[1:4]
    size = os.stat(source).st_size
    gc.disable()  # looking for cycles among a million objects is where a bomb's time would go
    with open(source, "rb") as f, open(target, "wb") as out:
        for name in ENCODINGS:
            codecs.lookup(name)
        _limit(size)
        sys.addaudithook(nothing_else)
        try:
            convert(f, out, sha)
        except MemoryError:
            tell(error="it needs more memory than weights of its size do")
        except zipfile.BadZipFile as e:
            tell(error=f"its archive is damaged: {e}")
        except (ValueError, OSError, NotImplementedError) as e:
            tell(error=str(e))
        else:
            return 0
    return 1


def convert(f: BinaryIO, out: BinaryIO, sha: str) -> None:
    """Take the file apart and write its tensors. ValueError says what is wrong with it."""
    size = os.fstat(f.fileno()).st_size
    if not size:
        raise ValueError("it is empty")
    data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
    start, end, places = pickled(f, data)
    _memory(size + BASE + min(MOST, EACH * (end - start)))
    file = load(data, start, end, places)
    found, left, place = tensors(file.root)
    if not found:
        calls = f"; it wants to call {', '.join(list(file.foreign)[:5])}" if file.foreign else ""
        raise ValueError(f"there are no tensors in it{calls}")
    total = check(found, file, 4 * size + 2**24)
    notes = {"format": "pt", "safelight.source": sha, "safelight.place": place, "safelight.left": json.dumps(left)[:60000]}
    head, order = header(found, notes)
    _memory(size + BASE + min(MOST, EACH * (end - start)) + 2 * max(t.count * BITS[t.dtype] // 8 for t in order))
    out.write(head)
    done = told = 0
    for t in order:
        copy(t, file, data, f, out)
        done += t.count * BITS[t.dtype] // 8
        if done - told > 2**25:
            told = done
            tell(step=done, total=total)
    out.flush()
    tell(done=len(order), left=len(left), foreign=list(file.foreign)[:50])


def tell(**what: object) -> None:
    """One line for the parent."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def nothing_else(event: str, _: object) -> None:
    """An audit hook: PermissionError for all that reading does not need."""
    if event not in QUIET:
        raise PermissionError(f"reading weights is no reason for {event}")


if sys.platform == "win32":

    def _limit(size: int) -> None:
        """There are no such limits there; the parent's clock remains."""

    def _memory(most: int) -> None:
        """Nor here."""
else:
    import resource

    def _limit(size: int) -> None:
        seconds = SECONDS + size // 2**25
        _set(resource.RLIMIT_CPU, seconds)
        _set(resource.RLIMIT_FSIZE, 4 * size + 2**26)
        _set(resource.RLIMIT_NOFILE, max(int(n) for n in _handles()) + 1)
        _set(resource.RLIMIT_CORE, 0)
        _memory(size + BASE)

    def _memory(most: int) -> None:
        _set(resource.RLIMIT_AS, most)

    def _set(what: int, most: int) -> None:
        hard = resource.getrlimit(what)[1]
        resource.setrlimit(what, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    def _handles() -> list[str]:
        there = Path("/proc/self/fd")
        return [p.name for p in there.iterdir()] if there.is_dir() else ["16"]
