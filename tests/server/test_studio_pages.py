"""The studio's pages: what they show, what their forms ask for, and what they refuse. No worker runs here."""
from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from starlette.testclient import TestClient

from safelight.server.pages import shell
from safelight.server.pages.words import CHINESE
from tests.server.serving import still

PEOPLE = Path(__file__).parents[2] / "examples" / "pixel-people"
PAGES = [address for address, _ in shell.PAGES]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    shutil.copytree(PEOPLE, tmp_path / "data" / "people")
    with still(tmp_path / "home", data=(tmp_path / "data",)) as made:
        yield made


class Reader(HTMLParser):
    """What a page refers to, and whether it has styles or scripts of its own."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self.links += [v for k in ("src", "href", "action") if (v := told.get(k))]
        self.inline += [tag for name in told if name == "style" or name.startswith("on")]
        self.inline += [tag] if tag == "style" or (tag == "script" and "src" not in told) else []


def prompts(client: TestClient) -> list[dict[str, Any]]:
    """The graphs in the queue, the latest last."""
    return [item[2] for item in client.get("/queue").json()["queue_pending"]]


@pytest.mark.parametrize("address", PAGES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_page_stands_on_its_own(client: TestClient, address: str, language: str) -> None:
    answer = client.get(address, headers={"accept-language": language})
    assert answer.status_code == 200 and f'lang="{language}"' in answer.text
    page = Reader(answer.text)
    assert not page.inline and all(link.startswith(("/", "?", "#")) for link in page.links), "nothing from elsewhere, nothing inline"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert 'aria-current="page"' in answer.text
    for link in {x for x in page.links if x.startswith("/studio/static/")}:
        assert client.get(link.partition("#")[0]).status_code == 200, link


def test_every_word_of_the_templates_is_there_in_chinese() -> None:
    templates = Path(shell.STATIC).parent / "templates"
    texts = [t.read_text("utf-8").replace("\\'", "’") for t in templates.glob("*.html")]
    said = {m[2] for text in texts for m in re.finditer(r"""_\((["'])(.+?)\1\)""", text)}
    missing = sorted(w for w in said if w.replace("’", "'") not in CHINESE)
    assert len(said) > 100 and not missing
    assert all([*Formatter().parse(k)] and v for k, v in CHINESE.items())


def test_the_language_is_chosen_and_kept(client: TestClient) -> None:
    assert "生成" not in client.get("/").text
    answer = client.post("/studio/language/zh", headers={"referer": "http://testserver/studio/queue"}, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/studio/queue"
    assert "生成" in client.get("/").text
    away = client.post("/studio/language/en", headers={"referer": "http://x//evil.example/"}, follow_redirects=False)
    assert away.headers["location"] == "/evil.example/", "never to another host"


def test_a_form_becomes_a_graph_with_its_seed_drawn(client: TestClient) -> None:
    given = {"prompt": "a <b>fox</b>", "steps": "7", "count": "2", "seed": "-1", "width": "64", "height": "64"}
    answer = client.post("/studio/generate", data=given)
    assert answer.status_code == 200 and "a &lt;b&gt;fox&lt;/b&gt;" in answer.text and "<b>fox" not in answer.text
    drawn = prompts(client)[0]["1"]["inputs"]
    assert drawn["prompt"] == "a <b>fox</b>" and (drawn["steps"], drawn["width"]) == (7, 64)
    first, second = drawn["seeds"]
    assert first >= 0 and second == first + 1
    shown = client.get("/").text
    assert "a &lt;b&gt;fox&lt;/b&gt;" in shown and f"<i>seed</i> {first}" in shown, "the seed is told"


def test_a_grid_is_one_picture_a_cell(client: TestClient) -> None:
    given = {"prompt": "a car", "x": "scale", "x_values": "2, 5,8", "y": "prompt", "y_values": "a red car|a blue car, small", "count": "4"}
    assert client.post("/studio/generate", data=given).status_code == 200
    cells = {k: v["inputs"] for k, v in prompts(client)[0].items() if v["class_type"] == "generate"}
    assert [(c["prompt"], c["scale"]) for c in cells.values()] == [(p, s) for p in ("a red car", "a blue car, small") for s in (2, 5, 8)]
    assert all(len(c["seeds"]) == 1 for c in cells.values()) and len({tuple(c["seeds"]) for c in cells.values()}) == 1


@pytest.mark.parametrize(
    ("given", "why"),
    [({}, "say what to draw"), ({"prompt": "x", "steps": "many"}, "invalid literal"),
     ({"prompt": "x", "x": "seed", "x_values": ",".join(map(str, range(65)))}, "at most 64"), ({"prompt": "x", "x": "count"}, "no axis"),
     ({"prompt": "x", "lora": "../../secret.safetensors [output]"}, "secret")])
def test_what_cannot_be_drawn_is_said(client: TestClient, given: dict[str, str], why: str) -> None:
    answer = client.post("/studio/generate", data=given)
    assert answer.status_code in (422, 400, 403) and why in answer.text, answer.text
    assert not prompts(client)


def test_the_queue_is_ordered_paused_and_emptied_from_its_page(client: TestClient) -> None:
    for name in ("one", "two", "three"):
        client.post("/studio/generate", data={"prompt": name})
    waiting = client.get("/queue").json()["queue_pending"]
    client.post(f"/studio/queue/{waiting[2][1]}/first")
    assert [p["1"]["inputs"]["prompt"] for p in prompts(client)] == ["three", "one", "two"]
    page = client.post(f"/studio/queue/{waiting[0][1]}/cancel").text
    assert [p["1"]["inputs"]["prompt"] for p in prompts(client)] == ["three", "two"] and "cancelled" in page
    assert 'aria-pressed="true"' in client.post("/studio/queue/pause").text
    assert 'aria-pressed="false"' in client.post("/studio/queue/pause").text


def test_a_dataset_is_sorted_out_live(client: TestClient, tmp_path: Path) -> None:
    path = str(tmp_path / "data" / "people")
    assert path in client.get("/studio/datasets").text
    page = client.get("/studio/datasets", params={"path": path}).text
    stay = int(re.search(r"<dd>(\d+) <small>/ 34", page)[1])  # type: ignore[index]
    assert 25 < stay < 34 and "too small" in page and "duplicate" in page
    strict = client.get("/studio/datasets/sorted", params={"path": path, "min_side": "1024"}).text
    assert "<dd>0 <small>/ 34" in strict
    dropped = client.get("/studio/datasets/sorted", params={"path": path, "show": "dropped"}).text
    assert "below 128 px" in dropped
    name = re.search(r"name=(person-01\.png)", page)[1]  # type: ignore[index]
    picture = client.get("/studio/datasets/picture", params={"path": path, "name": name})
    assert picture.status_code == 200 and picture.content[:4] == b"RIFF"
    assert "looks like person-17.png" in client.get("/studio/datasets/doctor", params={"path": path}).text


@pytest.mark.parametrize("address", ["", "/sorted", "/doctor", "/picture"])
def test_no_folder_but_those_allowed_is_shown(client: TestClient, tmp_path: Path, address: str) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "data" / "link").symlink_to(tmp_path / "secret")
    for path in (str(tmp_path / "secret"), str(tmp_path / "data" / ".." / "secret"), str(tmp_path / "data" / "link"), "/etc"):
        answer = client.get(f"/studio/datasets{address}", params={"path": path, "name": "x.png"})
        assert answer.status_code in (400, 403, 404), (path, answer.status_code)


def test_a_caption_written_is_a_layer_and_the_files_stay(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "people"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    told = {"path": str(folder), "name": "person-01.png"}
    answer = client.post("/studio/datasets/caption", data={**told, "text": "  a <i>fox</i>\nin pixel style "})
    assert "a &lt;i&gt;fox&lt;/i&gt; in pixel style</textarea>" in answer.text and "human" in answer.text
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert "fox" in client.get("/studio/datasets", params={"path": str(folder)}).text
    client.post("/studio/train", data={"path": str(folder), "trigger": "in pixel style", "steps": "3"})
    graph = prompts(client)[0]
    table = Path(graph["written"]["inputs"]["path"])
    assert json.loads(table.read_text())["text"] == "a <i>fox</i> in pixel style"
    again = client.post("/studio/datasets/caption", data={**told, "text": ""})
    assert "fox" not in again.text


def test_training_is_one_graph_from_the_folder(client: TestClient, tmp_path: Path) -> None:
    path = str(tmp_path / "data" / "people")
    answer = client.post("/studio/train", data={"path": path, "trigger": "in pixel style", "steps": "24", "rank": "4", "min_side": "200"})
    assert answer.status_code == 200 and "data-curve" in answer.text
    graph = prompts(client)[0]
    assert [n["class_type"] for n in graph.values()] == ["folder", "curate", "caption", "model", "train_lora"]
    assert graph["curate"]["inputs"]["min_side"] == 200 and graph["train"]["inputs"]["every"] == 3
    id = client.get("/queue").json()["queue_pending"][0][1]
    assert client.get(f"/studio/train/{id}/curve").json() == {"steps": [], "loss": [], "held": [], "over": False}
    assert "in pixel style" in client.get("/studio/train").text
    assert client.post("/studio/train", data={"path": "/etc"}).status_code == 422


def test_static_files_are_only_those(client: TestClient) -> None:
    for name in ("../shell.py", "..%2fshell.py", "%2e%2e/shell.py", "vendor", ""):
        assert client.get(f"/studio/static/{name}").status_code == 404, name
