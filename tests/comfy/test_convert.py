"""Workflows of the editor as prompts. The pairs in workflows/ are what comfyui-frontend-package 1.27.10 itself made (graphToPrompt)."""
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from safelight.comfy import NODES, Places, convert, is_prompt, is_workflow, translate
from safelight.comfy.convert import opened
from safelight.folders import roots
from safelight.op import load_ops

PAIRS = Path(__file__).parent / "workflows"


@pytest.fixture
def here(tmp_path: Path) -> Places:
    return Places(roots(), tmp_path / "input", tmp_path / "out")


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PAIRS / name).read_text("utf-8"))
    return found


def first(words: Any) -> str:
    return str(words[0])


@pytest.mark.parametrize("name", ["default", "mixed", "subgraph", "group"])
def test_a_workflow_becomes_what_the_editor_itself_sends(here: Places, name: str) -> None:
    drawn = read(f"{name}.json")
    assert is_workflow(drawn) and not is_workflow(read(f"{name}.api.json"))
    made = convert(drawn, here, choose=first)
    assert made == read(f"{name}.api.json")
    assert is_prompt(made)


def test_version_1_has_its_links_as_objects(here: Places) -> None:
    drawn = read("mixed.json")
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    drawn["links"] = [dict(zip(names, link, strict=True)) for link in drawn["links"]]
    assert convert({**drawn, "version": 1}, here, choose=first) == read("mixed.api.json")


def test_values_by_name_and_missing_ones(here: Places) -> None:
    drawn = read("default.json")
    for node in drawn["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"] = {"steps": 3, "seed": 5, "unheard": 1}
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"] = [640]
    made = {e["class_type"]: e["inputs"] for e in convert(drawn, here).values()}
    assert made["KSampler"] | {"steps": 3, "seed": 5} == made["KSampler"] and "unheard" not in made["KSampler"]
    assert made["EmptyLatentImage"] == {"width": 640, "height": 512, "batch_size": 1}


def test_names_hold_when_a_class_has_got_more_widgets_since(here: Places) -> None:
    drawn = read("default.json")
    for node in drawn["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"] = [5, 3]
            node["widgets_values_named"] = {"steps": 3, "cfg": 2.5}
    made = next(e["inputs"] for e in convert(drawn, here).values() if e["class_type"] == "KSampler")
    assert made | {"seed": 5, "steps": 3, "cfg": 2.5, "denoise": 1.0} == made, "by name, else by place, else as the class has it"


def test_a_class_that_is_not_here_keeps_what_its_inputs_name(here: Places) -> None:
    drawn = read("default.json")
    for node in drawn["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node |= {"type": "Unheard", "inputs": [{"name": "size", "type": "INT", "link": None, "widget": {"name": "size"}}]}
            node["widgets_values"] = [640]
    made = convert(drawn, here)
    assert {"inputs": {"size": 640}, "class_type": "Unheard"} in [{k: e[k] for k in ("inputs", "class_type")} for e in made.values()]


def cut(drawn: dict[str, Any]) -> None:
    drawn["links"] = drawn["links"][1:]


def circle(drawn: dict[str, Any]) -> None:
    node = next(n for n in drawn["nodes"] if n["type"] == "Reroute")
    drawn["links"] = [[k, node["id"], 0, *rest] if rest[0] == node["id"] else [k, a, b, *rest] for k, a, b, *rest in drawn["links"]]


def inside_itself(drawn: dict[str, Any]) -> None:
    inner = drawn["definitions"]["subgraphs"][1]
    inner["nodes"] = [{**n, "type": inner["id"]} for n in inner["nodes"]]


@pytest.mark.parametrize(("name", "change", "told"), [
    ("default", cut, "link 1 is not among"), ("mixed", circle, "in a circle"), ("subgraph", inside_itself, "inside itself"),
])
def test_what_leads_nowhere_is_told_by_node(here: Places, name: str, change: Callable[[dict[str, Any]], None], told: str) -> None:
    drawn = read(f"{name}.json")
    change(drawn)
    with pytest.raises(ValueError, match=rf"convert: node .*{told}"):
        convert(drawn, here)
    with pytest.raises(ValueError, match="no workflow of the editor's"):
        convert(read(f"{name}.api.json"), here)


def test_what_is_no_workflow_or_too_large_is_told(here: Places) -> None:
    one = {"nodes": [{"id": 1}], "links": []}
    for odd in ({"nodes": [3], "links": []}, one, {"nodes": [], "links": [[1, 2]]}, {"nodes": [], "links": 7}):
        with pytest.raises(ValueError, match="convert: "):
            convert(odd, here)
    shapes = [{"id": f"s{i}", "nodes": [{"id": k, "type": f"s{i + 1}"} for k in range(10)], "links": []} for i in range(9)]
    bomb = {"nodes": [{"id": 1, "type": "s0"}], "links": [], "definitions": {"subgraphs": shapes}}
    with pytest.raises(ValueError, match="more than 10000 nodes"):
        convert(bomb, here)


def test_choices_and_comments_in_a_prompt() -> None:
    last: Callable[[Any], str] = lambda words: str(words[-1])  # noqa: E731
    assert opened("a {red|{dark|light} blue} fox // sly\n/* no\nmore */end", last) == "a light blue fox \nend"
    assert opened(r"\{kept|so\} {a|b\|c", last) == "{kept|so} b|c"


def test_ops_of_ours_are_drawn_and_read_back(here: Places) -> None:
    """What `safelight.workflow` draws of a graph of ours is that graph again."""
    from safelight.workflow import workflow

    graph = {
        "a": {"class_type": "empty_image", "inputs": {"width": 64, "height": 32}},
        "b": {"class_type": "empty_image", "inputs": {"width": 8, "height": 8}},
        "c": {"class_type": "join_images", "inputs": {"images": [["a", 0], ["b", 0]]}},
        "d": {"class_type": "blur_image", "inputs": {"image": ["c", 0], "radius": 3}},
    }
    made = convert(workflow(graph), here)
    assert made["4"]["inputs"]["radius"] == 3 and made["1"]["inputs"]["width"] == 64
    found = list(translate(made, here).graph.values())
    assert [e["class_type"] for e in found] == [e["class_type"] for e in graph.values()]
    assert found[2]["inputs"] == {"images": [["1", 0], ["2", 0]]} and found[3]["inputs"]["image"] == ["3", 0]


def test_every_input_of_every_class_finds_its_value(here: Places) -> None:
    """A workflow with the defaults of every class, as the editor writes them, gives them back by name."""
    from safelight.comfy import object_info
    from safelight.comfy.convert import widget_inputs

    for name, known in object_info(here).items():
        values = [f"{name}.{w}" if i == 0 else "-" for w, _, extra in widget_inputs(known) for i in range(1 + extra)]
        node = {"id": 1, "type": name, "mode": 0, "inputs": [], "outputs": [], "widgets_values": values}
        made = convert({"nodes": [node], "links": [], "version": 0.4}, here)["1"]["inputs"]
        assert made == {w: f"{name}.{w}" for w, _, _ in widget_inputs(known)}
    assert set(object_info(here)) == {*NODES, *load_ops()}
