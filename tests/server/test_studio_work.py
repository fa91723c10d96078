"""What one works with on the studio's pages: storyboards, grids, scores, duplicates, runs. No worker runs here; results are laid down."""
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil
from starlette.testclient import TestClient

from safelight.embed import OURS, png_with_texts
from safelight.sampling.storyboard import read as read_storyboard
from safelight.store import Made, current
from safelight.values import Patch
from tests.server.test_studio_pages import client, prompts

__all__ = ["client"]


def test_a_storyboard_is_one_op_and_a_sheet(client: TestClient) -> None:
    lines = "a red fox\n# left out\n\na <b>car</b> --d 77 --n fog --s 3\na girl\tblurry\t5\na boy --d -1 --l 2.5"
    answer = client.post("/studio/generate", data={"mode": "board", "prompt": lines, "seed": "10", "scale": "4"})
    assert answer.status_code == 200 and "a &lt;b&gt;car&lt;/b&gt;" in answer.text and "seed 77" in answer.text
    graph = prompts(client)[0]
    assert [n["class_type"] for n in graph.values()] == ["model", "storyboard", "SaveImage", "sheet"]
    drawn = read_storyboard(Path(graph["1"]["inputs"]["path"]))
    assert [(x.prompt, x.seed, x.negative, x.steps, x.scale) for x in drawn] == [
        ("a red fox", 10, None, None, None), ("a <b>car</b>", 77, "fog", 3, None), ("a girl", 5, "blurry", None, None),
        ("a boy", 13, None, None, 2.5)]
    assert answer.text.count("<svg viewBox") == 4, "a place for every picture"
    assert graph["1"]["inputs"]["scale"] == 4.0 and graph["save"]["inputs"]["images"] == ["1", 0]
    for wrong, why in (("a fox --d seven", "picture 0"), ("\n".join("x" * 65), "at most 64"), ("# nothing", "no prompt")):
        refused = client.post("/studio/generate", data={"mode": "board", "prompt": wrong})
        assert refused.status_code == 422 and why in refused.text, refused.text


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [("p.txt", "a fox\tfog\t7\na car\n", "a fox --n fog --d 7\na car --d 1"),
     ("p.csv", "prompt,steps\na fox,9\n", "a fox --d 0 --s 9"), ("p.jsonl", '"a fox"\n', "a fox --d 0"),
     ("p.yaml", "- a <b>fox</b>\n- prompt: a car\n  scale: 2\n", "a &lt;b&gt;fox&lt;/b&gt; --d 0\na car --d 1 --l 2.0")])
def test_a_file_of_prompts_becomes_lines(client: TestClient, name: str, content: str, lines: str) -> None:
    answer = client.post("/studio/storyboard", files={"board": (name, content.encode())})
    assert answer.status_code == 200 and f">{lines}</textarea>" in answer.text, answer.text


@pytest.mark.parametrize(
    ("name", "content"),
    [("p.exe", b"x"), ("../../p.txt", b""), ("p.jsonl", b"{"), ("p.yaml", b"- [\n"), ("p.yaml", b"[" * 5000), ("p.txt", b"\xff\xfe\x00"),
     ("p.txt", b"x" * (2**20 + 1)), ("", b"")])
def test_a_file_that_is_no_storyboard_is_refused(client: TestClient, tmp_path: Path, name: str, content: bytes) -> None:
    answer = client.post("/studio/storyboard", files={"board": (name or "x", content)} if name else {"other": b"x"})
    assert answer.status_code == 422 and answer.headers["hx-retarget"] == "#made"
    assert not (tmp_path / "p.txt").exists() and not prompts(client)


def test_a_grid_has_up_to_three_axes(client: TestClient) -> None:
    given = {"prompt": "a car", "x": "scale", "x_values": "2,5", "y": "seed", "y_values": "7,8", "z": "steps", "z_values": "3,4,5"}
    answer = client.post("/studio/generate", data=given)
    cells = [n["inputs"] for n in prompts(client)[0].values() if n["class_type"] == "generate"]
    assert [(c["steps"], c["seeds"], c["scale"]) for c in cells] == [(z, [y], x) for z in (3, 4, 5) for y in (7, 8) for x in (2, 5)]
    assert answer.text.count("<table") == 3 and answer.text.count("<caption>") == 3


def ended(client: TestClient, outputs: dict[str, Any], state: str = "done") -> str:
    """The oldest prompt in the queue, ended with these results, as if a worker had run it."""
    id = str(client.get("/queue").json()["queue_pending"][0][1])
    studio = client.app.state.studio  # type: ignore[attr-defined]

    async def end() -> None:
        await studio.desk.finish(id, state, "[]", lambda: (json.dumps(outputs), []))

    assert client.portal is not None
    client.portal.call(end)
    return id


def made(client: TestClient, prompt: str, **more: str) -> tuple[str, dict[str, str]]:
    """A picture that was drawn from a prompt: its job and its name."""
    client.post("/studio/generate", data={"prompt": prompt, "count": "1", "seed": "3", **more})
    file = client.app.state.studio.shelves.output.path / f"{prompt[:5]}.png"  # type: ignore[attr-defined]
    Pil.new("RGB", (8, 8), "red").save(file)
    picture = {"filename": file.name, "subfolder": "", "type": "output"}
    return ended(client, {"1": {"images": [picture]}}), picture


def test_scores_are_asked_for_and_pictures_found_by_them(client: TestClient) -> None:
    jobs = {name: made(client, name) for name in ("foxes at night", "ships at sea", "trees")}
    answer = client.post("/studio/gallery/score", data={"picture": [f"{job} output/{p['filename']}" for job, p in jobs.values()]})
    assert "hx-get=\"/studio/gallery/scored/" in answer.text
    graph = prompts(client)[0]
    assert [n["class_type"] for n in graph.values()] == ["load_image", "score"] * 3
    assert graph["s0"]["inputs"]["by"] == ["clip", "colourfulness", "sharpness"]
    id = client.get("/queue").json()["queue_pending"][0][1]
    assert client.get(f"/studio/gallery/scored/{id}").status_code == 204
    output = client.app.state.studio.shelves.output.path  # type: ignore[attr-defined]
    for i, value in enumerate((0.1, 0.3, 0.2)):
        (output / f"s{i}").mkdir()
        (output / f"s{i}" / "scores.json").write_text(json.dumps({"scores": [{"clip": value, "sharpness": 9 - value}]}))
    ended(client, {f"s{i}": {"files": [{"filename": "scores.json", "subfolder": f"s{i}", "type": "output"}]} for i in range(3)})
    assert client.get(f"/studio/gallery/scored/{id}").headers["hx-trigger"] == "scored"

    def shown(**query: str) -> list[str]:
        return re.findall(r'<span title="([^"]+)', client.get("/studio/gallery/more", params=query).text)

    assert shown(order="score") == ["ships at sea", "trees", "foxes at night"]
    assert shown(order="score", by="sharpness") == ["foxes at night", "trees", "ships at sea"]
    assert shown(least="0.15", order="oldest") == ["ships at sea", "trees"]
    assert shown(order="score", q="night fox") == ["foxes at night"] and shown(least="5") == []
    assert shown() == ["trees", "ships at sea", "foxes at night"]
    assert "data-scored" in client.get("/studio/gallery").text
    (output / "s0" / "scores.json").unlink()
    assert shown(order="score")[-1] == "foxes at night", "what was read is kept"
    for wrong in ("nobody output/trees.png", f"{jobs['trees'][0]} output/../../queue.sqlite", ""):
        assert client.post("/studio/gallery/score", data={"picture": [wrong]}).status_code == 422, wrong


def test_the_gallery_finds_models_loras_and_grids(client: TestClient) -> None:
    made(client, "foxes")
    made(client, "ships", x="scale", x_values="2,5")
    client.post("/studio/generate", data={"mode": "board", "prompt": "trees\nclouds"})
    ended(client, {})
    more = "/studio/gallery/more"
    assert client.get(more, params={"model": "mini"}).text.count("<figure") == 2
    assert "No picture fits" in client.get(more, params={"lora": "none.safetensors"}).text
    grids, boards = (client.get(more, params={"show": show}).text for show in ("grids", "boards"))
    assert "<table" in grids and "ships" in grids and "foxes" not in grids
    assert "trees" in boards and "ships" not in boards
    assert 'lang="zh"' in client.get("/studio/gallery", headers={"accept-language": "zh"}).text


def test_the_gallery_tells_of_what_came_since(client: TestClient) -> None:
    def asked(page: str) -> str:
        return str(re.findall(r'class="newer" hx-get="([^"]+)', page)[0]).replace("&amp;", "&")

    first = asked(client.get("/studio/gallery").text)
    assert client.get(first).status_code == 204, "there is none yet"
    made(client, "foxes")
    came = client.get(first)
    assert came.headers["hx-retarget"] == "#wall" and came.text.count("<figure") == 1, "an empty wall is filled"
    second = asked(came.text)
    assert client.get(second).status_code == 204
    made(client, "ships")
    made(client, "trees")
    came = client.get(second)
    assert "hx-retarget" not in came.headers and "2 new pictures" in came.text and "<figure" not in came.text
    third = asked(client.get("/studio/gallery").text)
    client.post("/studio/generate", data={"prompt": "none", "count": "1"})
    ended(client, {})
    assert client.get(third).status_code == 204, "a prompt that made no picture"
    assert 'class="newer"' not in client.get("/studio/gallery", params={"order": "oldest"}).text
    assert client.get(f"{first}&known=x").status_code == 204


def test_two_pictures_are_compared_by_what_differs(client: TestClient) -> None:
    names = [f"output/{made(client, name)[1]['filename']}" for name in ("foxes", "ships")]
    answer = client.get("/studio/gallery/compare", params=dict(zip("ab", names, strict=True)))
    assert answer.status_code == 200 and "data-divides" in answer.text
    assert client.get("/studio/gallery/compare", params={"a": "output/../../x.png", "b": names[0]}).status_code in (400, 403, 404)


def test_duplicates_are_chosen_by_hand_and_no_file_is_touched(client: TestClient, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "people"
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    page = client.get("/studio/datasets/twins", params={"path": str(folder)}).text
    assert page.count('class="twins"') == 2 and "the same file" in page and "2 of 64 bits differ" in page
    pair = {"path": str(folder), "name": ["person-11.png", "person-11-small.jpg"]}
    answer = client.post("/studio/datasets/twins", data={**pair, "keep": "person-11-small.jpg"}).text
    assert re.search(r'value="person-11-small.jpg" checked', answer)
    shown = client.get("/studio/datasets", params={"path": str(folder), "show": "dropped"}).text
    assert "<b>person-11.png</b>" in shown and "left out by hand" in shown and "<b>person-11-small.jpg</b>" not in shown
    client.post("/studio/train", data={"path": str(folder), "steps": "3"})
    graph = prompts(client)[0]
    assert list(graph)[:3] == ["pictures", "curate", "choices"] and graph["choices"]["class_type"] == "choose_pictures"
    rows = [json.loads(x) for x in Path(graph["choices"]["inputs"]["path"]).read_text().splitlines()]
    assert rows == [{"file_name": "person-11-small.jpg", "text": "keep"}, {"file_name": "person-11.png", "text": "by hand"}]
    assert 'value="*" checked' in client.post("/studio/datasets/twins", data={**pair, "keep": "*"}).text
    client.post("/studio/datasets/twins", data={**pair, "keep": "person-11.png"})
    assert not Path(graph["choices"]["inputs"]["path"]).read_text(), "what would be so anyway is no choice"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert client.post("/studio/datasets/twins", data={"path": "/etc", "name": "x", "keep": "*"}).status_code == 403


def test_one_picture_is_left_out_and_taken_back(client: TestClient, tmp_path: Path) -> None:
    told = {"path": str(tmp_path / "data" / "people"), "name": "person-02.png"}
    assert "Take back" in client.post("/studio/datasets/choose", data={**told, "keep": ""}).text
    assert "by hand" in client.get("/studio/datasets", params={**told, "show": "dropped"}).text
    assert "Leave out" in client.post("/studio/datasets/choose", data={**told, "keep": "keep"}).text
    assert client.post("/studio/datasets/choose", data={**told, "name": "nobody.png"}).status_code == 404


def test_a_training_shows_what_the_store_has_of_it(client: TestClient, tmp_path: Path) -> None:
    client.post("/studio/train", data={"path": str(tmp_path / "data" / "people"), "steps": "16", "prompts": "a fox\na car\n"})
    knobs = prompts(client)[0]["train"]["inputs"]
    assert (knobs["prompts"], knobs["samples"], knobs["every"]) == (["a fox", "a car"], 2, 2)
    studio, recipe = client.app.state.studio, "0123456789abcdef"  # type: ignore[attr-defined]
    folder = current().folder(recipe)
    (folder / "samples").mkdir()
    for step in (0, 8):
        for i in range(2):
            Pil.new("RGB", (8, 8), "red").save(folder / "samples" / f"step-{step:06d}-{i}.png")
    lines = [{"step": 0, "held_out": 0.9, "low": 0.9, "high": 0.9}, *({"step": s, "loss": 1 / (s + 1), "lr": 0.1} for s in range(9))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"step": 9, "lo')
    (folder / "preflight.json").write_text(json.dumps({"peak": 2 * 10**9, "step": 0.5, "seconds": 70.0, "look": 1.0}))
    id = ended(client, {}, "cancelled")
    studio.curve(id).parent.mkdir(exist_ok=True)
    studio.curve(id).write_text(json.dumps({"recipe": recipe, "measured": []}))
    curve = client.get(f"/studio/train/{id}/curve").json()
    assert curve["steps"] == list(range(1, 10)) and curve["held"] == [[0, 0.9, 0.9, 0.9]] and curve["over"]
    looks = client.get(f"/studio/train/{id}/looks").text
    assert re.findall(r'<th scope="col">(\d+)', looks) == ["0", "8"] and looks.count("/sample/step-") == 4
    assert "a fox" in looks and "2 GB" in looks and "1 min 10 s" in looks and "every 3s" not in looks
    assert client.get(f"/studio/train/{id}/sample/step-000008-1.png").content[:4] == b"\x89PNG"
    for wrong in ("..%2f..%2fmetrics.jsonl", "metrics.jsonl", "step-000009-1.png"):
        assert client.get(f"/studio/train/{id}/sample/{wrong}").status_code == 404
    page = client.get("/studio/train").text
    assert "stopped" in page and f"/studio/train/{id}/resume" in page
    again = client.post(f"/studio/train/{id}/resume")
    assert again.status_code == 200 and prompts(client)[0] == json.loads(client.get(f"/history/{id}").text)[id]["prompt"][2]
    now = client.get("/queue").json()["queue_pending"][0][1]
    assert client.post(f"/studio/train/{now}/resume").status_code == 404, "it waits"
    assert client.get(f"/studio/train/{now}/looks", params={"seen": "0"}).status_code == 204
    shutil.rmtree(folder)


def test_a_training_that_ended_tells_what_was_hard(client: TestClient, tmp_path: Path) -> None:
    client.post("/studio/train", data={"path": str(tmp_path / "data" / "people"), "steps": "16"})
    id, store = ended(client, {}), current()
    record = {"loss": [[0, 1.0], [1, 0.5]], "held_out": [[0, 1.0, 1.0, 1.0], [2, 0.4, 0.3, 0.5]], "kept_step": 2,
              "samples": [{"step": 2, "prompt": "a <i>fox</i>", "file": "samples/step-000002-0.png"}],
              "hard": [[0, "person-01.png", "old", 9.0, 1], [2, "person-02.png", "a man", 1.42, 5]],
              "doubtful": [[2, "person-03.png", "a cat", 8.25], [2, "person-04.png", "fine", 0.5]]}
    picture = tmp_path / "sample.png"
    Pil.new("RGB", (8, 8), "red").save(picture)
    files = {"record.json": store.blob(json.dumps(record).encode(), ".json"), "samples/step-000002-0.png": store.blob(picture)}
    patch = Patch("lora", store.blob(b"weights"), files=files)
    store.put(patch, Made("f" * 32, "train_lora", "1", {}, {}))
    studio = client.app.state.studio  # type: ignore[attr-defined]
    studio.curve(id).parent.mkdir(exist_ok=True)
    studio.curve(id).write_text(json.dumps({"recipe": "f" * 32, "measured": []}))
    looks = client.get(f"/studio/train/{id}/looks").text
    assert "a &lt;i&gt;fox&lt;/i&gt;" in looks and re.search(r'class="kept">2 ✓', looks)
    assert "person-02.png" in looks and "1.42" in looks and "person-01.png" not in looks, "of the last look"
    assert "person-03.png" in looks and "8.25" in looks and "person-04.png" not in looks
    assert client.get(f"/studio/train/{id}/sample/step-000002-0.png").status_code == 200
    assert client.get(f"/studio/train/{id}/curve").json()["held"][1] == [2, 0.4, 0.3, 0.5]


def test_a_picture_tells_its_own_way_and_no_other(client: TestClient) -> None:
    _, picture = made(client, "foxes")
    node = {"version": "v1", "fingerprint": "", "about": {}, "value": ""}
    ours = {"target": "2", "index": 1, "nodes": {
        "1": {**node, "op": "model", "settings": {"name": "mini", "vae": None}, "inputs": {}},
        "2": {**node, "op": "generate", "settings": {"prompt": "a <b>fox</b>", "seeds": [7, 8]}, "inputs": {"model": "1"}}}}
    other = {"9": {"class_type": "generate", "inputs": {"prompt": "a car", "seeds": [1]}}}
    file = client.app.state.studio.shelves.output.path / picture["filename"]  # type: ignore[attr-defined]
    plain = file.read_bytes()
    for texts, there, gone in (({"prompt": json.dumps(other), OURS: json.dumps(ours)}, ["a &lt;b&gt;fox", "<dd>8</dd>"], ["a car", "vae"]),
                               ({"prompt": json.dumps(other)}, ["a car"], ["fox</"]), ({}, ["no graph"], ["generate"])):
        file.write_bytes(png_with_texts(plain, texts))
        told = client.get("/studio/gallery/why", params=picture).text
        assert all(x in told for x in there) and not any(x in told for x in gone), told
