"""Work on our pages in Chromium, on a server with a real worker: storyboards, scores, comparing, the keyboard."""
from __future__ import annotations

import pytest

from safelight.server.pages.shell import PAGES
from tests.browser.chromium import Page
from tests.server.serving import Server

LINES = "a man with red hair --d 5\na girl with blue hair\n# left out\na red car --s 3"
SMALL = """(() => {
  const form = document.getElementById("ask").elements;
  form.width.value = form.height.value = 64; form.steps.value = 6;
  window.shifts = [];
  new PerformanceObserver((list) => list.getEntries().forEach((e) => e.hadRecentInput || shifts.push(e.value)))
    .observe({ type: "layout-shift" });
})()"""
BOARD = "document.querySelector('#made .board')"
CONTRAST = """(() => {
  const parse = (c) => c.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const over = (top, below) => { const a = top[3] ?? 1; return top.slice(0, 3).map((v, i) => v * a + below[i] * (1 - a)); };
  const behind = (at) => at ? over(parse(getComputedStyle(at).backgroundColor), behind(at.parentElement)) : [0, 0, 0];
  const poor = [];
  for (const at of document.querySelectorAll("body *")) {
    const own = [...at.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || !at.checkVisibility() || at.closest("[disabled], .sr, .u-legend, dialog, option") || !at.getClientRects().length) continue;
    const back = behind(at), style = getComputedStyle(at);
    let opacity = 1;
    for (let up = at; up; up = up.parentElement) opacity *= Number(getComputedStyle(up).opacity);
    const colour = parse(style.color), front = over([...colour.slice(0, 3), (colour[3] ?? 1) * opacity], back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x), ratio = (a + .05) / (b + .05);
    if (ratio < (parseFloat(style.fontSize) >= 24 ? 3 : 4.5))
      poor.push(`${at.tagName}.${at.className} ${at.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""


def test_a_storyboard_fills_in_and_nothing_moves(page: Page, server: Server) -> None:
    page.open(server.url + "/")
    page.click("input[name=mode][value=board] + span")
    page.run(SMALL)
    page.type("#prompt", LINES)
    page.press("Enter", 13, control=True)
    page.until(f"{BOARD}?.children.length === 3")
    before = page.run(f"JSON.stringify([...{BOARD}.children].map((x) => x.getBoundingClientRect().height))")
    page.until(f"[...{BOARD}.querySelectorAll('a.shot img')].filter((i) => i.naturalWidth === 64).length === 3")
    assert page.run(f"JSON.stringify([...{BOARD}.children].map((x) => x.getBoundingClientRect().height))") == before
    assert page.run(f"[...{BOARD}.querySelectorAll('p i')].map((i) => i.textContent.match(/\\d+/)[0])[0]") == "5"
    sheet = page.until("document.querySelector('#made .card a[download]')?.href")
    assert page.run(f"fetch({sheet!r}).then((r) => r.headers.get('content-type'))") == "image/png"
    assert page.run("shifts.reduce((a, b) => a + b, 0)") < 0.1, "as Core Web Vitals count it"
    assert page.errors == []


def test_pictures_are_scored_sorted_and_compared_from_the_keyboard(page: Page, server: Server) -> None:
    page.open(server.url + "/studio/gallery")
    page.until("document.querySelectorAll('#wall figure').length >= 3")
    page.run("document.activeElement.blur()")
    page.press("s", 83)
    page.until("document.querySelectorAll('#wall .score').length >= 3")
    page.run("""(() => {
      const order = document.querySelector("select[name=order]");
      order.value = "score"; order.dispatchEvent(new Event("change", { bubbles: true }));
    })()""")
    told = "[...document.querySelectorAll('#wall .score .by')].map((x) => parseFloat(x.textContent.match(/-?[\\d.]+$/)[0]))"
    page.until(f"(() => {{ const found = {told}; return found.length >= 3 && found.every((v, i) => !i || found[i - 1] >= v); }})()")
    page.run("document.activeElement.blur()")
    for key in "jxjx":
        page.press(key, ord(key.upper()))
    page.press("c", 67)
    page.until("document.getElementById('sheet').open && document.activeElement.matches('[data-divides]')")
    page.press("ArrowRight", 39)
    assert page.until("document.querySelector('.over .seam').style.left") == "51%"
    page.press("Escape", 27)
    page.until("!document.getElementById('sheet').open")
    assert page.errors == []


def test_the_keys_are_listed_and_letters_can_be_switched_off(page: Page, server: Server) -> None:
    page.open(server.url + "/studio/queue")
    page.press("?", 191)
    page.until("document.getElementById('keys').open")
    page.click("#letters")
    page.press("Escape", 27)
    page.press("?", 191)
    assert not page.run("document.getElementById('keys').open")
    page.run("document.getElementById('show-keys').click()")
    page.click("#letters")
    page.press("Escape", 27)
    page.press("4", 52)
    page.until("location.pathname === '/studio/gallery'")
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_texts_stand_out_from_what_is_behind_them(page: Page, server: Server, scheme: str) -> None:
    """WCAG 2.1 AA: 4.5 to 1, large texts 3 to 1."""
    for address, _ in PAGES:
        page.open(server.url + address, scheme=scheme)
        assert page.run(CONTRAST) == [], address
    assert page.errors == []
