"""Chromium without a window, over its DevTools protocol: what is needed to use a page as a user does, and to hear what it says."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import pytest

connect = pytest.importorskip("websockets.sync.client").connect

PROGRAM = next((found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))), None)
QUIET = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--mute-audio",
    "--disable-background-networking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--lang=en-US",
    "--remote-debugging-port=0",
)


def missing(what: str) -> NoReturn:
    """Skips for want of something; with SAFELIGHT_BROWSER=required, as in continuous integration, that is a failure."""
    if os.environ.get("SAFELIGHT_BROWSER") == "required":
        pytest.fail(f"{what}, and SAFELIGHT_BROWSER=required; `make browser` installs it", pytrace=False)
    pytest.skip(what)


class Page:
    """One page. `errors`: what its console called an error. `asked`: the hosts that it asked for something. `open_requests`: what it asked
    for and has not got yet."""

    def __init__(self, socket: Any, browser: str) -> None:
        self.socket, self.browser = socket, browser
        self.number = 0
        self.errors: list[str] = []
        self.asked: set[str] = set()
        self.open_requests: dict[str, str] = {}
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """One command; what happens meanwhile is heard."""
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": given}))
        while True:
            told = json.loads(self.socket.recv(timeout=120))
            if told.get("id") == self.number:
                assert "error" not in told, (method, told["error"])
                return dict(told["result"])
            self._hear(told.get("method", ""), told.get("params", {}))

    def _hear(self, event: str, told: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["exceptionDetails"])[:800])
        elif event == "Runtime.consoleAPICalled" and told["type"] in ("error", "assert"):
            self.errors.append(" ".join(str(a.get("value") or a.get("description")) for a in told["args"])[:800])
        elif event == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(f"{told['entry']['text']} {told['entry'].get('url', '')}"[:800])
        elif event == "Network.requestWillBeSent" and (address := urlsplit(told["request"]["url"])).scheme.startswith(("http", "ws")):
            self.asked.add(address.netloc)
            self.open_requests[told["requestId"]] = told["request"]["url"]
        elif event in ("Network.loadingFinished", "Network.loadingFailed"):
            self.open_requests.pop(told["requestId"], None)

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        told = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True)
        assert "exceptionDetails" not in told, (script, told["exceptionDetails"])
        return told["result"].get("value")

    def until(self, script: str, seconds: float = 180) -> Any:
        """The value of an expression, once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if value := self.run(script):
                return value
            time.sleep(0.05)
        now = self.run("document.body.innerText.slice(0, 400) + [...document.images].map((i) => `\\n${i.src} ${i.complete}`).join('')")
        raise AssertionError(f"never true: {script}; the page said {self.errors}, awaits {[*self.open_requests.values()]}, shows {now}")

    def open(self, url: str, *, width: int = 1440, height: int = 900, scheme: str = "dark") -> None:
        """Go there in a window of this size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for there in ("about:blank", url):  # the page that was here is not taken for the one that comes
            self.call("Page.navigate", url=there)
            self.until(f"location.href.startsWith({json.dumps(there)}) && document.readyState === 'complete'")

    @contextmanager
    def tab(self, url: str) -> Iterator[Page]:
        """Another page of the same browser, in front of this one for as long as it is there."""
        asked = urllib.request.Request(f"{self.browser}/json/new?{url}", method="PUT")
        with urllib.request.urlopen(asked, timeout=30) as answer:
            told = json.load(answer)
        with connect(told["webSocketDebuggerUrl"], max_size=None, open_timeout=30, ping_interval=None) as socket:
            other = Page(socket, self.browser)
            other.until(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")
            yield other
            other.call("Page.close")

    def type(self, selector: str, text: str) -> None:
        """Into a field, as from a keyboard; what was there goes."""
        self.run(f"(() => {{ const at = document.querySelector({json.dumps(selector)}); at.focus(); at.select(); }})()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, *, control: bool = False) -> None:
        """A key, down and up."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=2 if control else 0)

    def click(self, selector: str) -> None:
        """The middle of an element, with the mouse."""
        x, y = self.run(f"""(() => {{
          const at = document.querySelector({json.dumps(selector)});
          at.scrollIntoView({{ block: "center", behavior: "instant" }});
          const box = at.getBoundingClientRect();
          return [box.x + box.width / 2, box.y + box.height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """What it looks like now, as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def chromium(home: Path) -> Iterator[Page]:
    """A browser with one page; its profile is below `home`. Skips where there is no Chromium."""
    if PROGRAM is None:
        missing("there is no Chromium on this machine")
    profile = home / "profile"
    process = subprocess.Popen(
        [PROGRAM, *QUIET, f"--user-data-dir={profile}", "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        browser, address = _address(profile, process)
        with connect(address, max_size=None, open_timeout=30, ping_interval=None) as socket:
            yield Page(socket, browser)
    finally:
        process.terminate()
        process.wait(30)


def _address(profile: Path, process: subprocess.Popen[bytes]) -> tuple[str, str]:
    """Where the browser and its first page listen, once the browser says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            browser = f"http://127.0.0.1:{(profile / 'DevToolsActivePort').read_text().split()[0]}"
            with urllib.request.urlopen(f"{browser}/json", timeout=30) as answer:
                return browser, str(next(p["webSocketDebuggerUrl"] for p in json.load(answer) if p["type"] == "page"))
        except (OSError, IndexError, StopIteration):
            time.sleep(0.05)
    raise AssertionError("chromium did not start")
