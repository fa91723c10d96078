"""Pictures from outside, opened in a process of their own (`decoding`) and never in the server's."""
from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from safelight.server.decoding import SECONDS

START = "import sys; sys.path.insert(0, {!r}); from safelight.server.decoding import main; sys.exit(main())"
AT_ONCE = 2
"""Processes at the same time."""
KEPT = 2**24
"""Bytes of small pictures that are kept."""

_gates: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()


class Refused(ValueError):
    """The picture cannot be used; the message says why."""


async def opened(do: str, *data: bytes, **how: Any) -> tuple[dict[str, Any], bytes]:
    """Do one piece of `decoding` in a child: what it tells, and the bytes it made. Refused when the pictures cannot be read."""
    async with _gates.setdefault(asyncio.get_running_loop(), asyncio.Semaphore(AT_ONCE)):
        start = START.format(str(Path(__file__).parents[2]))
        work = json.dumps({"do": do, "sizes": [len(d) for d in data], **how})
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", start, work, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL, env={k: os.environ[k] for k in ("PATH", "LD_LIBRARY_PATH") if k in os.environ},
        )
        try:
            out, _ = await asyncio.wait_for(child.communicate(b"".join(data)), 3 * SECONDS)
        except TimeoutError:
            raise Refused("reading the picture took too long and was stopped") from None
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
    line, _, made = out.partition(b"\n")
    if not line:
        raise Refused(f"reading the picture was stopped (status {child.returncode}); it needs more memory or time than pictures do")
    told: dict[str, Any] = json.loads(line)
    if "error" in told:
        raise Refused(f"no picture that can be read: {told['error']}")
    return told, made


class Small:
    """Pictures made anew for looking at, the latest of them kept."""

    def __init__(self) -> None:
        self.kept: OrderedDict[tuple[Any, ...], bytes] = OrderedDict()

    async def get(self, path: Path, *, form: str, quality: int = 90, channel: str = "rgba") -> bytes:
        """The file's picture in another form. Refused when it cannot be read."""
        stat = path.stat()
        key = (path, stat.st_mtime_ns, stat.st_size, form, quality, channel)
        if key not in self.kept:
            content = await asyncio.to_thread(path.read_bytes)
            _, self.kept[key] = await opened("encode", content, form=form, quality=quality, channel=channel)
        self.kept.move_to_end(key)
        while sum(map(len, self.kept.values())) > KEPT and len(self.kept) > 1:
            self.kept.popitem(last=False)
        return self.kept[key]
