"""Slow, silent and greedy clients over real sockets: dropped, with bounded memory, while the others are served."""

from __future__ import annotations

import base64
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from safelight.server import guard, sockets
from tests.server.serving import HOST, Server

pytest.importorskip("uvicorn")

import uvicorn
from websockets.sync.client import connect

from safelight.server.command import configured
from safelight.server.files import Shelves
from safelight.server.studio import Setup, Studio

LONG = 60.0
"""Seconds that nothing here should need; the server's own patience is one."""
HEAD = f"GET /queue HTTP/1.1\r\nHost: {HOST}\r\n".encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("patience"), "--workers", "0", "--patience", "1", "--connections", "600")
    yield server
    assert server.stop() == 0


def opened(server: Server, said: bytes = b"") -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    one = socket.create_connection((host, int(port)), timeout=LONG)
    one.sendall(said)
    return one


def over(one: socket.socket) -> bool:
    with suppress(TimeoutError):
        return not one.recv(2**16)
    return False


def dropped(one: socket.socket, drip: bytes = b"") -> bool:
    """Whether the server ends it, while a byte comes now and then."""
    one.settimeout(0.1)
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        try:
            if over(one):
                return True
            one.send(drip)
        except OSError:
            return True
    return False


@pytest.mark.parametrize(
    ("said", "drip"),
    [
        (b"", b""),
        (HEAD, b""),
        (HEAD + b"X-Slow: ", b"a"),
        (f"POST /prompt HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 100000\r\n\r\n".encode(), b" "),
        (HEAD + b"\r\n" + HEAD, b"X"),  # the second request of a connection
    ],
    ids=["silent", "half a head", "slow head", "slow body", "slow second head"],
)
def test_a_request_that_does_not_come_is_not_waited_for(server: Server, said: bytes, drip: bytes) -> None:
    with opened(server, said) as one:
        assert dropped(one, drip)
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}


def test_a_body_that_goes_on_is_waited_for(server: Server) -> None:
    """Three times as long as the server's patience, and twenty times as fast as the slowest that is allowed."""
    body = json.dumps({"delete": ["x" * 60_000]}).encode()
    with opened(server, f"POST /queue HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {len(body)}\r\n\r\n".encode()) as one:
        for at in range(0, len(body), 2000):
            one.sendall(body[at : at + 2000])
            time.sleep(0.1)
        assert one.recv(100).startswith(b"HTTP/1.1 200")


def connections(server: Server) -> int:
    return sum(c.status == psutil.CONN_ESTABLISHED for c in psutil.Process(server.process.pid).net_connections("tcp"))


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_answers_that_nobody_takes_are_not_kept(server: Server) -> None:
    begun = psutil.Process(server.process.pid).memory_info().rss
    until(lambda: connections(server) == 0)
    asked = f"GET /object_info HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode() * 50  # 20 MB of answers
    with opened(server, asked), opened(server, asked):
        until(lambda: connections(server) == 2)
        until(lambda: connections(server) == 0)
    assert psutil.Process(server.process.pid).memory_info().rss - begun < 100 * 2**20


def test_a_thousand_sockets_of_one_client_harm_nobody(server: Server) -> None:
    """The oldest silent ones go; others are served all the time, and the server stays small."""
    with ExitStack() as many:
        for _ in range(20):
            for _ in range(50):
                many.enter_context(opened(server))
            assert server.get("/prompt") == {"exec_info": {"queue_remaining": 0}}
            until(lambda: connections(server) <= 600)
        assert psutil.Process(server.process.pid).memory_info().rss < 300 * 2**20


def shaken(server: Server) -> socket.socket:
    """A socket that was opened as websockets are, and is then left to itself."""
    key = base64.b64encode(os.urandom(16)).decode()
    more = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    one = opened(server, f"GET /ws?clientId=mute HTTP/1.1\r\nHost: {HOST}\r\n{more}".encode())
    with ExitStack() as refused:
        refused.enter_context(one)
        assert one.recv(2**16).startswith(b"HTTP/1.1 101")
        refused.pop_all()
    return one


def test_a_websocket_that_vanished_is_found_out(server: Server) -> None:
    """It reads all that comes and answers no ping, as a machine does whose cable was pulled."""
    with shaken(server) as one:
        assert dropped(one)


def test_websockets_beyond_the_limit_are_refused_and_those_there_go_on(server: Server) -> None:
    with connect(server.url.replace("http", "ws") + "/ws?clientId=good", ping_interval=None) as good, ExitStack() as mute:
        assert json.loads(good.recv(LONG))["data"]["sid"] == "good"
        for _ in range(sockets.SOCKETS + 20):
            with suppress(AssertionError, OSError):
                mute.enter_context(shaken(server))
        server.post("/queue", {"clear": True})
        assert json.loads(good.recv(LONG))["type"] == "status" and connections(server) <= 600


def test_many_websockets_of_one_address_give_way_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that said something last, and never those of an address that has fewer."""
    monkeypatch.setattr(sockets, "SOCKETS", 4)

    def ear(at: str, name: str, address: str = HOST) -> Any:
        host, _, port = at.partition(":")
        return connect(f"ws://{at}/ws?clientId={name}", sock=socket.create_connection((host, int(port)), source_address=(address, 0)))

    with within(tmp_path) as (studio, at, _), ExitStack() as stack:
        first = stack.enter_context(ear(at, "first"))
        first.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        until(lambda: bool(studio.sockets.by_client["first"].understands))
        for name in ("second", "third", "fourth"):
            stack.enter_context(ear(at, name))
        with pytest.raises(Exception, match=r"1013|rejected|403"):
            ear(at, "fifth")
        assert list(studio.sockets.by_client) == ["first", "second", "third", "fourth"]
        stack.enter_context(ear(at, "another", "127.0.0.2"))
        until(lambda: list(studio.sockets.by_client) == ["first", "third", "fourth", "another"])
        stack.enter_context(ear(at, "again", "127.0.0.2"))
        until(lambda: list(studio.sockets.by_client) == ["first", "fourth", "another", "again"])
        with pytest.raises(Exception, match=r"1013|rejected|403"):
            ear(at, "more", "127.0.0.2")


@contextmanager
def within(home: Path, patience: float = 1.0) -> Iterator[tuple[Studio, str, Any]]:
    """The server in this process, on a real port: what it has, where it is, and a way to do something in its loop."""
    config = configured(Setup(Shelves.below(home), devices=(), patience=patience))
    server, listening = uvicorn.Server(config), socket.create_server((HOST, 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    until(lambda: server.started)
    (loop,) = {s.get_loop() for s in server.servers}
    try:
        yield config.loaded_app.state.studio, f"{HOST}:{listening.getsockname()[1]}", loop
    finally:
        server.should_exit = True
        thread.join(LONG)
        listening.close()
    assert not thread.is_alive()


def test_a_websocket_that_never_reads_is_given_up_while_the_server_tells_much(tmp_path: Path) -> None:
    with within(tmp_path) as (studio, at, loop):
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, _, port = at.partition(":")
        slow.connect((host, int(port)))
        with connect(f"ws://{at}/ws?clientId=quick", max_size=2**20) as quick, slow:
            key = base64.b64encode(os.urandom(16)).decode()
            head = f"GET /ws?clientId=slow HTTP/1.1\r\nHost: {HOST}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            slow.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
            until(lambda: len(studio.sockets.all) == 2)
            (one,) = (s for s in studio.sockets.all if s.sid == "slow")
            largest = 0
            end = time.monotonic() + LONG
            while one in studio.sockets.all:
                assert time.monotonic() < end
                loop.call_soon_threadsafe(studio.sockets.preview, "image/jpeg", bytes(2**16), {}, None)
                assert quick.recv(LONG)
                largest = max(largest, one.size)
            assert largest <= sockets.BYTES and one.gone and {s.sid for s in studio.sockets.all} == {"quick"}


def test_all_bodies_together_are_bounded(tmp_path: Path) -> None:
    """Bodies that stop just before their end: the one too many is refused, and once they are gone there is room again."""
    almost, whole = bytes(10 * 2**20 - 1000), 10 * 2**20
    head = f"POST /prompt HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {whole}\r\n\r\n".encode()
    with within(tmp_path, patience=LONG) as (_, at, _loop):
        host, _, port = at.partition(":")
        with ExitStack() as some:
            for _ in range(guard.HELD // whole):
                some.enter_context(socket.create_connection((host, int(port)), timeout=LONG)).sendall(head + almost)
            more = some.enter_context(socket.create_connection((host, int(port)), timeout=LONG))
            with suppress(OSError):
                more.sendall(head + almost)
            assert more.recv(100).startswith(b"HTTP/1.1 503")
        until(lambda: asked(at) == 400)


def asked(at: str) -> int:
    """The status of a large body that is whole."""
    try:
        urllib.request.urlopen(f"http://{at}/prompt", b" " * 2**20).close()
    except urllib.error.HTTPError as e:
        with e:
            return e.code
    return 200
