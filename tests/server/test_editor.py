"""The node editor's files, policy and addresses. The package itself is not needed: a small one of the same shape is installed."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from safelight.server import editor
from tests.server.serving import nodes, still

SCRIPT = "document.title = 'x'"
INDEX = f'<!doctype html><script>{SCRIPT}</script><script type="module" src="./assets/index.js"></script><body></body>'


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of packages that holds one of the frontend's name; the real one, where it is installed, comes after it."""
    static = tmp_path / "site" / "comfyui_frontend_package" / "static"
    (static / "assets").mkdir(parents=True)
    (static / "index.html").write_text(INDEX)
    (static / "assets" / "index.js").write_text("export {};")
    (static.parent / "secret.txt").write_text("not for browsers")
    (static / "assets" / "link.js").symlink_to(static.parent / "secret.txt")
    about = tmp_path / "site" / "comfyui_frontend_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.4\nName: comfyui_frontend_package\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    editor.frontend.cache_clear()
    editor.policy.cache_clear()
    yield static
    editor.frontend.cache_clear()
    editor.policy.cache_clear()


def test_the_page_comes_with_a_policy_that_keeps_it_here(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        assert client.get("/editor", follow_redirects=False).headers["location"] == "/editor/"
        page = client.get("/editor/")
        assert page.status_code == 200 and page.text == INDEX
        rules = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
        digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
        assert rules["default-src"] == "'none'"
        assert rules["script-src"].split() == ["'self'", "'wasm-unsafe-eval'", f"'sha256-{digest}'"]
        assert not re.search(r"https?:|\*|'unsafe-eval'", page.headers["content-security-policy"])
        assert client.get("/editor/assets/index.js").headers["content-type"].startswith("text/javascript")
        assert client.get("/assets/index.js").text == "export {};", "icons are asked for without the page's folder"
        assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("name", ["assets/link.js", "..%2fsecret.txt", "%2e%2e/secret.txt", "assets", "nothing.js", "%2fetc%2fpasswd"])
def test_no_other_file_is_handed_out(site: Path, tmp_path: Path, name: str) -> None:
    with still(tmp_path / "home") as client:
        for address in (f"/editor/{name}", f"/assets/{name}"):
            answer = client.get(address)
            assert answer.status_code == 404 and not answer.content


def test_the_routes_of_the_server_are_below_the_editor_too(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        assert client.get("/editor/api/object_info/KSampler").json() == client.get("/object_info/KSampler").json() != {}
        wrong = nodes(steps=0)
        answer = client.post("/editor/api/prompt", json={"prompt": wrong})
        assert answer.status_code == 400 and answer.json() == client.post("/prompt", json={"prompt": wrong}).json()
        assert list(answer.json()["node_errors"]) == ["5"]
        client.post("/editor/api/prompt", json={"prompt": nodes()})
        assert len(client.get("/queue").json()["queue_pending"]) == 1
        with client.websocket_connect("ws://127.0.0.1/editor/ws?clientId=one") as socket:
            assert socket.receive_json()["data"]["sid"] == "one"


def test_the_editor_is_behind_the_guard(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        assert client.get("/editor/", headers={"host": "evil.example"}).status_code == 403
        assert client.post("/editor/api/prompt", json={}, headers={"origin": "http://evil.example"}).status_code == 403


def test_settings_that_ask_elsewhere_are_off_until_the_user_turns_them_on(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        told = client.get("/editor/api/settings").json()
        assert told["Comfy.Notification.ShowVersionUpdates"] is False
        assert client.post("/editor/api/settings", json={"Comfy.Notification.ShowVersionUpdates": True}).status_code == 200
        assert client.get("/editor/api/settings").json()["Comfy.Notification.ShowVersionUpdates"] is True
        assert client.get("/settings").json() == {"Comfy.Notification.ShowVersionUpdates": True}, "clients of the API see their own alone"


def test_the_first_graph_is_for_the_embedded_model(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        (script,) = client.get("/editor/api/extensions").json()
        assert client.get("/extensions").json() == []
        text = client.get(f"/editor{script}").text
        assert '"CheckpointLoaderSimple"' in text and '["mini"]' in text
        offered = client.get("/object_info/CheckpointLoaderSimple").json()["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
        assert offered == ["mini"]


def test_what_a_new_user_does_not_have_is_empty(site: Path, tmp_path: Path) -> None:
    with still(tmp_path / "home") as client:
        client.get("/editor/")
        assert client.get("/editor/api/userdata?dir=workflows").json() == []
        assert client.get("/editor/api/userdata/comfy.templates.json").json() == []
        assert client.get("/editor/api/userdata/user.css").status_code == 200
        assert client.post("/editor/api/userdata/comfy.templates.json", content=b"[1]").status_code == 200
        assert client.get("/editor/api/userdata/comfy.templates.json").json() == [1]
        assert client.get("/userdata/other.json").status_code == 404


def test_without_the_package_the_page_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(editor, "PACKAGE", "a-package-that-nobody-has")
    editor.frontend.cache_clear()
    try:
        with still(tmp_path / "home") as client:
            answer = client.get("/editor/")
            assert answer.status_code == 404 and "pip install 'safelight[comfy]'" in answer.text
    finally:
        editor.frontend.cache_clear()
