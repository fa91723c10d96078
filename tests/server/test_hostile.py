"""Names and graphs made to do harm: no name reads or changes anything outside, no graph costs more than an answer."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from safelight.server.command import here
from tests.server.serving import nodes, still
from tests.server.test_files import png

SECRET = b"what nobody may see"
SURE = settings(
    max_examples=60, deadline=None, derandomize=True, database=None, phases=[Phase.generate], report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    """A server whose folders hold links out: to a file, to a folder, to nothing, to itself."""
    (home / "secret.txt").write_bytes(SECRET)
    (home / "secret.png").write_bytes(png())
    with still(home / "studio") as client:
        for root in ("input", "output", "user/data"):
            inner = home / "studio" / root
            inner.mkdir(parents=True, exist_ok=True)
            for name, target in (("file", home / "secret.txt"), ("dir", home), ("gone", home / "made.txt"), ("self", inner / "self")):
                (inner / f"link_{name}").symlink_to(target)
        yield client


def outside(home: Path) -> dict[str, bytes]:
    """Everything that is not the users' own files."""
    kept = {"studio/user/data", "studio/input", "studio/output"}
    files = [p for p in home.rglob("*") if p.is_file() and not p.is_symlink() and p.suffix not in (".sqlite", ".sqlite-journal")]
    told = {p.relative_to(home).as_posix(): p.read_bytes() for p in files}
    return {name: content for name, content in told.items() if not any(name.startswith(f"{k}/") for k in kept)}


PART = st.sampled_from([
    "..", ".", "", "...", "....", "~", "~root", "\0", "\n", "\r\n", "a", "a.txt", "secret.txt", "secret.png", "etc", "passwd", "link_file",
    "link_dir", "link_gone", "link_self", "%2e%2e", "%252e%252e", "%c0%ae%c0%ae", "．．", "‥", "..\\", "\\\\host\\share", "C:", "CON",
    "nul.txt", "file.txt:stream", "a ", "a.", "é", "é", "\u202e", "🙂", "settings.json", "x" * 300, "$HOME", "`id`", ";",
    "*", "?", "#", "[output]",
]) | st.text(max_size=6)
NAME = st.builds(lambda by, parts: by.join(parts), st.sampled_from(["/", "\\", "//", "%2f", "%5c"]), st.lists(PART, min_size=1, max_size=6))
WAY = st.sampled_from([
    lambda name: quote(name, safe=""), lambda name: quote(name, safe="/\\%"), lambda name: quote(quote(name, safe=""), safe=""),
])


@given(NAME, NAME, WAY, st.sampled_from(["GET", "POST", "DELETE", "MOVE", "MOVED", "LIST", "LISTED"]))
@SURE
def test_no_name_leads_out_of_what_users_keep(client: TestClient, home: Path, name: str, other: str, way: Any, do: str) -> None:
    before = outside(home)
    path = f"/userdata/{way(name)}"
    asked = {
        "GET": lambda: client.get(path), "POST": lambda: client.post(path, content=b"mine"), "DELETE": lambda: client.delete(path),
        "MOVE": lambda: client.post(f"{path}/move/{way(other)}"), "MOVED": lambda: client.post(f"/userdata/a.txt/move/{way(name)}"),
        "LIST": lambda: client.get("/userdata", params={"dir": name, "recurse": "true", "full_info": "true"}),
        "LISTED": lambda: client.get("/v2/userdata", params={"path": name}),
    }[do]()
    assert asked.status_code in (200, 204, 307, 400, 403, 404, 405, 409)
    assert SECRET not in asked.content
    assert outside(home) == before


@given(NAME, NAME, st.sampled_from(["input", "output", "temp", "", "..", "user"]), st.sampled_from(["", "webp", "jpeg;50"]))
@SURE
def test_no_name_shows_a_picture_from_outside(client: TestClient, home: Path, name: str, folder: str, kind: str, preview: str) -> None:
    told = {"filename": name, "subfolder": folder, "type": kind, "preview": preview}
    seen = client.get("/view", params={k: v for k, v in told.items() if v})
    assert seen.status_code in (400, 403, 404), told
    reference = json.dumps({"filename": name, "subfolder": folder, "type": kind})
    drawn = client.post("/upload/mask", files={"image": ("a.png", b"x")}, data={"original_ref": reference})
    assert drawn.status_code in (400, 403, 404)


@given(NAME, NAME, st.sampled_from(["input", "output", "temp", "user"]))
@settings(SURE, max_examples=4)
def test_no_upload_lands_outside(client: TestClient, home: Path, name: str, folder: str, kind: str) -> None:
    before = outside(home)
    kept = client.post("/upload/image", files={"image": (name, png())}, data={"subfolder": folder, "type": kind, "overwrite": "1"})
    assert kept.status_code in (200, 400, 403, 404, 409)
    after = outside(home)
    assert {k: v for k, v in after.items() if not k.startswith("studio/output/temp/")} == before


def test_links_are_not_listed_and_harm_no_list(client: TestClient, home: Path) -> None:
    client.post("/userdata/mine.txt", content=b"x")
    assert [f["name"] for f in client.get("/v2/userdata").json() if f["name"] == "mine.txt" or "link" in f["name"]] == ["mine.txt"]
    for name in ("link_file", "link_dir/secret.txt", "link_gone"):
        assert client.get(f"/userdata/{quote(name, safe='')}").status_code == 403
        assert client.post(f"/userdata/{quote(name, safe='')}", content=b"x").status_code == 403
    assert client.get("/userdata/link_self").status_code == 404
    assert (home / "secret.txt").read_bytes() == SECRET and not os.path.lexists(home / "made.txt")


def test_a_home_folder_is_not_shown_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "home" / "pictures"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for folder, shown in ((work, work), (tmp_path / "home", tmp_path / "in"), (tmp_path, tmp_path / "in"), (Path("/"), tmp_path / "in")):
        monkeypatch.chdir(folder)
        assert here(tmp_path / "in") == shown


# Graphs.

SLOT = st.sampled_from([0, 1, 2, -1, 99, 2**31, 2**63, 0.0, True, None, "0", [0]])
LINK = st.tuples(st.sampled_from([*(str(i) for i in range(1, 8)), "8", "", "none"]), SLOT).map(list)


@given(st.lists(st.tuples(st.sampled_from([*(str(i) for i in range(1, 8))]), st.integers(0, 20), LINK), min_size=1, max_size=4))
@SURE
def test_links_may_lead_anywhere(client: TestClient, wires: list[tuple[str, int, list[Any]]]) -> None:
    """To the node itself, round in a circle, to nodes and outputs that there are not: refused with the node's name, or it can run."""
    prompt = nodes()
    for node, which, link in wires:
        inputs = prompt[node]["inputs"]
        inputs[list(inputs)[which % len(inputs)]] = link
    answer = client.post("/prompt", json={"prompt": prompt})
    assert answer.status_code in (200, 400)
    told = answer.json()
    if answer.status_code == 400:
        whole = ("dependency_cycle", "invalid_prompt", "prompt_no_outputs")
        assert told["error"]["details"] and (told["node_errors"] or told["error"]["type"] in whole)
    client.post("/queue", json={"clear": True})


def test_circles_are_told_of_by_their_name(client: TestClient) -> None:
    for node, name, link in (("5", "latent_image", ["5", 0]), ("4", "batch_size", ["6", 0]), ("2", "clip", ["2", 0])):
        prompt = nodes()
        prompt[node]["inputs"][name] = link
        answer = client.post("/prompt", json={"prompt": prompt})
        assert answer.status_code == 400, (node, answer.json())
        assert "cycle" in answer.text or prompt[node]["class_type"] in answer.text
    ring = {str(i): {"class_type": "ImageInvert", "inputs": {"image": [str((i + 1) % 5000), 0]}} for i in range(5000)}
    ring["save"] = {"class_type": "SaveImage", "inputs": {"images": ["0", 0], "filename_prefix": "x"}}
    answer = client.post("/prompt", json={"prompt": ring})
    assert answer.status_code == 400 and answer.json()["error"]["type"] == "dependency_cycle"


RAW = st.sampled_from([
    "NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5000, str(2**64), str(-(2**63) - 1), "[" * 70 + "]" * 70, '{"a":1,"a":2}',
    '{"a":' * 70 + "1" + "}" * 70, '"\\ud800"', "01", "+1", ".5", "'x'", "nul", "",
])


@given(RAW, st.sampled_from(["seed", "steps", "cfg", "denoise", "model", "extra"]))
@SURE
def test_what_json_does_not_have_is_refused_wherever_it_stands(client: TestClient, raw: str, name: str) -> None:
    prompt = nodes()
    prompt["5"]["inputs"][name] = "HERE"
    text = json.dumps({"prompt": prompt}).replace('"HERE"', raw)
    answer = client.post("/prompt", content=text.encode())
    assert answer.status_code == 400 and answer.json()["error"]["details"]
    twice = json.dumps({"prompt": prompt}).replace('"5": {', '"4": {')
    assert client.post("/prompt", content=twice.encode()).status_code == 400
    assert client.get("/prompt").json()["exec_info"]["queue_remaining"] == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["id", "type", "nodes", "links", "x"]), inner, max_size=3),
    max_leaves=6,
)
WORKFLOWS = Path(__file__).parents[1] / "comfy" / "workflows"
DRAWN = {name: json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8")) for name in ("mixed", "subgraph", "group")}


def places(data: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    for key, inner in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(inner, (*at, key))


PLACES = {name: [p for p in places(drawn) if p] for name, drawn in DRAWN.items()}


@given(st.sampled_from(sorted(DRAWN)), st.lists(st.tuples(st.integers(0, 10**6), JSON), min_size=1, max_size=3))
@settings(SURE, max_examples=40)
def test_no_editors_workflow_breaks_the_server(client: TestClient, name: str, changes: list[tuple[int, Any]]) -> None:
    workflow = copy.deepcopy(DRAWN[name])
    for which, value in changes:
        *path, last = PLACES[name][which % len(PLACES[name])]
        inner = workflow
        try:
            for key in path:
                inner = inner[key]
            inner[last] = value
        except (KeyError, IndexError, TypeError):
            continue
    answer = client.post("/workflow/convert", json=workflow)
    assert answer.status_code in (200, 400), (name, changes, answer.text)


def test_subgraphs_within_themselves_and_ones_that_double_are_refused(client: TestClient) -> None:
    def node(id: int, kind: str) -> dict[str, Any]:
        return {"id": id, "type": kind, "mode": 0, "inputs": [], "outputs": [], "widgets_values": []}

    def graph(kinds: list[str], **more: Any) -> dict[str, Any]:
        return {"nodes": [node(i, kind) for i, kind in enumerate(kinds)], "links": [], **more}

    for kinds in (["a"], ["b"]):
        inner = {"id": "a", "name": "a", "inputs": [], "outputs": [], **graph(kinds)}
        other = {"id": "b", "name": "b", "inputs": [], "outputs": [], **graph(["a"])}
        answer = client.post("/workflow/convert", json=graph(["a"], definitions={"subgraphs": [inner, other]}))
        assert answer.status_code == 400 and answer.json()["error"]
    twice = [[f"g{i + 1}"] * 2 if i < 30 else ["ImageInvert"] for i in range(31)]
    double = [{"id": f"g{i}", "name": "g", "inputs": [], "outputs": [], **graph(kinds)} for i, kinds in enumerate(twice)]
    answer = client.post("/workflow/convert", json=graph(["g0"], definitions={"subgraphs": double}))
    assert answer.status_code == 400 and "nodes" in answer.json()["error"]
