"""Which addresses are asked, and how one is connected to: the very address that was looked at, and no private one through a back door."""
from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from http.client import HTTPMessage
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from safelight.pulling.http import Http

STAND_INS = ipaddress.ip_network("198.18.0.0/15")  # what some proxies give as the address of every host; no machine has one
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052
CLOSED = tuple(map(ipaddress.ip_network, ("::/96", "64:ff9b:1::/48")))  # IPv4 written as IPv6, and translation inside a network (RFC 8215)


class Refused(ValueError):
    """An answer that asking again does not change: `status` is HTTP's, 0 for a refusal of ours."""

    def __init__(self, text: str, status: int = 0) -> None:
        super().__init__(text)
        self.status = status


class Inside(Refused):
    """An address inside a network, which must not be asked."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects that `Http.check` allows, and leaves credentials behind on the way to another host."""

    def __init__(self, http: Http) -> None:
        self.http = http

    def redirect_request(  # noqa: PLR0917, as the standard library calls it
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str,
    ) -> urllib.request.Request | None:
        """The next request, or Refused."""
        try:
            self.http.check(newurl, req.full_url)
        except Refused:
            fp.close()
            raise
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            allowed = {k.lower() for k in self.http.own(newurl)} | {"range", "accept-encoding"}
            following.headers = {k: v for k, v in following.headers.items() if k.lower() in allowed}
        return following


class _Straight(http.client.HTTPConnection):
    """Connects to the address that was looked at: a name that means another address a moment later leads nowhere."""

    trusts: Callable[[str], bool]

    def connect(self) -> None:
        """To the first address that answers. Refused when one of them is not public and must be."""
        found = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        if not self.trusts(self.host) and not all(_global(str(address[0])) for *_, address in found):
            raise Inside(f"{self.host} is an address inside a network; it is not asked")
        trouble = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in found:
            self.sock = socket.socket(family, kind, protocol)
            try:
                self.sock.settimeout(self.timeout)
                return self.sock.connect(address)
            except OSError as e:
                self.sock.close()
                trouble = e
        raise trouble

    def getresponse(self) -> http.client.HTTPResponse:
        """The answer, once its head is whole. That must be within the time limit, however steadily it drips in."""
        late = threading.Event()
        watch = threading.Timer(self.timeout or 0.0, _hang_up, (self.sock, late))
        watch.start()
        try:
            answer = super().getresponse()
        finally:
            watch.cancel()
        if late.is_set():  # what is cut off there would pass for a whole head
            raise TimeoutError(f"the answer of {self.host} does not begin in time")
        return answer


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):  # it was let go of meanwhile
        sock.shutdown(socket.SHUT_RDWR)


class _StraightTLS(http.client.HTTPSConnection, _Straight):
    """The same, and then TLS to the host's name."""


def _straight(kind: type[_Straight], http: Http, host: str, **options: Any) -> _Straight:
    made = kind(host, **options)
    made.trusts = http.trusts
    return made


class Opening(urllib.request.HTTPSHandler, urllib.request.HTTPHandler):
    """http and https, straight unless a proxy is set."""

    def __init__(self, http: Http) -> None:
        super().__init__(context=_tls())
        self.http = http

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As the standard library calls it."""
        return super().http_open(req) if _proxied(req) else self.do_open(partial(_straight, _Straight, self.http), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """As the standard library calls it."""
        if _proxied(req):
            return super().https_open(req)
        return self.do_open(partial(_straight, _StraightTLS, self.http, context=_tls()), req)


@cache
def _tls() -> ssl.SSLContext:
    """One for all: reading the system's certificates takes longer than a small picture."""
    return ssl.create_default_context()


def _proxied(req: urllib.request.Request) -> bool:
    parts = urlsplit(req.full_url)
    return parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(parts.hostname or "")


def public(host: str) -> bool:
    """Whether all addresses of a host are public ones. A host that has none here counts as public: a proxy may know it."""
    try:
        return all(_global(str(info[4][0])) for info in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
    except OSError:
        return True


def _global(text: str) -> bool:
    """Whether an address is a public one; of one that carries an IPv4 address inside it, whether that is."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if (carried := address.sixtofour) or address in NAT64:
            address = carried or ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            return address.is_global and not (address.is_multicast or address.is_site_local or any(address in net for net in CLOSED))
    return address in STAND_INS or (address.is_global and not address.is_multicast)
