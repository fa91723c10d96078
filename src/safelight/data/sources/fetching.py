"""Bringing many pictures at once: so many together, so many from one host, patient with the busy, never more than was allowed."""
from __future__ import annotations

import hashlib
import heapq
import io
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from http.client import HTTPResponse
from urllib.error import URLError
from urllib.parse import urlsplit

from safelight.data.headers import MAGIC, check_end, read_header, sniff
from safelight.data.request import Fetch
from safelight.data.sources import AGENT, Item
from safelight.data.sources.journal import Facts
from safelight.pictures import Unreadable
from safelight.pulling import http as web
from safelight.pulling.http import BROKEN, PATIENCE, Busy, Http, Inside, Refused, UsedUp
from safelight.values import Blob

SUFFIX = {"jpeg": ".jpg", "tiff": ".tif"}
NO_ROBOTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
AHEAD = 64  # pictures that wait for each that is on its way
PIECE = 2**16
Keep = Callable[[bytes, str], Blob]


def facts(data: bytes, announced: str, keep: Keep) -> Facts:
    """What the journal needs of a picture, once it is kept. Unreadable: it is not whole, no picture, or has not the announced hash."""
    kind, _, wanted = announced.partition(":")
    if wanted and (got := _hash(kind, data)) != wanted.lower():
        raise Unreadable(f"its {kind} hash is {got}, announced was {wanted}")
    file = io.BytesIO(data)
    header = read_header(file)
    check_end(file, header)
    blob = keep(data, SUFFIX.get(header.format, f".{header.format}"))
    width, height = header.size
    return {"path": blob.path, "sha256": blob.sha256, "width": width, "height": height, "format": header.format, "bytes": len(data)}


def _hash(kind: str, data: bytes) -> str:
    if kind == "git":
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
    return hashlib.new(kind, data, usedforsecurity=False).hexdigest()


def lost(reason: str, *, final: bool) -> Facts:
    """A picture that did not come."""
    return {"lost": reason, "final": final}


class Crew:
    """Workers that bring pictures. `add` items while there is `room`; `done` waits a moment and gives what came or was given up."""

    def __init__(self, limits: Fetch, keep: Keep) -> None:
        self.limits, self.keep = limits, keep
        self._pool = ThreadPoolExecutor(limits.at_once, "collect")
        self._stop = threading.Event()
        self._waiting: dict[str, deque[tuple[Item, int]]] = {}
        self._later: list[tuple[float, int, Item, int]] = []  # (when, a number that breaks ties, item, tries)
        self._not_before: dict[str, float] = {}
        self._closed: dict[str, Facts] = {}  # hosts that ask for more patience than there is
        self._given_up: list[tuple[Item, Facts]] = []
        self._running: dict[Future[Facts], tuple[Item, int]] = {}
        self._active: Counter[str] = Counter()
        self._queued = self._count = 0

    @property
    def busy(self) -> bool:
        """Whether something is still to come."""
        return bool(self._running or self._queued or self._later or self._given_up)

    def room(self, last: Item) -> bool:
        """Whether another item may be added after this one; where one costs a quota, not before this one is on its way."""
        return self._queued + len(self._later) < (1 if last.before else self.limits.at_once * AHEAD)

    def add(self, item: Item, tries: int = 0) -> None:
        """Have it brought."""
        self._waiting.setdefault(_host(item), deque()).append((item, tries))
        self._queued += 1

    def done(self, *, patience: float = 0.1) -> Iterator[tuple[Item, Facts]]:
        """What has been settled, after so many seconds at most. UsedUp when a source's quota is."""
        self._send()
        while self._given_up:
            yield self._given_up.pop()
        finished = wait(self._running, timeout=patience, return_when=FIRST_COMPLETED).done if self._running else ()
        if not self._running and self.busy:
            time.sleep(min(0.01, patience))
        used_up: UsedUp | None = None
        for future in finished:
            item, tries = self._running.pop(future)
            self._active -= Counter([_host(item)])  # hosts at nought are forgotten
            try:
                settled = self._settle(future, item, tries)
            except UsedUp as e:
                used_up = e
                continue
            if settled is not None:
                yield item, settled
        if used_up is not None:
            raise used_up

    def close(self) -> None:
        """Let go of everything; what is on its way is dropped."""
        self._stop.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _send(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            *_, item, tries = heapq.heappop(self._later)
            self.add(item, tries)
        for host, items in list(self._waiting.items()):
            while items and host in self._closed:
                self._given_up.append((items.popleft()[0], self._closed[host]))
                self._queued -= 1
            while items and len(self._running) < self.limits.at_once and self._free(host, now):
                item, tries = items.popleft()
                self._queued -= 1
                self._active[host] += 1
                self._running[self._pool.submit(self._bring, item)] = (item, tries)
            if not items:
                del self._waiting[host]

    def _free(self, host: str, now: float) -> bool:
        return self._active[host] < self.limits.per_host and self._not_before.get(host, 0.0) <= now

    def _settle(self, future: Future[Facts], item: Item, tries: int) -> Facts | None:
        """The outcome, or None when it is tried again later."""
        try:
            return future.result()
        except Unreadable as e:
            return lost(f"unreadable: {e}", final=True)
        except ValueError as e:  # refused, or an address that cannot be asked
            return lost(f"not fetched: {e}" + ("; allow_private lets it pass" if isinstance(e, Inside) else ""), final=True)
        except BROKEN as e:
            after = e.after if isinstance(e, Busy) else 0.0
            if after:
                self._not_before[_host(item)] = time.monotonic() + after
            asks = f"; it asks to wait {after:.0f} seconds" if after else ""
            why = str(e.reason if isinstance(e, URLError) else e) or type(e).__name__
            gone = lost(f"not fetched yet: {why}{asks}", final=False)
            if after > PATIENCE:
                self._closed[_host(item)] = gone
            if tries + 1 >= self.limits.tries or after > PATIENCE:
                return gone
        self._count += 1
        heapq.heappush(self._later, (time.monotonic() + web.PAUSE * 2**tries, self._count, item, tries + 1))
        return None

    # In the workers.

    def _bring(self, item: Item) -> Facts:
        if item.before is not None:
            item.before()
        http = item.http or self._http(item.url)  # not kept: there may be as many hosts as pictures
        with closing(http.open(item.url)) as answer:
            if item.http is None and self.limits.heed_robots:
                _heed(answer)
            data = self._read(answer, item.url)
        return facts(data, item.hash, self.keep)

    def _http(self, url: str) -> Http:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise Refused(f"{url[:200]!r} is no http or https address")
        timeout = min(self.limits.seconds, web.TIMEOUT)
        return Http(f"{parts.scheme}://{parts.netloc}", AGENT, private=self.limits.allow_private, timeout=timeout)

    def _read(self, answer: HTTPResponse, url: str) -> bytes:
        """All of it. Refused when it is too large or no picture, as soon as that shows; TimeoutError when it takes too long."""
        told, until = answer.headers.get("Content-Length", ""), time.monotonic() + self.limits.seconds
        if told.isdecimal() and (why := self.limits.refused(int(told))):
            raise Refused(f"{url} has {why}")
        data = bytearray()
        while piece := answer.read1(PIECE):
            looked = len(data) >= MAGIC
            data += piece
            if not looked and len(data) >= MAGIC and not sniff(bytes(data[:MAGIC])):
                raise Refused(f"{url} is no picture; the server calls it {answer.headers.get_content_type()}")
            if why := self.limits.refused(len(data)):
                raise Refused(f"{url} has at least {why}")
            if time.monotonic() > until or self._stop.is_set():
                raise TimeoutError(f"not whole after {self.limits.seconds:g} seconds")
        if told.isdecimal() and len(data) < int(told):
            raise ConnectionError(f"the connection ended after {len(data)} of {told} bytes")
        return bytes(data)


def _host(item: Item) -> str:
    try:
        return urlsplit(item.url).netloc
    except ValueError:  # no address at all; the worker says so
        return ""


def _heed(answer: HTTPResponse) -> None:
    """Refused when the server marks the picture as not for this: X-Robots-Tag, for everybody or with an agent's name before a colon."""
    for line in answer.headers.get_all("X-Robots-Tag", ()):
        said = {word.strip().lower() for word in line.rpartition(":")[2].split(",")} & NO_ROBOTS
        if said:
            raise Refused(f"its server marks it as {', '.join(sorted(said))}")
