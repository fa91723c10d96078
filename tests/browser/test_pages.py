"""Our own pages in Chromium, on a server with a real worker."""

from __future__ import annotations

import json
from contextlib import ExitStack
from importlib.util import find_spec

import pytest

from safelight.server.pages.shell import PAGES
from tests.browser.chromium import Page
from tests.server.serving import Server

SMALL = """(() => {
  const form = document.getElementById("ask").elements;
  form.width.value = form.height.value = 64; form.steps.value = 4; form.count.value = 1; form.seed.value = %d;
})()"""
SHOT = "document.querySelector('#made .card')?.querySelector('a.shot img')"  # of the newest, when it is done: previews are no links
CARDS = "document.querySelectorAll('#made .card .shot').length"
WATCH = """(() => {
  window.moved = [];
  new MutationObserver(() => {
    const bar = document.querySelector('#made .card progress');
    if (bar && moved.at(-1) !== bar.value) moved.push(bar.value);
  }).observe(document.getElementById('made'), { childList: true, subtree: true, attributes: true });
})()"""


def test_a_prompt_is_drawn_with_the_mouse(page: Page, server: Server) -> None:
    page.open(server.url + "/")
    page.run(SMALL % 1)
    page.run("document.getElementById('ask').elements.steps.value = 90")
    page.run(WATCH)
    page.type("textarea[name=prompt]", "a man with red hair")
    page.click(".go")
    page.until(f"{SHOT}?.naturalWidth === 64")
    moved = page.run("moved")
    assert len(moved) > 2 and moved == sorted(moved) and moved[-1] > moved[0], "progress moves, and only forward"
    assert page.run("document.querySelector('#made .card h2').textContent") == "a man with red hair"
    assert page.errors == []


def test_a_prompt_is_drawn_with_the_keyboard(page: Page, server: Server) -> None:
    page.open(server.url + "/")
    before = page.run(CARDS)
    page.run(SMALL % 2)
    page.type("textarea[name=prompt]", "a girl with blue hair")
    page.press("Enter", 13, control=True)
    page.until(f"{CARDS} === {before + 1} && {SHOT}?.naturalWidth === 64")
    assert page.run("document.querySelector('#made .card h2').textContent") == "a girl with blue hair"
    assert page.errors == []


def test_the_gallery_shows_it_and_tells_why(page: Page, server: Server) -> None:
    page.open(server.url + "/studio/gallery")
    page.until("document.querySelector('figure .shot img')?.naturalWidth > 0")
    page.click("figure .shot")
    page.until("document.getElementById('sheet').open && document.querySelector('#sheet .why-sheet img')?.naturalWidth > 0")
    told = page.run("document.getElementById('sheet').textContent")
    assert "generate" in told and "blue hair" in told
    page.press("Escape", 27)
    page.until("!document.getElementById('sheet').open")
    assert page.errors == []


def test_the_gallery_offers_what_came_while_one_looked(page: Page, server: Server) -> None:
    page.open(server.url + "/studio/gallery")
    shown = page.run("document.querySelectorAll('#wall figure').length")
    asked = {"prompt": "a tree", "width": 64, "height": 64, "steps": 3, "count": 2}
    page.run(f"fetch('/studio/generate', {{ method: 'POST', body: new URLSearchParams({json.dumps(asked)}) }}).then((a) => a.status)")
    page.until("document.querySelector('.newer button')?.textContent.trim() === '2 new pictures'")
    assert page.run("document.querySelectorAll('#wall figure').length") == shown, "nothing moves under the eye"
    press = "document.querySelector('.newer button')?.click()"  # again, where the button came anew between down and up
    page.until(f"({press}, document.querySelectorAll('#wall figure').length === {shown + 2})")
    page.until("!document.querySelector('.newer button')")
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_every_page_fits_a_phone(page: Page, server: Server, scheme: str) -> None:
    colours = set()
    for address, _ in PAGES:
        page.open(server.url + address, width=390, height=844, scheme=scheme)
        assert page.run("document.documentElement.scrollWidth") <= 390, address
        red, green, blue = page.run("getComputedStyle(document.body).backgroundColor.match(/[\\d.]+/g).slice(0, 3).map(Number)")
        colours.add((red + green + blue) / 3 > 128)
    assert colours == {scheme == "light"}
    assert page.errors == []


def test_the_bar_leads_to_the_editor_where_it_is_installed(page: Page, server: Server) -> None:
    page.open(server.url + "/studio/models")
    there = page.run("document.querySelector('nav a[href=\"/editor/\"]')?.checkVisibility() ?? false")
    assert there is (find_spec("comfyui_frontend_package") is not None)
    assert page.run("document.body.textContent.includes('safelight[comfy]')") is not there, "else how to get it"


def test_pages_do_not_use_up_the_connections(page: Page, server: Server) -> None:
    """A browser has six to one server, and every page holds one open while it is looked at."""
    for address, _ in (*PAGES, *PAGES):
        page.open(server.url + address)  # the seventh would hang for a minute
    assert page.errors == []


def test_eight_tabs_share_the_connections_and_miss_nothing(page: Page, server: Server) -> None:
    page.open(server.url + "/")
    page.run(SMALL % 3)
    page.run("document.getElementById('ask').elements.steps.value = 100; document.getElementById('ask').elements.count.value = 4")
    page.type("textarea[name=prompt]", "a man with green hair")
    page.click(".go")
    page.until("document.querySelector('#made .card progress')?.value > 0")
    id = page.run("document.querySelector('#made .card').id.slice(5)")
    with ExitStack() as open_tabs:
        tabs = [open_tabs.enter_context(page.tab(server.url + address)) for address, _ in (*PAGES, *PAGES[:2])]
        assert tabs[-1].run("document.visibilityState") == "visible" and page.run("document.visibilityState") == "hidden"
        server.wait(id, 300)
        tabs[-1].open(server.url + "/studio/queue")
        assert page.run("document.querySelector('#made .card progress') !== null"), "nobody told it while it was not looked at"
        assert not any(tab.errors for tab in tabs)
    page.call("Page.bringToFront")
    page.until(f"document.visibilityState === 'visible' && {SHOT}?.naturalWidth === 64")
    assert page.errors == []
