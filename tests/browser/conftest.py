"""One server with a worker, and one browser with one page, for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import PROGRAM, Page, chromium, missing
from tests.server.serving import Server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if PROGRAM is None:
        missing("there is no Chromium on this machine")
    home = tmp_path_factory.mktemp("server")
    (home / "examples").symlink_to(EXAMPLES)
    server = Server(home, "--data", str(EXAMPLES))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def browser(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(Path(tmp_path_factory.mktemp("browser"))) as page:
        yield page


@pytest.fixture
def page(browser: Page, server: Server) -> Iterator[Page]:
    """The page; whatever it did, it asked nobody but the server."""
    browser.errors.clear()
    yield browser
    assert browser.asked <= {server.url.partition("//")[2]}
