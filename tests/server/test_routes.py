"""Every handler, on a server without workers."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safelight.server.reading import NODES
from tests.server.serving import drawing, nodes, still


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with still(tmp_path_factory.mktemp("server"), data=()) as client:
        yield client


@pytest.fixture(autouse=True)
def empty(client: TestClient) -> None:
    client.post("/queue", json={"clear": True, "pause": False})


def queue(client: TestClient, prompt: Any, **more: Any) -> Any:
    return client.post("/prompt", json={"prompt": prompt, **more})


def test_a_prompt_is_queued_bare_and_below_api(client: TestClient) -> None:
    first = client.post(
        "/prompt", json={"prompt": nodes(), "client_id": "me", "extra_data": {"extra_pnginfo": {"workflow": {"id": "w1"}}}}
    ).json()
    assert first["node_errors"] == {} and isinstance(first["number"], int)
    id = "11111111-2222-3333-4444-555555555555"
    second = client.post("/api/prompt", json={"prompt": drawing(), "prompt_id": id, "front": True}).json()
    assert second == {"prompt_id": id, "number": -first["number"] - 1, "node_errors": {}}
    half = queue(client, drawing(), number=0.5).json()
    assert half["number"] == 0.5 and queue(client, drawing(), prompt_id=id).status_code == 409
    assert client.get("/prompt").json() == {"exec_info": {"queue_remaining": 3}}
    told = client.get("/queue").json()
    assert told["queue_running"] == [] and [item[1] for item in told["queue_pending"]] == [id, half["prompt_id"], first["prompt_id"]]
    assert told["queue_pending"][2] == [
        first["number"],
        first["prompt_id"],
        nodes(),
        {"extra_pnginfo": {"workflow": {"id": "w1"}}, "client_id": "me"},
        ["7"],
    ]
    client.post("/queue", json={"move": {"id": first["prompt_id"], "before": id}, "delete": [half["prompt_id"], "unknown"]})
    assert [item[1] for item in client.get("/api/queue").json()["queue_pending"]] == [first["prompt_id"], id]
    assert client.post("/queue", json={"move": {"id": "nobody"}}).status_code == 400
    assert client.post("/interrupt").content == b"" and client.get("/prompt").json()["exec_info"]["queue_remaining"] == 2
    assert client.post("/queue", json={"clear": True}).content == b"" and client.get("/history").json() == {}


def wrong(client: TestClient, prompt: Any) -> tuple[str, dict[str, Any]]:
    answer = queue(client, prompt)
    assert answer.status_code == 400 and set(answer.json()) == {"error", "node_errors"}
    return answer.json()["error"]["type"], answer.json()


def changed(node: str, **inputs: Any) -> dict[str, Any]:
    prompt = nodes()
    prompt[node]["inputs"] |= inputs
    return prompt


def test_faults_are_told_as_comfyui_tells_them_with_the_reason_in_details(client: TestClient) -> None:
    assert wrong(client, None)[0] == "no_prompt" and wrong(client, [])[0] == "no_prompt"
    assert wrong(client, {})[0] == "prompt_no_outputs"
    kind, told = wrong(client, {"1": {"class_type": "KSamplr", "inputs": {}}})
    assert kind == "missing_node_type" and told["error"]["extra_info"]["class_type"] == "KSamplr" and "KSampler" in told["error"]["details"]
    for inputs, error in (
        ({"steps": 0}, "value_smaller_than_min"),
        ({"cfg": 1e6}, "value_bigger_than_max"),
        ({"sampler_name": "eulr"}, "value_not_in_list"),
        ({"model": "x"}, "bad_linked_input"),
        ({"steps": "many"}, "invalid_input_type"),
        ({"positive": ["4", 0]}, "return_type_mismatch"),
    ):
        kind, told = wrong(client, changed("5", **inputs))
        assert kind == "prompt_outputs_failed_validation" and told["node_errors"]["5"]["errors"][0]["type"] == error
        assert told["node_errors"]["5"]["dependent_outputs"] == ["7"] and next(iter(inputs)) in told["error"]["details"]
    assert wrong(client, changed("5", latent_image=["6", 0]))[0] in ("dependency_cycle", "prompt_outputs_failed_validation")
    assert wrong(client, changed("5", steps=5000))[0] == "invalid_prompt"
    assert client.get("/prompt").json()["exec_info"]["queue_remaining"] == 0


def test_outputs_without_faults_run_and_the_others_are_told_of(client: TestClient) -> None:
    prompt = nodes()
    prompt["8"] = {"class_type": "LoadImage", "inputs": {"image": "none.png"}}
    prompt["9"] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "x"}}
    told = queue(client, prompt).json()
    assert set(told["node_errors"]) == {"8"} and told["node_errors"]["8"]["dependent_outputs"] == ["9"]
    assert "none.png" in told["node_errors"]["8"]["errors"][0]["details"]
    assert client.get("/queue").json()["queue_pending"][0][4] == ["7"]
    part = queue(client, {**prompt, "8": prompt["7"]}, partial_execution_targets=["8"]).json()
    assert part["node_errors"] == {} and client.get("/queue").json()["queue_pending"][1][4] == ["8"]


def test_paths_in_prompts_stay_in_the_folders_they_may_use(client: TestClient, tmp_path: Path) -> None:
    for path in ("/etc/passwd", "../../../../etc/passwd", "~/.ssh/id_rsa", str(tmp_path)):
        prompt = {"1": {"class_type": "load_image", "inputs": {"path": path}}}
        assert "--data" in wrong(client, prompt)[1]["error"]["details"]
        assert (
            "--data"
            in wrong(client, {"1": {"class_type": "generate", "inputs": {"model": "mini", "image": str(tmp_path), "prompt": "x"}}})[1][
                "error"
            ]["details"]
        )
    assert wrong(client, changed("7", filename_prefix=["1"]))[0] == "prompt_outputs_failed_validation"


@pytest.mark.parametrize("raw", [b"", b"x", b"[1]", b'{"prompt":{"1":{"class_type":NaN}}}', b'{"prompt":{},"prompt":{}}', b'{"a":' * 99])
def test_what_is_no_sound_json_is_refused(client: TestClient, raw: bytes) -> None:
    answer = client.post("/prompt", content=raw)
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_a_prompt_of_too_many_nodes_is_refused_at_once(client: TestClient) -> None:
    one = {"class_type": "ImageInvert", "inputs": {}}
    begun = time.process_time()
    for count in (NODES + 1, 100_000):
        assert wrong(client, {str(i): one for i in range(count)})[0] == "invalid_prompt"
    chain = {str(i): {"class_type": "ImageInvert", "inputs": {"image": [str(i - 1), 0]}} for i in range(1, NODES - 1)}
    chain["0"] = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    chain["end"] = {"class_type": "SaveImage", "inputs": {"images": [str(NODES - 2), 0], "filename_prefix": "x"}}
    assert queue(client, chain).status_code == 200
    chain["0"]["inputs"] = {"width": "x"}
    assert wrong(client, chain)[1]["node_errors"]["0"]["dependent_outputs"] == ["end"]
    assert time.process_time() - begun < 30


LINK = st.lists(st.sampled_from(["1", "2", "3", 0, 1, -1, None, "x"]), max_size=3)
VALUE = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6) | LINK
)
KIND = st.sampled_from(
    ["KSampler", "LoadImage", "SaveImage", "EmptyImage", "ImageInvert", "generate", "load_image", "pick", "nothing", "", None, 3]
)
NAME = st.sampled_from(["images", "image", "width", "path", "seed", "model", "filename_prefix", "indices", "x"])
NODE = st.fixed_dictionaries({"class_type": KIND, "inputs": st.dictionaries(NAME, VALUE, max_size=4)}) | st.none() | st.just([])


@given(st.dictionaries(st.sampled_from(["1", "2", "3", "x", ""]), NODE, max_size=5) | VALUE)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_graph_breaks_the_server(client: TestClient, prompt: Any) -> None:
    answer = queue(client, prompt)
    assert answer.status_code in (200, 400) and "node_errors" in answer.json()


def test_node_classes_are_listed_and_are_asked_for_one_by_one(client: TestClient) -> None:
    every = client.get("/object_info").json()
    assert {"KSampler", "SaveImage", "generate", "train_lora"} <= set(every)
    assert client.get("/api/object_info/KSampler").json() == {"KSampler": every["KSampler"]}
    assert client.get("/object_info/Nobody").json() == {} and client.get("/object_info/a/b").json() == {}


def test_what_there_is(client: TestClient) -> None:
    assert "checkpoints" in client.get("/models").json() and client.get("/models/checkpoints").json() == []
    assert client.get("/models/nothing").status_code == 404 and client.get("/embeddings").json() == []
    assert {"name", "folders"} == set(client.get("/experiment/models").json()[0])
    found = client.get("/experiment/models/controlnet").json()
    assert found[0]["name"] == "mini-edges.safetensors" and found[0]["size"] > 0
    assert client.get("/view_metadata/controlnet", params={"filename": "none.safetensors"}).status_code == 404
    stats = client.get("/system_stats").json()
    assert stats["system"]["ram_total"] > 0 and stats["devices"] == []
    flags = client.get("/features").json()
    assert flags["assets"] is False and flags["supports_preview_metadata"]
    assert client.get("/extensions").json() == [] and client.get("/i18n").json() == {} and client.get("/global_subgraphs").json() == {}
    assert client.get("/internal/files/input").json() == [] and client.get("/internal/files/x").status_code == 400
    assert (
        "checkpoints" in client.get("/internal/folder_paths").json()
        and client.patch("/internal/logs/subscribe", json={}).status_code == 200
    )
    assert client.get("/nowhere").status_code == 404 and client.post("/free", json={"unload_models": True}).content == b""
    assert client.get("/manager/version").status_code == 404 and client.get("/").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert "/prompt" in paths and "/v1/images/generations" in paths and not [p for p in paths if "install" in p]


def test_jobs_are_listed_searched_and_cancelled(client: TestClient) -> None:
    for prompt in (nodes(), drawing(prompt="a blue whale"), drawing(prompt="a red whale")):
        queue(client, prompt)
    told = client.get("/api/jobs", params={"status": "pending", "sort_order": "asc"}).json()
    assert told["pagination"] == {"offset": 0, "limit": 1000, "total": 3, "has_more": False}
    assert all(isinstance(j["create_time"], int) and j["status"] == "pending" for j in told["jobs"])
    assert [
        len(client.get("/api/jobs", params={"q": q, "status": "pending"}).json()["jobs"])
        for q in ("whale", "red whale", "ksampler", "mini", "cow")
    ] == [2, 1, 1, 3, 0]
    assert client.get("/api/jobs", params={"until": 5, "status": "pending"}).json()["jobs"] == []
    for bad in ({"status": "lost"}, {"limit": 0}, {"limit": "x"}, {"offset": -1}, {"sort_by": "luck"}, {"sort_order": "up"}):
        assert client.get("/api/jobs", params=bad).status_code == 400
    one = told["jobs"][1]["id"]
    assert client.get(f"/api/jobs/{one}").json()["workflow"]["prompt"] == drawing(prompt="a blue whale")
    assert client.get("/api/jobs/none").json() == {"error": "Job not found"} and client.get("/jobs").status_code == 404
    assert (
        client.post(f"/api/jobs/{one}/cancel").json()
        == {"cancelled": True}
        == client.post("/api/jobs/cancel", json={"job_ids": [told["jobs"][0]["id"]]}).json()
    )
    assert (
        client.post(f"/api/jobs/{one}/cancel").json() == {"cancelled": False}
        and client.get(f"/api/jobs/{one}").json()["status"] == "cancelled"
    )
    assert client.post("/api/jobs/cancel", json={"job_ids": [1]}).json()["invalid_ids"] == [1]
    assert client.get("/history").json() == {}  # what never ran is not there
    state = client.get("/api/safelight/queue").json()
    assert state == {"paused": False, "remaining": 1, "workers": [], "progress": {}}
    client.post("/queue", json={"pause": True})
    assert client.get("/api/safelight/queue").json()["paused"]


def test_openai_refuses_in_its_own_words(client: TestClient) -> None:
    assert client.get("/v1/models").json()["data"][0]["id"] == "mini" and client.get("/v1/models/mini").json()["object"] == "model"
    for body in (
        {},
        {"prompt": ""},
        {"prompt": "x", "n": 0},
        {"prompt": "x", "n": "two"},
        {"prompt": "x", "size": "big"},
        {"prompt": "x", "stream": True},
        {"prompt": "x", "model": "nobody"},
        {"prompt": 3},
        {"prompt": "x", "response_format": "gif"},
        {"prompt": "x", "size": "9000x9000"},
    ):
        answer = client.post("/v1/images/generations", json=body)
        assert answer.status_code == 400 and answer.json()["error"]["type"] == "invalid_request_error", body
    assert client.post("/v1/images/edits", data={"prompt": "x"}).status_code == 400 and client.get("/v1/models/x").status_code == 400


def test_automatic1111_lists_and_refuses(client: TestClient) -> None:
    assert "Euler a" in [s["name"] for s in client.get("/sdapi/v1/samplers").json()] and client.get("/sdapi/v1/loras").json() == []
    assert "karras" in [s["name"] for s in client.get("/sdapi/v1/schedulers").json()]
    assert client.get("/sdapi/v1/sd-models").json()[0]["title"] == "mini" == client.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "nobody"}).status_code == 400
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "mini"}).json() == {}
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0 and client.post("/sdapi/v1/interrupt").json() == {}
    for path, body in (
        ("txt2img", {"sampler_name": "Magic"}),
        ("txt2img", {"batch_size": 100}),
        ("img2img", {}),
        ("img2img", {"init_images": ["%"]}),
        ("png-info", {"image": "eA=="}),
        ("txt2img", {"steps": "x"}),
        ("img2img", {"init_images": ["eA=="]}),
    ):
        assert client.post(f"/sdapi/v1/{path}", json=body).status_code == 400, (path, body)


def test_a_full_queue_refuses_with_507(tmp_path: Path) -> None:
    with still(tmp_path, waiting=2) as client:
        assert [queue(client, drawing()).status_code for _ in range(4)] == [200, 200, 507, 507]
        assert queue(client, drawing()).json()["error"]["type"] == "queue_full"


def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    with still(tmp_path) as client:
        ids = [queue(client, drawing(i)).json()["prompt_id"] for i in range(5)]
    with still(tmp_path) as client:
        assert [item[1] for item in client.get("/queue").json()["queue_pending"]] == ids


def test_sockets_hear_the_state_and_a_second_one_takes_over(client: TestClient) -> None:
    with client.websocket_connect("ws://127.0.0.1/ws?clientId=me") as first:
        assert first.receive_json() == {"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}, "sid": "me"}}
        first.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        assert first.receive_json()["type"] == "feature_flags"
        queue(client, drawing())
        assert first.receive_json()["data"]["status"]["exec_info"]["queue_remaining"] == 1
        with client.websocket_connect("ws://127.0.0.1/api/ws?clientId=me") as second:
            assert second.receive_json()["data"]["sid"] == "me"
            first.close()
            client.post("/queue", json={"clear": True})
            assert second.receive_json()["data"]["status"]["exec_info"]["queue_remaining"] == 0
    with client.websocket_connect("ws://127.0.0.1/ws") as nameless:
        assert len(nameless.receive_json()["data"]["sid"]) == 32


def test_settings_of_our_ops_are_checked_before_they_are_queued(client: TestClient) -> None:
    for inputs, kind in (
        ({"steps": 0}, "value_smaller_than_min"),
        ({"sampler": "eulr"}, "value_not_in_list"),
        ({"steps": "many"}, "invalid_input_type"),
        ({"image": ["9", 0]}, "bad_linked_input"),
        ({"colour": 1}, "custom_validation_failed"),
    ):
        prompt = drawing()
        prompt["1"]["inputs"] |= inputs
        told = wrong(client, prompt)[1]
        assert told["error"]["details"] and (kind == "bad_linked_input" or told["node_errors"]["1"]["errors"][0]["type"] == kind), told


def test_strange_numbers_and_texts_break_nothing(client: TestClient) -> None:
    for path in (
        "/history?max_items=1e9",
        f"/history?offset={10**30}",
        "/history?max_items=x",
        f"/api/jobs?offset={10**30}",
        "/api/jobs?since=nan",
    ):
        assert client.get(path).status_code in (200, 400), path
    assert client.post("/prompt", content=b'{"prompt":{"\\ud800":{"class_type":"\\ud800"}}}').status_code == 400
    deep = {"original_ref": "[" * 100_000}
    assert client.post("/upload/mask", files={"image": ("a.png", b"x")}, data=deep).status_code == 400
    for n in ("nan", "inf", "1e999", "x", "-1"):
        assert client.post("/v1/images/edits", files={"image": ("a.png", b"x")}, data={"prompt": "x", "n": n}).status_code == 400
    assert queue(client, drawing(), number=1e308).json()["number"] == 1e308 and client.get("/queue").status_code == 200
    assert wrong(client, {"1": {"class_type": "load_image", "inputs": {"path": "/etc/\0passwd"}}})[0] == "prompt_outputs_failed_validation"


def test_two_servers_never_share_a_queue(tmp_path: Path) -> None:
    with still(tmp_path), pytest.raises(ValueError, match="another server"), still(tmp_path):
        pass


@pytest.mark.parametrize("name", ["default", "mixed", "subgraph", "group"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_an_editors_workflow_becomes_a_prompt(tmp_path: Path, name: str, wrapped: bool) -> None:
    workflows = Path(__file__).parents[1] / "comfy" / "workflows"
    workflow, prompt = (json.loads((workflows / f"{name}{end}.json").read_text("utf-8")) for end in ("", ".api"))
    with still(tmp_path) as client:
        found = client.post("/workflow/convert", json={"workflow": workflow} if wrapped else workflow)
        assert found.status_code == 200 and found.json().keys() == prompt.keys()
        assert {k: v["class_type"] for k, v in found.json().items()} == {k: v["class_type"] for k, v in prompt.items()}
        assert client.post("/workflow/convert", json={"nodes": 3, "links": []}).status_code == 400


def test_a_mistake_of_ours_is_no_clients_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with still(tmp_path) as client:
        app: Any = client.app
        app.add_api_route("/v1/mistake", lambda: {}["of ours"])
        answer = client.get("/v1/mistake")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error" and "of ours" not in answer.text
    assert "GET /v1/mistake" in caplog.text and "KeyError: 'of ours'" in caplog.text
