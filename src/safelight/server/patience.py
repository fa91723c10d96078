"""Connections that do not go on are given up, so that many slow or silent ones cost the others nothing."""
from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

LEAST = 1000
"""Bytes a second of a body that is under way."""


def patient(seconds: float, most: int) -> type[asyncio.Protocol]:
    """HTTP for one server. A request that is not whole after `seconds` and does not go on, and an answer that nobody takes for so long, are
    dropped; of more than `most` connections the oldest that has not asked for anything yet."""
    asking: dict[H11Protocol, None] = {}

    class Patient(H11Protocol):
        """One connection. `before` is how far it was at the last look."""

        got, taken = 0, 0
        before: tuple[object, ...] = (None, True, 0, 0)

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            asking[self] = None
            if len(self.connections) > most:
                oldest = next(iter(asking))
                del asking[oldest]  # it is gone only in the loop's next turn, and more may come in this one
                oldest.transport.abort()
            self.loop.call_later(seconds, self.look)

        def connection_lost(self, exc: Exception | None) -> None:
            asking.pop(self, None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            self.got += len(data)
            super().data_received(data)
            if self not in self.connections or self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                asking.pop(self, None)  # it asks for a socket, or its request is whole

        def resume_writing(self) -> None:
            self.taken += 1
            super().resume_writing()

        def look(self) -> None:
            """Whether anything happened since the last time."""
            if self not in self.connections or self.transport.get_protocol() is not self:
                return  # gone, or a socket now
            left = self.transport.get_write_buffer_size()
            sends = self.conn.their_state in (h11.IDLE, h11.SEND_BODY) and self.timeout_keep_alive_task is None
            now = (self.cycle, sends, self.taken, left)
            if (sends and now[:2] == self.before[:2] and self.got < seconds * LEAST) or (left and now == self.before):
                self.transport.abort()
            self.got, self.before = 0, now
            self.loop.call_later(seconds, self.look)

    return Patient
