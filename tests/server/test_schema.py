"""The server keeps to its own /openapi.json: requests made from it, sound and unsound, and every answer held against it."""

from __future__ import annotations

import threading
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from safelight.server.described import ROUTES
from tests.server.serving import Server, drawing, still

pytest.importorskip("schemathesis")

import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]
FOUND = {
    "POST /prompt": {"prompt": drawing(), "number": 3, "extra_data": None},
    "POST /workflow/convert": {"nodes": [], "links": []},
    "POST /queue": {"move": {"id": "nobody", "before": "no one"}},
    "POST /interrupt": {"prompt_id": "x"},
    "POST /settings/{name}": None,
    "POST /v1/images/generations": {"prompt": "x", "size": "64x64", "seed": 2**63},
    "POST /sdapi/v1/txt2img": {"prompt": "x", "seed": -1, "width": 64, "height": 64},
}
"""Bodies that get further than drawn ones do, or that something was found with."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server without workers whose queue is emptied all the time, so that those who wait for a picture are told that there is none."""
    server, over = Server(tmp_path_factory.mktemp("schema"), "--workers", "0"), threading.Event()

    def empty() -> None:
        while not over.wait(0.1):
            with suppress(urllib.error.URLError):
                server.post("/queue", {"clear": True, "pause": False})

    emptying = threading.Thread(target=empty)
    emptying.start()
    yield server
    over.set()
    emptying.join()
    assert server.stop() == 0


def holding(statuses: set[int]) -> Callable[[Any], None]:
    def hold(case: Any) -> None:
        answer = case.call(timeout=30)
        statuses.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    return hold


def ask(server: Server, sound: int, unsound: int) -> dict[str, set[int]]:
    """Every route so often with sound requests and, where there is something to do wrong, with unsound ones; the statuses that came."""
    seen: dict[str, set[int]] = {}
    for found in schemathesis.openapi.from_url(f"{server.url}/openapi.json").get_all_operations():
        operation = found.ok()
        name = f"{operation.method.upper()} {operation.path}"
        hold = holding(seen.setdefault(name, set()))
        if name in FOUND:
            hold(operation.Case(body=FOUND[name], media_type="application/json", path_parameters={"name": "x"} if "{" in name else {}))
        wrong = unsound if any(part.strip() not in ("", "raw") for part in ROUTES[name].split("|")[:2]) else 0
        for mode, examples in ((GenerationMode.POSITIVE, sound), (GenerationMode.NEGATIVE, wrong)):
            if not examples:
                continue
            sure = settings(
                max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            nothing = suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext()
            with nothing:  # where what is asked for is a free text, hardly anything is wrong
                sure(given(case=operation.as_strategy(generation_mode=mode))(hold))()
    return seen


def test_every_route_is_described_and_nothing_else_is(tmp_path: Path) -> None:
    with still(tmp_path) as client:
        document = client.get("/openapi.json").json()
    routes = {f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods}
    assert routes == set(ROUTES)
    for path, methods in document["paths"].items():
        for method, told in methods.items():
            assert "422" not in told["responses"] and told["summary"], f"{method} {path}"
            assert {f"{{{p['name']}}}" for p in told["parameters"] if p["in"] == "path"} == {p for p in path.split("/") if "{" in p}


def test_the_server_keeps_to_its_schema(server: Server) -> None:
    seen = ask(server, 1, 0)
    assert set(seen) == set(ROUTES) and not any(status >= 500 for statuses in seen.values() for status in statuses)
    assert 200 in seen["POST /prompt"] and 200 in seen["POST /workflow/convert"]


@pytest.mark.slow
def test_the_server_keeps_to_its_schema_in_many_cases(server: Server) -> None:
    ask(server, 100, 100)


def test_what_was_found_before(tmp_path: Path) -> None:
    """A move in an empty queue, names that are folders, names of more bytes than a path has: refused, and said why."""
    with still(tmp_path) as client:
        assert client.post("/queue", json={"move": {"id": "a", "before": "b"}}).status_code == 400
        assert client.post("/userdata/a%2Fb", content=b"1").status_code == 200
        for method, path, status in (
            ("POST", "/userdata/a", 409), ("POST", "/userdata/a%2Fb%2Fc", 409), ("DELETE", "/userdata/a", 409),
            ("POST", "/userdata/" + "x%2F" * 3000 + "y", 403), ("GET", "/userdata/" + "x%2F" * 3000 + "y", 403),
            ("POST", "/userdata/a/move/c", 409), ("POST", "/userdata/a%2Fb/move/a", 409), ("POST", "/userdata/none/move/c", 404),
        ):
            answer = client.request(method, path, content=b"1" if method == "POST" else None)
            assert answer.status_code == status and answer.json()["error"], (method, path[:40], answer.status_code)
        assert client.get("/userdata/a%2Fb").content == b"1"
