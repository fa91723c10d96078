"""The sockets that clients listen on: who is there, what waits to be sent to each, and when one is given up.

What waits is bounded. Pictures go first when there is too much; a socket that takes nothing for a while is closed, not waited for.
"""
from __future__ import annotations

import asyncio
import json
import logging
import struct
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

log = logging.getLogger(__name__)

WAITING = 512
"""Messages that may wait for one socket."""
BYTES = 4 * 2**20
"""Bytes that may wait for one socket."""
PATIENCE = 5.0
"""Seconds in which a socket must take a message."""
SOCKETS = 512
UPLOADS = 50 * 2**20
"""Bytes of an upload."""

FEATURES: Mapping[str, Any] = {
    "supports_preview_metadata": True, "max_upload_size": UPLOADS, "supports_progress_text_metadata": True, "assets": False,
    "node_replacements": False, "extension": {"manager": {"supports_v4": False}},
}
"""What this server says it can do."""


class Socket:
    """One client's socket: its name, what it says it understands, and what waits to be sent."""

    def __init__(self, ws: WebSocket, sid: str) -> None:
        self.ws, self.sid, self.address = ws, sid, ws.client.host if ws and ws.client else ""
        self.understands: Mapping[str, Any] = {}
        self.waiting: deque[str | bytes] = deque()
        self.size = 0
        self.more = asyncio.Event()
        self.gone = False
        self.status: str | bytes = ""

    def post(self, message: str | bytes, *, status: bool = False) -> None:
        """Let it be sent when the socket takes it. Too much waiting: the pictures go; still too much: the socket. Of several `status` one
        after the other the last counts."""
        if self.gone:
            return
        if status and self.waiting and self.waiting[-1] is self.status:
            self.size -= len(self.waiting.pop())
        self.status = message if status else self.status
        if len(self.waiting) >= WAITING or self.size + len(message) > BYTES:
            self.waiting = deque(m for m in self.waiting if isinstance(m, str))
            self.size = sum(map(len, self.waiting))
            if isinstance(message, bytes):
                return
            self.gone = len(self.waiting) >= WAITING or self.size + len(message) > BYTES
        self.waiting.append(message)
        self.size += len(message)
        self.more.set()

    async def send(self) -> None:
        """Send what waits, for as long as the socket takes it."""
        while not self.gone:
            await self.more.wait()
            self.more.clear()
            while self.waiting and not self.gone:
                message = self.waiting.popleft()
                self.size -= len(message)
                sent = self.ws.send_text(message) if isinstance(message, str) else self.ws.send_bytes(message)
                async with asyncio.timeout(PATIENCE):
                    await sent


class Sockets:
    """All sockets by client id. `greet` makes the first messages of a client."""

    def __init__(self, greet: Callable[[str], list[tuple[str, dict[str, Any]]]]) -> None:
        self.greet = greet
        self.all: dict[Socket, None] = {}
        self.by_client: dict[str, Socket] = {}

    async def serve(self, ws: WebSocket) -> None:
        """One socket from its start to its end. A second one of the same client takes its place; the first stays open and silent. Of too
        many the oldest mute one of the address that has most gives way, if that has more than the newcomer's."""
        if len(self.all) >= SOCKETS:
            has = Counter(one.address for one in self.all)
            (most, many), mine = has.most_common(1)[0], ws.client.host if ws.client else ""
            if has[mine] + 1 >= many:
                await ws.close(1013, "too many sockets")
                return
            self._forget(oldest := min((one for one in self.all if one.address == most), key=lambda one: bool(one.understands)))
            oldest.more.set()
        await ws.accept()
        one = Socket(ws, ws.query_params.get("clientId", "")[:200] or uuid.uuid4().hex)
        self.all[one] = None
        self.by_client[one.sid] = one
        for kind, data in self.greet(one.sid):
            one.post(text(kind, data))
        tasks = [asyncio.create_task(one.send()), asyncio.create_task(self._listen(one))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if (error := task.exception()) is not None:
                    log.info("socket %s: %s", one.sid, type(error).__name__)
        finally:
            self._forget(one)
            for task in tasks:
                task.cancel()
            await self._close(ws)

    async def _listen(self, one: Socket) -> None:
        """What clients say: only what they understand, as their first message."""
        first = True
        with suppress(WebSocketDisconnect):
            while True:
                said = await one.ws.receive()
                if said["type"] == "websocket.disconnect":
                    return
                if first and len(told := said.get("text") or "") < 10_000:
                    self._understood(one, told)
                first = False

    def _understood(self, one: Socket, told: str) -> None:
        try:
            data = json.loads(told)
        except ValueError:
            return
        if isinstance(data, dict) and data.get("type") == "feature_flags" and isinstance(data.get("data"), dict):
            one.understands = data["data"]
            one.post(text("feature_flags", dict(FEATURES)))

    def _forget(self, one: Socket) -> None:
        one.gone = True
        self.all.pop(one, None)
        if self.by_client.get(one.sid) is one:  # a newer one keeps its place
            del self.by_client[one.sid]

    async def _close(self, ws: WebSocket) -> None:
        if ws.application_state is WebSocketState.CONNECTED and ws.client_state is WebSocketState.CONNECTED:
            with suppress(RuntimeError, OSError, TimeoutError, WebSocketDisconnect):  # a dead one cannot be told
                await asyncio.wait_for(ws.close(1008), PATIENCE)

    def post(self, kind: str, data: Mapping[str, Any], client: str | None = None) -> None:
        """To one client, or to everybody when `client` is None. Who is not there misses it."""
        to = self.all if client is None else [s for s in (self.by_client.get(client),) if s]
        message = text(kind, data) if to else ""
        for one in to:
            one.post(message, status=kind == "status")

    def preview(self, media: str, picture: bytes, told: Mapping[str, Any], client: str | None) -> None:
        """A picture on its way, with what is told of it for those who understand that."""
        to = self.all if client is None else [s for s in (self.by_client.get(client),) if s]
        about = json.dumps({**told, "image_type": media}).encode()
        for one in to:
            if one.understands.get("supports_preview_metadata"):
                one.post(struct.pack(">II", 4, len(about)) + about + picture)
            else:
                one.post(struct.pack(">II", 1, 1 if media == "image/jpeg" else 2) + picture)


def text(kind: str, data: Mapping[str, Any]) -> str:
    """A message as it goes over the wire."""
    return json.dumps({"type": kind, "data": data}, ensure_ascii=False)


def now() -> int:
    """Milliseconds since 1970, as messages have them."""
    return int(time.time() * 1000)
