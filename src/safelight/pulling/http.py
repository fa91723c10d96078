"""Small, careful HTTP: JSON from an endpoint, and files that go on where they broke off. Standard library only.

Only http and https, never from https back to http; a redirect to an address that is not public is refused, unless the endpoint itself was
given as such an address; credentials go to the endpoint alone; nothing grows past the size that was announced.
"""
from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from email.message import Message
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from safelight.disk import place
from safelight.events import Note
from safelight.pulling.choose import Remote
from safelight.pulling.reaching import Inside as Inside
from safelight.pulling.reaching import Opening, Redirects, public
from safelight.pulling.reaching import Refused as Refused

TIMEOUT = 30.0  # seconds without a byte
SLOW = 60.0  # seconds in which at least SLOW_BYTES must come
SLOW_BYTES = 2**16
LONGEST_ANSWER = 2**24  # bytes of what is read at once
TRIES = 5  # in a row without a new byte
PAUSE = 1.0  # seconds before the second try; doubled each time
PATIENCE = 120.0  # seconds that a server may ask to wait for; beyond that the user is asked
HOUR = 3600.0  # what to wait when a quota is used up and the server does not say how long
MOST_TRIES = 100
PIECE = 2**20
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError)
Brought = Generator[int | Note, None, None]
T = TypeVar("T")


class Busy(ConnectionError):
    """The server wants fewer requests, or has trouble: ask again after so many seconds (0: it does not say)."""

    def __init__(self, text: str, after: float = 0.0) -> None:
        super().__init__(text)
        self.after = after


class UsedUp(OSError):
    """A quota is used up for longer than PATIENCE: nothing more comes from there now."""


class Http:
    """Requests to one endpoint, such as `https://huggingface.co`, and to where it sends them. `headers` go to the endpoint only.

    `private` says whether addresses inside a network may be asked; None: when the endpoint was given as one. A connection is made to the
    very address that was looked at, unless a proxy makes it. `timeout` is in seconds without a byte.
    """

    def __init__(
        self, endpoint: str, headers: Mapping[str, str] | None = None, *, private: bool | None = None, timeout: float = TIMEOUT,
    ) -> None:
        self.endpoint, self.headers, self.timeout = endpoint.rstrip("/"), dict(headers or {}), timeout
        parts = urlsplit(self.endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"pull: the endpoint {endpoint!r} is no http or https address")
        self.local = not public(parts.hostname) if private is None else private
        self._named = parts.hostname if private is None else ""  # the user named it, so it needs no look
        self.came = 0  # bytes of files
        self._opener = urllib.request.build_opener(Redirects(self), Opening(self))

    def check(self, url: str, came_from: str = "") -> None:
        """Refused when this address must not be asked."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"{self.endpoint} leads to {url[:200]!r}; only http and https are followed")
        if came_from.startswith("https:") and parts.scheme == "http":
            raise Refused(f"{self.endpoint} leads from https to {url[:200]!r}; such a step is not followed")
        if not self.trusts(parts.hostname) and not public(parts.hostname):
            led = f"{self.endpoint} leads to {parts.hostname}," if came_from else f"{parts.hostname} is"
            raise Inside(f"{led} an address inside a network; it is not asked")

    def trusts(self, host: str) -> bool:
        """Whether a host may lie inside a network."""
        return self.local or host == self._named

    def json(self, url: str) -> Any:
        """The answer as data; errors as `read`."""
        text = self.read(url)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as e:
            raise Refused(f"{url}: expected JSON, got {text[:60]!r}") from e

    def read(self, url: str) -> bytes:
        """A short answer. Refused when there is none to be had; else as `patiently`."""
        return patiently(url, lambda: self._read(url))

    def _read(self, url: str) -> bytes:
        with closing(self.open(url)) as answer:
            text = answer.read(LONGEST_ANSWER + 1)
        if len(text) > LONGEST_ANSWER:
            raise Refused(f"{url}: the answer is longer than {LONGEST_ANSWER} bytes")
        return text

    def send(self, url: str, data: bytes | Path, *, method: str = "POST", headers: Mapping[str, str] | None = None) -> Any:
        """The answer to bytes, or to a file's content, as data, empty when it is no JSON; errors as `patiently`."""
        def once() -> Any:
            with open(data, "rb") if isinstance(data, Path) else BytesIO(data) as body:
                size = data.stat().st_size if isinstance(data, Path) else len(data)
                told = {"Content-Type": "application/json", "Content-Length": str(size), **(headers or {})}
                request = urllib.request.Request(url, body, told, method=method)
                with closing(self.open(url, request=request)) as answer:
                    text = answer.read(LONGEST_ANSWER)
                    return json.loads(text) if text[:1] == b"{" else {}
        return patiently(url, once)

    def open(self, url: str, *, start: int = 0, request: urllib.request.Request | None = None) -> http.client.HTTPResponse:
        """The open answer, from byte `start` on if the server can, or to another request than a plain one. Refused for what asking again
        does not change; BROKEN otherwise."""
        self.check(url)
        request = urllib.request.Request(url) if request is None else request
        for name, value in {"Accept-Encoding": "identity", **self.own(url)}.items():
            request.add_header(name, value)
        if start:
            request.add_header("Range", f"bytes={start}-")
        try:
            answer: http.client.HTTPResponse = self._opener.open(request, timeout=self.timeout)
        except urllib.error.HTTPError as e:
            with e:
                if e.code in (408, 425, 429) or e.code >= 500 or e.headers.get("X-Ratelimit-Remaining") == "0":
                    raise Busy(f"the server answers {e.code} {e.reason}", _after(e.headers)) from e
                raise Refused(f"{url}: the server answers {e.code} {e.reason}", e.code) from e
        return answer

    def own(self, url: str) -> dict[str, str]:
        """The headers for this address: those of the endpoint only for the endpoint."""
        same = urlsplit(url)[:2] == urlsplit(self.endpoint)[:2]
        return dict(self.headers) if same else {k: v for k, v in self.headers.items() if k.lower() == "user-agent"}

    def fetch(self, url: str, target: Path, wanted: Remote) -> Brought:
        """Bring a file to `target`, yielding how many bytes of it are there. What was brought before it broke is kept beside it and used.

        The file is there whole and with the right hash, or not at all. ValueError when its hash or size is wrong, Refused as in `open`,
        OSError when the connection broke too often.
        """
        name = hashlib.sha256(f"{wanted.hash} {wanted.size}".encode()).hexdigest()[:12]
        path = target.with_name(f"{target.name}.{name}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:
            part = _Part(file, wanted)
            yield from part.reread()
            _room(path, wanted.size - part.at)
            yield from self._rest(url, part)
        if not part.right():
            path.unlink()
            raise ValueError(
                f"{wanted.name}: what came has the hash {part.digest.hexdigest()}, the hub announced {wanted.hash.partition(':')[2]}; it "
                "was removed. Pull again; if it stays so, the hub or something on the way changes the file"
            )
        place(path.parent, target, lambda to: os.replace(path, to))

    def _rest(self, url: str, part: _Part) -> Brought:
        """What is still missing, in as many requests as it takes."""
        tries, size, name = 0, part.wanted.size, part.wanted.name
        for _ in range(MOST_TRIES):
            before, trouble = part.at, "the connection ended early"
            if before == size:
                return
            try:
                yield from self._request(url, part)
            except BROKEN as e:
                trouble = str(e) or type(e).__name__
            if part.at < size:
                tries = 1 if part.at > before else tries + 1
                if tries == TRIES:
                    break
                yield Note(text=f"{name}: {trouble}; going on from byte {part.at} of {size}")
                time.sleep(PAUSE * 2 ** (tries - 1))
        if part.at < size:
            raise OSError(f"{name}: {trouble}; {part.at} of {size} bytes are kept, pull again to go on from there")

    def _request(self, url: str, part: _Part) -> Brought:
        """One request's bytes."""
        with closing(self.open(url, start=part.at)) as answer:
            if answer.status != 206:  # the server sends the whole file, whatever was asked
                part.restart()
            elif not (answer.headers.get("Content-Range") or "").startswith(f"bytes {part.at}-"):
                raise Refused(f"{part.wanted.name}: asked from byte {part.at} on, got {answer.headers.get('Content-Range')!r}")
            since, had = time.monotonic(), part.at
            while piece := answer.read1(PIECE):
                part.add(piece)
                self.came += len(piece)
                yield part.at
                if (now := time.monotonic()) - since < SLOW:
                    continue
                if part.at - had < SLOW_BYTES:
                    raise TimeoutError(f"less than {SLOW_BYTES} bytes came in {SLOW:.0f} seconds")
                since, had = now, part.at


def patiently(url: str, work: Callable[[], T]) -> T:
    """What the work gives, tried again while the connection breaks or the server is busy. OSError when that goes on for too long, UsedUp
    when the server asks to wait longer than PATIENCE."""
    trouble: Exception | None = None
    for pause in [0.0, *(PAUSE * 2**i for i in range(TRIES - 1))]:
        after = trouble.after if isinstance(trouble, Busy) else 0.0
        if after > PATIENCE:
            raise UsedUp(f"{urlsplit(url).netloc}: {trouble}; ask again in {after / 60:.0f} minutes") from trouble
        time.sleep(max(pause, after))
        try:
            return work()
        except BROKEN as e:
            trouble = e
    raise OSError(f"{url}: {trouble}") from trouble


class _Part:
    """A file on its way: how far it is, and the hash of what is there."""

    def __init__(self, file: BinaryIO, wanted: Remote) -> None:
        self.file, self.wanted, self.at = file, wanted, 0
        self.digest = self._new()

    def _new(self) -> Any:
        if not self.wanted.hash.startswith("git:"):
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.wanted.size}\0".encode(), usedforsecurity=False)  # how git names a file's content

    def reread(self) -> Brought:
        """Hash what an earlier run left."""
        self.file.seek(0)
        while piece := self.file.read(PIECE):
            self.at += len(piece)
            self.digest.update(piece)
            if self.at > self.wanted.size:
                self.restart()
                return
            yield self.at

    def restart(self) -> None:
        """Throw away what is there."""
        self.file.truncate(0)
        self.at, self.digest = 0, self._new()

    def add(self, piece: bytes) -> None:
        """Write on. Refused when it becomes more than was announced."""
        if self.at + len(piece) > self.wanted.size:
            raise Refused(f"{self.wanted.name}: more bytes come than the {self.wanted.size} that were announced")
        self.file.write(piece)
        self.digest.update(piece)
        self.at += len(piece)

    def right(self) -> bool:
        """Whether the hash is the announced one, if one was."""
        return not self.wanted.hash or bool(self.digest.hexdigest() == self.wanted.hash.partition(":")[2])


def right(path: Path, wanted: Remote) -> bool:
    """Whether a file that is there already is the wanted one, byte for byte."""
    if not path.is_file() or path.stat().st_size != wanted.size:
        return False
    with open(path, "rb") as file:
        part = _Part(file, wanted)
        for _ in part.reread():
            pass
    return part.right()


def _after(headers: Message) -> float:
    """Seconds that a refusal asks to wait: Retry-After as a number or a date, X-Ratelimit-Reset, or an hour for a quota that is used up."""
    said, reset, now = headers.get("Retry-After", ""), headers.get("X-Ratelimit-Reset", ""), time.time()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - now)
    except (TypeError, ValueError):
        pass
    if headers.get("X-Ratelimit-Remaining") != "0":
        return 0.0
    return max(0.0, float(reset) - now) if reset.isdecimal() else HOUR


def _room(path: Path, size: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise ValueError(f"{path.parent}: {size / 2**20:.0f} MB are still to come, and {free / 2**20:.0f} MB are free")
