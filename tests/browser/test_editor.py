"""ComfyUI's own editor, as installed by the extra `comfy`, in Chromium on our server with a real worker."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest

from tests.browser.chromium import Page, missing
from tests.server.serving import Server

LISTEN = """(() => {
  window.heard = [];
  for (const kind of ["progress", "progress_state", "executed", "execution_error", "execution_success", "execution_interrupted"])
    app.api.addEventListener(kind, (e) => heard.push([kind, e.detail]));
  window.set = (id, name, value) => { app.graph.getNodeById(id).widgets.find((w) => w.name === name).value = value; };
  window.ids = (kind) => app.graph.serialize().nodes.filter((n) => n.type === kind).map((n) => Number(n.id));
  set(4, "width", 64); set(4, "height", 64); set(5, "steps", 3); set(5, "control_after_generate", "fixed");
})()"""
RUN = "[data-testid=queue-button]"
READY = f"window.app?.graph?.nodes?.length > 0 && document.querySelector('{RUN}') && !document.querySelector('#splash-loader')"


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    if find_spec("comfyui_frontend_package") is None:
        missing("the extra `comfy` is not installed")


@pytest.fixture
def editor(page: Page, server: Server) -> Page:
    """The editor as it is when it is opened for the first time, with a small picture and few steps."""
    if not page.run("location.pathname === '/editor/' && !!window.heard"):
        page.open(f"{server.url}/editor/")
        page.until(READY)
        page.run(LISTEN)
    page.run("heard.length = 0")
    return page


def heard(page: Page, kind: str) -> list[Any]:
    """What the server said of this kind."""
    return [detail for k, detail in page.run("JSON.parse(JSON.stringify(heard))") if k == kind]


def drawn(page: Page) -> Any:
    """Presses Run and waits for the picture: where it is shown from, and how large it is."""
    page.click(RUN)
    page.until("heard.some(([kind]) => kind === 'execution_success' || kind === 'execution_error')")
    assert not heard(page, "execution_error")
    (name,) = (told["output"]["images"][0]["filename"] for told in heard(page, "executed"))
    shown = f"app.graph.getNodeById(7).imgs?.find((i) => i.naturalWidth && i.src.includes({name!r}))"
    page.until(f"!!{shown}")
    return page.run(f"(() => {{ const picture = {shown}; return [picture.src, picture.naturalWidth]; }})()")


def test_the_first_graph_is_drawn_with_the_embedded_model(editor: Page, server: Server) -> None:
    offered = server.get("/object_info/CheckpointLoaderSimple")["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert offered == ["mini"] == [editor.run("app.graph.getNodeById(1).widgets[0].value")]
    source, width = drawn(editor)
    assert source.startswith(f"{server.url}/editor/api/view?") and width == 64
    steps = [p["value"] for p in heard(editor, "progress") if str(p["node"]) == "5"]
    assert steps == [1, 2, 3], "progress moves"
    assert heard(editor, "progress_state")[-1]["nodes"]["7"]["state"] == "finished"
    assert editor.errors == []


def test_what_runs_is_interrupted(editor: Page, server: Server) -> None:
    editor.run("set(4, 'width', 256); set(4, 'height', 256); set(5, 'steps', 900)")
    editor.click(RUN)
    editor.until("heard.some(([kind, told]) => kind === 'progress' && told.max === 900)")
    editor.click("button[aria-label='Cancel current run']")
    editor.until("heard.some(([kind]) => kind === 'execution_interrupted')")
    editor.run("set(4, 'width', 64); set(4, 'height', 64); set(5, 'steps', 3)")
    assert server.get("/queue") == {"queue_running": [], "queue_pending": []}
    assert editor.errors == []


def test_what_does_not_validate_is_marked_at_its_node(editor: Page) -> None:
    editor.run("set(5, 'steps', 0)")
    editor.click(RUN)
    wrong = editor.until("app.lastNodeErrors && JSON.parse(JSON.stringify(app.lastNodeErrors))")
    assert list(wrong) == ["5"] and wrong["5"]["errors"][0]["type"] == "value_smaller_than_min"
    assert editor.until("app.graph.nodes.filter((n) => n.has_errors).map((n) => Number(n.id)).join()") == "5"
    assert all("/api/prompt" in e or "PromptExecutionError" in e for e in editor.errors), editor.errors
    editor.run("set(5, 'steps', 3)")


def test_a_picture_that_is_dropped_in_brings_its_graph(editor: Page) -> None:
    editor.run("set(5, 'seed', 4321)")
    source, _ = drawn(editor)
    editor.run("app.graph.clear()")
    assert editor.run("ids('KSampler')") == []
    editor.run(f"""(async () => {{
      const picture = await (await fetch({source!r})).blob();
      await app.handleFile(new File([picture], "safelight.png", {{ type: "image/png" }}));
    }})()""")
    editor.until("ids('KSampler').length === 1")
    assert editor.run("app.graph.getNodeById(5).widgets.find((w) => w.name === 'seed').value") == 4321
    assert editor.run("app.graph.getNodeById(2).widgets[0].value") == "a girl with purple hair"
    assert editor.errors == []
