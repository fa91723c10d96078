"""Who comes in, and what browsers are told."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from starlette.websockets import WebSocketDisconnect

from safelight.server.guard import Rules
from tests.server.serving import still

TOKEN = "let me in, please"


def test_beyond_this_machine_only_with_a_token() -> None:
    with pytest.raises(ValueError, match="give --token"):
        Rules("0.0.0.0")
    for host in ("127.0.0.1", "::1", "localhost"):
        Rules(host)
    Rules("0.0.0.0", TOKEN)


@pytest.mark.parametrize(
    ("rules", "host", "allowed"),
    [
        (Rules(), "127.0.0.1:8188", True),
        (Rules(), "localhost", True),
        (Rules(), "[::1]:8188", True),
        (Rules(), "LOCALHOST:1", True),
        (Rules(), "evil.example", False),
        (Rules(), "127.0.0.1.evil.example", False),
        (Rules(), "192.168.1.5", False),
        (Rules(), "", False),
        (Rules(names=("studio.lan",)), "studio.lan:8188", True),
        (Rules("0.0.0.0", TOKEN), "192.168.1.5:8188", True),
        (Rules("0.0.0.0", TOKEN), "evil.example", False),
        (Rules(), "localhost@evil.example", False),
        (Rules(), "[::1].evil", False),
    ],
)
def test_hosts(rules: Rules, host: str, allowed: bool) -> None:
    assert rules.host_allowed(host) is allowed


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"Origin": "http://127.0.0.1"}, True),
        ({"Origin": "http://127.0.0.1:8080"}, False),
        ({"Origin": "null"}, False),
        ({"Origin": "https://evil.example"}, False),
        ({"Origin": ""}, False),
        ({"Sec-Fetch-Site": "cross-site"}, False),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, True),
        ({"Sec-Fetch-Site": "same-origin"}, True),
    ],
)
def test_pages_of_other_origins_get_nothing_by_http_and_by_socket(tmp_path: Path, headers: dict[str, str], allowed: bool) -> None:
    with still(tmp_path) as client:
        for path in ("/queue", "/api/queue", "/v1/models", "/nowhere"):
            assert (client.get(path, headers=headers).status_code == 403) is not allowed
        assert (client.post("/prompt", json={}, headers=headers).status_code == 403) is not allowed
        if allowed:
            with client.websocket_connect("ws://127.0.0.1/ws", headers=headers) as ws:
                assert ws.receive_json()["type"] == "status"
        else:
            with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1/ws", headers=headers):
                pass


def test_a_foreign_host_gets_nothing(tmp_path: Path) -> None:
    with still(tmp_path) as client:
        evil = {"Host": "evil.example", "Origin": "http://evil.example"}
        assert client.get("/queue", headers=evil).status_code == 403
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1/ws", headers=evil):
            pass


def test_the_token_is_asked_for_everywhere_and_taken_in_four_ways(tmp_path: Path) -> None:
    with still(tmp_path, rules=Rules(token=TOKEN)) as client:
        client.headers.pop("Authorization")
        paths = [
            "/",
            "/prompt",
            "/api/queue",
            "/v1/models",
            "/sdapi/v1/options",
            "/view?filename=x",
            "/nowhere",
            "/openapi.json",
            "/internal/files/input",
        ]
        assert {p: client.get(p).status_code for p in paths} == dict.fromkeys(paths, 401)
        for wrong in ("", "x", TOKEN + "x", TOKEN[:-1], "é"):
            assert client.get("/queue", headers={"Authorization": f"Bearer {wrong}".encode()}).status_code == 401
        basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
        for header in (f"Bearer {TOKEN}", f"Basic {basic}"):
            assert client.get("/queue", headers={"Authorization": header}).status_code == 200
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("ws://127.0.0.1/ws"):
            pass
        with client.websocket_connect(f"ws://127.0.0.1/ws?token={TOKEN}") as ws:
            assert ws.receive_json()["type"] == "status"
        answer = client.get("http://127.0.0.1//evil.example/queue", params={"token": TOKEN, "max": "1"}, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/evil.example/queue?max=1"
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert client.get("/queue").status_code == 200  # by the cookie now


def test_every_answer_keeps_browsers_from_guessing(tmp_path: Path) -> None:
    with still(tmp_path) as client:
        for path in ("/", "/queue", "/nowhere", "/object_info/KSampler", "/v1/images/generations"):
            told = client.get(path).headers
            assert told["x-content-type-options"] == "nosniff" and "default-src 'none'" in told["content-security-policy"]
            assert told["x-frame-options"] == "DENY"


def test_bodies_are_bounded_whether_they_tell_their_length_or_not(tmp_path: Path) -> None:
    def drops(n: int) -> Any:
        yield b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        for _ in range(n):
            yield b" " * 2**20

    with still(tmp_path) as client:
        assert client.post("/prompt", content=b"x" * (11 * 2**20)).status_code == 413
        assert client.post("/prompt", content=drops(11)).status_code == 413
        assert (
            client.post("/upload/image", content=drops(60), headers={"Content-Type": "multipart/form-data; boundary=x"}).status_code
            == 413
        )
        assert client.get("/prompt").json() == {"exec_info": {"queue_remaining": 0}}
