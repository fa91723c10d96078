"""Who may come in: the first thing that every request and every socket meets.

A browser page of another site can send requests to this machine, and a name that is rebound to 127.0.0.1 can read the answers. So the Host
must be one of ours, an Origin must be that Host, and beyond this machine nobody comes in without the token.
"""
from __future__ import annotations

import hmac
import ipaddress
from base64 import b64decode
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlencode

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "safelight"
HELD = 256 * 2**20
"""Bytes of all bodies that are read at the same time."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
FALLBACK = {
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'; sandbox",
    "x-content-type-options": "nosniff", "x-frame-options": "DENY", "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
}
"""Headers of every answer that does not say otherwise. A page sets its own policy."""


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    with suppress(ValueError):
        return ipaddress.ip_address(host)
    return None


def is_loopback(host: str) -> bool:
    """Whether the name or address is this machine's own."""
    return host == "localhost" or ((at := _address(host)) is not None and at.is_loopback)


@dataclass(frozen=True)
class Rules:
    """Where the server is bound, its token, and further names it may be called by."""

    host: str = "127.0.0.1"
    token: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not is_loopback(self.host) and not self.token:
            raise ValueError(f"serve: host {self.host} can be reached by others, and there is no token; give --token, or stay on 127.0.0.1")

    def host_allowed(self, host: str) -> bool:
        """Whether a request may name this host. An address cannot be rebound, so beyond this machine any is fine."""
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
        name = name.strip("[]").lower()
        if name in (*LOOPBACK, *self.names):
            return True
        return not is_loopback(self.host) and (name == self.host or _address(name) is not None)

    def origin_allowed(self, headers: Mapping[str, str], scheme: str) -> bool:
        """Whether the page that asks is ours, or no page asks."""
        origin = headers.get("origin")
        if origin is not None:
            schemes = ("https",) if scheme in ("https", "wss") else ("http", "https")  # a proxy may end the encryption
            return origin.lower() in [f"{s}://{headers.get('host', '').lower()}" for s in schemes]
        foreign = headers.get("sec-fetch-site") == "cross-site"
        return not foreign or headers.get("sec-fetch-mode") == "navigate"

    def knows(self, headers: Mapping[str, str], query: Mapping[str, Iterable[str]]) -> bool:
        """Whether the token is there: as bearer, as the password of basic authentication, in the cookie, or as `token` in the query."""
        found = [*query.get("token", ()), _cookie(headers.get("cookie", ""))]
        kind, _, given = headers.get("authorization", "").partition(" ")
        found += [given.strip()] if kind.lower() == "bearer" else [_password(given)] if kind.lower() == "basic" else []
        return max((hmac.compare_digest(f.encode(), self.token.encode()) for f in found), default=False)


def _cookie(text: str) -> str:
    with suppress(CookieError):
        return found.value if (found := SimpleCookie(text).get(COOKIE)) else ""
    return ""


def _password(given: str) -> str:
    with suppress(ValueError):
        return b64decode(given, validate=True).decode("utf-8").partition(":")[2]
    return ""


class Guard:
    """Refuses what the rules do not allow, bounds bodies, and adds the headers that keep browsers from guessing."""

    def __init__(self, app: ASGIApp, rules: Rules, body: int, uploads: int) -> None:
        self.app, self.rules, self.body, self.uploads = app, rules, body, uploads
        self.held = 0
        """Bytes of bodies that are not answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or socket."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        query = parse_qs(scope.get("query_string", b"").decode("latin-1"))
        status, why = self._verdict(scope, headers, query)
        if status:
            await _refuse(scope, receive, send, status, why)
        elif scope["type"] == "websocket":
            await self.app(scope, receive, send)
        elif self.rules.token and scope["method"] == "GET" and "token" in query:
            await self._welcome(scope, query)(scope, receive, send)
        else:
            limit = self.uploads if headers.get("content-type", "").startswith("multipart/") else self.body
            if scope["path"].rpartition("/")[2] in ("img2img", "png-info"):
                limit = self.uploads  # pictures in base64
            await self._taken(scope, receive, send, limit)

    async def _taken(self, scope: Scope, receive: Receive, send: Send, limit: int) -> None:
        """Let the application read the body, as far as one body and all together may go."""
        seen = 0

        async def bounded() -> Message:
            nonlocal seen
            message = await receive()
            more = len(message.get("body", b""))
            seen, self.held = seen + more, self.held + more
            if seen > limit:
                raise TooLarge(f"the body is too large; at most {limit} bytes")
            if self.held > HELD:
                raise HTTPException(503, "too many bodies are on their way; try again in a moment")
            return message

        try:
            await self.app(scope, bounded, _headed(send))
        finally:
            self.held -= seen

    def _verdict(self, scope: Scope, headers: Headers, query: Mapping[str, list[str]]) -> tuple[int, str]:
        rules = self.rules
        if len(headers.getlist("host")) != 1 or not rules.host_allowed(headers["host"]):
            return 403, "this Host is not one of the server's names; --allow-host adds one"
        if len(headers.getlist("origin")) > 1 or not rules.origin_allowed(headers, scope["scheme"]):
            return 403, "a page of another origin asks"
        if rules.token and not rules.knows(headers, query):
            return 401, "the token is missing or wrong"
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self.uploads:
            return 413, f"the body is too large; at most {self.uploads} bytes"
        return 0, ""

    def _welcome(self, scope: Scope, query: Mapping[str, list[str]]) -> RedirectResponse:
        """A link with the token in it: keep it in a cookie, take it out of the address."""
        rest = urlencode({k: v for k, v in query.items() if k != "token"}, doseq=True)
        answer = RedirectResponse("/" + scope["path"].lstrip("/\\") + (f"?{rest}" if rest else ""), 303)
        secure = scope["scheme"] == "https"
        answer.set_cookie(COOKIE, self.rules.token, httponly=True, samesite="strict", secure=secure, max_age=30 * 86400)
        return answer


class TooLarge(ValueError):
    """A body with more bytes than allowed."""


def _headed(send: Send) -> Send:
    async def headed(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            more = [(k.encode(), v.encode()) for k, v in FALLBACK.items() if k.encode() not in there]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return headed


async def _refuse(scope: Scope, receive: Receive, send: Send, status: int, why: str) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4401 if status == 401 else 4403, "reason": why})
        return
    more: dict[str, Any] = {"headers": {"WWW-Authenticate": 'Bearer realm="safelight"'}} if status == 401 else {}
    await JSONResponse({"error": why}, status, **more)(scope, receive, _headed(send))
