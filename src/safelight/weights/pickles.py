"""Checkpoints that are pickles (.ckpt, .pt, .pth, .bin), made into safetensors once and kept by content. Nothing in a file ever runs."""
from __future__ import annotations

import json
import logging
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safelight import index
from safelight.disk import place
from safelight.events import Note, Progress
from safelight.locks import locked
from safelight.spec import Work
from safelight.weights import header

log = logging.getLogger(__name__)

KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT")  # what an interpreter may need to start
SECONDS = 90  # of wall time, and one more for each SLOWEST bytes
SLOWEST = 10 * 2**20
START = "import sys; sys.path.append({!r}); from safelight.weights.child import main; sys.exit(main())"
SUSPECT = frozenset(["os", "posix", "nt", "subprocess", "sys", "socket", "shutil", "pty", "runpy", "importlib", "ctypes", "pickle"])
EVIL = frozenset(f"builtins.{name}" for name in ("eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "breakpoint"))


def is_safetensors(path: str | Path) -> bool:
    """Whether the file's first bytes are those of safetensors, whatever its name says. OSError when it cannot be read."""
    with open(path, "rb") as f:
        head = f.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= header.LONGEST


def to_safetensors(path: str | Path, cache: str | Path | None = None) -> Path:
    """The file itself when it is safetensors, else its tensors as safetensors, made at the first call: `convert` without its events."""
    work = convert(path, cache)
    with closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as stop:
                return Path(stop.value)
            if isinstance(event, Note):
                log.log(logging.WARNING if event.level == "warning" else logging.INFO, "%s", event.text)


def convert(path: str | Path, cache: str | Path | None = None) -> Work[Path]:
    """A sound safetensors file with the tensors of any checkpoint, and events on the way; closing the work ends it at once.

    Kept as `<cache>/<sha256 of the file>.safetensors`; `cache` is `weights` in the store's folder unless given. Names are dotted paths
    below `state_dict`, if there is one; its metadata says what was left out. ValueError, naming the file, for everything wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path}: got a folder; expected a checkpoint file (of DeepSpeed's folders, its zero_to_fp32.py makes one)")
    if is_safetensors(path):
        header.read(path)
        return path
    folder = Path(cache) if cache is not None else index.home() / "weights"
    folder.mkdir(parents=True, exist_ok=True)
    sha = index.sha256(path)
    made = folder / f"{sha}.safetensors"
    with locked(folder / f"{sha}.lock"):
        os.utime(folder / f"{sha}.lock")  # for `store gc`, which lets the least recently used go
        if not made.is_file():
            yield from _make(path, made, sha)
    return made


def _make(path: Path, made: Path, sha: str) -> Work[None]:
    beside = made.with_suffix(".part")
    try:
        told: dict[str, Any] = {}
        for told in _child(path, beside, sha):
            if "step" in told:
                yield Progress(step=told["step"] >> 20, total=told["total"] >> 20, what=f"reading {path.name}", unit="MB")
        header.read(beside)
        place(made.parent, made, lambda to: os.replace(beside, to))
    finally:
        beside.unlink(missing_ok=True)
    foreign = [name for name in told["foreign"] if isinstance(name, str)]
    suspect = [n for n in foreign if n in EVIL or n.partition(".")[0] in SUSPECT]
    if suspect:
        yield Note(text=f"{path}: it wants to call {', '.join(map(ascii, suspect[:5]))}; nothing was called, only its tensors were taken."
                        " Weights have no need of that: do not open the file with anything that runs it.", level="warning")
    elif foreign or told["left"]:
        classes = f", of {', '.join(map(ascii, foreign[:5]))}" if foreign else ""
        yield Note(text=f"{path}: {told['done']} tensors taken, {told['left']} other entries left out{classes}")


def _child(path: Path, target: Path, sha: str) -> Iterator[dict[str, Any]]:
    """What the reading process tells, the last line being `done`. ValueError when it was refused or ended; closing kills it."""
    until = time.monotonic() + SECONDS + path.stat().st_size / SLOWEST
    with tempfile.TemporaryFile() as trouble, _process([str(path), str(target), sha], trouble) as process:
        for told in _lines(process, until, path):
            if "error" in told:
                raise ValueError(f"{path}: no checkpoint that can be read: {_printable(told['error'])}")
            yield told
            if "done" in told:
                return
        why = _last(process.wait(), trouble)
        if "MemoryError" in why:  # with nothing left it could not even say so
            raise ValueError(f"{path}: no checkpoint that can be read: it needs more memory than weights of its size do")
        raise ValueError(f"{path}: the process that reads it ended without a result: {why}")


@contextmanager
def _process(arguments: list[str], trouble: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    start = START.format(str(Path(__file__).parents[2]))
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", start, *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=trouble, env={k: os.environ[k] for k in KEPT if k in os.environ},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _lines(process: subprocess.Popen[bytes], until: float, path: Path) -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    pipe = process.stdout

    def listen() -> None:
        while pipe and (line := pipe.readline(2**20)):
            lines.put(line)
        lines.put(b"")

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while line := lines.get(timeout=max(0.0, until - time.monotonic())):
            yield json.loads(line)
    except queue.Empty:
        raise ValueError(f"{path}: reading it took too long and was stopped") from None
    finally:
        process.kill()
        listener.join()


def _printable(text: object) -> str:
    """The child's words hold the file's names: no control characters, and not too many."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:500])


def _last(status: int, trouble: BinaryIO) -> str:
    if status < 0:
        return f"stopped by signal {-status}; it took more time or memory than weights of its size do"
    trouble.seek(0)
    lines = trouble.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
    return ascii(lines[-1][:300]) if lines else f"exit status {status}"
