"""ComfyUI's own editor, as installed by the extra `comfy`, in Chromium on our server with a real worker."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import Page, missing
from tests.browser.conftest import EXAMPLES
from tests.server.serving import TINY, Server, nodes

WHOLE = EXAMPLES / "whole-way.json"

LISTEN = """(() => {
  window.heard = [];
  const kinds = ["progress", "progress_state", "executed", "execution_error", "execution_success", "execution_interrupted", "safelight"];
  for (const kind of kinds)
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


def opened(page: Page, content: bytes, name: str, media: str) -> None:
    """A file dropped onto the graph, as from a window of files."""
    page.run("app.graph.clear()")
    page.run(f"""(() => {{
      const bytes = Uint8Array.from(atob({base64.b64encode(content).decode()!r}), (c) => c.charCodeAt(0)), given = new DataTransfer();
      given.items.add(new File([bytes], {name!r}, {{ type: {media!r} }}));
      const told = {{ dataTransfer: given, bubbles: true, cancelable: true, clientX: 600, clientY: 500 }};
      document.getElementById("graph-canvas").dispatchEvent(new DragEvent("dragover", told));
      document.getElementById("graph-canvas").dispatchEvent(new DragEvent("drop", told));
    }})()""")


def widget(page: Page, kind: str, name: str) -> Any:
    return page.run(f"app.graph.nodes.find((n) => n.type === {kind!r}).widgets.find((w) => w.name === {name!r}).value")


def finished(page: Page) -> None:
    page.run("heard.length = 0")
    page.click(RUN)
    page.until("heard.some(([kind]) => kind === 'execution_success' || kind === 'execution_error')", 300)
    assert not heard(page, "execution_error") and page.errors == []


def test_a_picture_from_the_command_line_brings_a_graph_that_runs(editor: Page, tmp_path: Path) -> None:
    small = ["--seed", "11", "--width", "64", "--height", "64", "--steps", "2"]
    asked = ["generate", "a girl with green hair", *small, "--out", str(tmp_path)]
    made = {**os.environ, "SAFELIGHT_HOME": str(tmp_path / "home")}
    subprocess.run([sys.executable, "-c", "from safelight.cli import main; main()", *asked], check=True, env=made, capture_output=True)
    (picture,) = tmp_path.glob("*.png")
    opened(editor, picture.read_bytes(), picture.name, "image/png")
    editor.until("ids('generate').length === 1 && ids('model').length === 1")
    assert widget(editor, "generate", "prompt") == "a girl with green hair" and widget(editor, "generate", "steps") == 2
    assert widget(editor, "generate", "seeds") == "11" and widget(editor, "model", "name") == "mini"
    finished(editor)


OPS = {
    "1": {"class_type": "model", "inputs": {"name": "mini"}},
    "2": {"class_type": "generate", "inputs": {**TINY, "model": ["1", 0], "prompt": "a girl with purple hair", "seeds": "12"}},
}


@pytest.mark.parametrize("prompt", [OPS, nodes(seed=12)], ids=["ops", "ComfyUI's"])
def test_a_prompt_in_api_form_is_laid_out(editor: Page, prompt: dict[str, Any]) -> None:
    opened(editor, json.dumps(prompt).encode(), "prompt.json", "application/json")
    editor.until(f"app.graph.nodes.length === {len(prompt)}")
    assert sorted(editor.run("app.graph.nodes.map((n) => n.type)")) == sorted(e["class_type"] for e in prompt.values())
    finished(editor)


FEWER = """() => {
  const small = { steps: 4, every: 2, samples: 1, batch: 1, size: 64, rank: 2, held_out: 0.1, prior: 0, warmup: 0, text_encoder: false };
  for (const [name, value] of Object.entries(small)) set(5, name, value);
  const few = { steps: 2, width: 64, height: 64, seeds: "1" };
  for (const node of [7, 8]) for (const [name, value] of Object.entries(few)) set(node, name, value);
  for (const node of [11, 12]) set(node, "by", "sharpness");
}"""


def test_the_whole_way_from_a_folder_to_a_report(editor: Page) -> None:
    drawn = json.loads(WHOLE.read_text())
    opened(editor, WHOLE.read_bytes(), WHOLE.name, "application/json")
    editor.until(f"app.graph.nodes.length === {len(drawn['nodes'])}")
    assert editor.run("Object.keys(app.graph.serialize().links).length") == len(drawn["links"])
    sent = editor.run("app.graphToPrompt().then((told) => told.output)")["5"]["inputs"]
    assert sent | {"steps": 200, "every": 40, "seed": 0, "alpha": "", "data": ["3", 0], "model": ["4", 0]} == sent
    shown = editor.run("app.graph.nodes.map((n) => [n.title, ...n.pos, ...n.size])")
    for name, x, y, wide, high in shown:
        for other, x2, y2, wide2, high2 in shown:
            apart = x + wide <= x2 or x2 + wide2 <= x or y + high <= y2 - 30 or y2 + high2 <= y - 30
            assert name == other or apart, f"{name} lies on {other}"
    editor.run(f"({FEWER})()")
    finished(editor)
    told = [(t["node"], t.get("text", "")) for t in heard(editor, "safelight")]
    assert ("1", "33 pictures, 1 left out") in told and ("2", "30 pictures, 4 left out") in told
    assert {n for n, text in told if text.startswith("sharpness ")} == {"11", "12"}
    curve = editor.run("""(() => {
      const { points, held } = app.graph.getNodeById(5).widgets.find((w) => w.name === "curve");
      return [points, held].map((line) => line.map((p) => p[0]));
    })()""")
    assert curve == [[1, 2, 3, 4], [0, 2, 4]], "loss and held-out loss by step"
    for node in (9, 10):
        editor.until(f"app.graph.getNodeById({node}).imgs?.every((i) => i.naturalWidth === 64)")
    (report,) = (t["output"] for t in heard(editor, "executed") if str(t["node"]) == "13")
    assert [f["filename"].endswith(".html") for f in report["files"]] == [True]
    shown = editor.run("app.graph.getNodeById(13).widgets.map((w) => [w.name, w.value])")
    assert ["outcome", report["files"][0]["filename"]] in shown and "open" in dict(shown)
    editor.run(
        "window.open = (link) => { window.went = link; }; app.graph.getNodeById(13).widgets.find((w) => w.name === 'open').callback()"
    )
    assert editor.run("fetch(window.went).then((a) => a.text())").lower().startswith("<!doctype html")
    assert editor.errors == []
