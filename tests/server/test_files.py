"""Names that come from outside, pictures that come from outside, and what users keep."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image as Pil
from PIL.PngImagePlugin import PngInfo

from safelight.server.files import Names, Outside, Root
from tests.server.serving import still

PARTS = st.sampled_from(
    ["..", ".", "", "a", "b.png", "link", "%2e%2e", "..\\", "C:", "\0", "~", "con", "a" * 300, "é", "\n", "/"]
) | st.text(max_size=8)


def png(colour: str = "red", side: int = 8, mode: str = "RGB", **texts: str) -> bytes:
    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    out = io.BytesIO()
    Pil.new(mode, (side, side), colour).save(out, "PNG", pnginfo=info)
    return out.getvalue()


@given(st.lists(PARTS, min_size=1, max_size=6))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_no_name_leads_out_of_its_folder(tmp_path: Path, parts: list[str]) -> None:
    inner = tmp_path / "root"
    inner.mkdir(exist_ok=True)
    if not (inner / "link").is_symlink():
        (inner / "link").symlink_to(tmp_path)
    try:
        found = Root(inner).find("/".join(parts))
    except Outside:
        return
    assert found.resolve().is_relative_to(inner) and ".." not in found.parts


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    with still(tmp_path) as client:
        yield client


def send(
    client: TestClient, content: bytes, name: str = "a.png", path: str = "/upload/image", **fields: str
) -> tuple[int, dict[str, str]]:
    answer = client.post(path, files={"image": (name, content)}, data=fields)
    return answer.status_code, answer.json()


def test_uploads_are_decoded_first_and_never_overwrite_by_chance(client: TestClient, tmp_path: Path) -> None:
    red, blue = png(), png("blue")
    assert send(client, red) == (200, {"name": "a.png", "subfolder": "", "type": "input"})
    assert send(client, red)[1]["name"] == "a.png"
    assert send(client, blue)[1]["name"] == "a (1).png"
    assert send(client, blue)[1]["name"] == "a (1).png"
    assert send(client, blue, overwrite="true")[1]["name"] == "a.png"
    assert send(client, red, "c:\\x\\b.png", subfolder="pasted/today", path="/api/upload/image")[1] == {
        "name": "b.png",
        "subfolder": "pasted/today",
        "type": "input",
    }
    assert (tmp_path / "input" / "pasted" / "today" / "b.png").read_bytes() == red
    for bad in (b"", b"<svg onload=alert(1)>", red[:40], b"GIF89a" + b"\0" * 20, b"%PDF-1.4"):
        status, told = send(client, bad)
        assert status == 400 and "picture" in told["error"]
    assert send(client, red, subfolder="../../out")[0] == 403 and send(client, red, type="elsewhere")[0] == 400
    assert client.post("/upload/image", data={"type": "input"}).status_code == 400
    assert sorted(p.name for p in (tmp_path / "input").iterdir()) == ["a (1).png", "a.png", "pasted"]


def test_a_bomb_is_refused(client: TestClient) -> None:
    bomb = bytearray(png(side=1))
    bomb[16:24] = (40_000).to_bytes(4, "big") * 2
    status, told = send(client, bytes(bomb))
    assert status == 400 and "error" in told


def test_masks_are_the_originals_colours_with_the_new_transparency(client: TestClient, tmp_path: Path) -> None:
    send(client, png("red", prompt='{"1":{}}'))
    ref = json.dumps({"filename": "a.png", "subfolder": "", "type": "input"})
    mask = png((0, 0, 0, 77), mode="RGBA")  # type: ignore[arg-type]
    status, told = send(client, mask, "m.png", "/upload/mask", subfolder="clipspace", original_ref=ref)
    assert status == 200 and told == {"name": "m.png", "subfolder": "clipspace", "type": "input"}
    made = Pil.open(tmp_path / "input" / "clipspace" / "m.png")
    assert made.getpixel((0, 0)) == (255, 0, 0, 77) and made.text == {"prompt": '{"1":{}}'}  # type: ignore[attr-defined]
    for ref in ("{}", "[]", "x", json.dumps({"filename": "../../etc/passwd", "type": "input"}), json.dumps({"filename": "no.png"})):
        assert send(client, mask, "m.png", "/upload/mask", original_ref=ref)[0] in (400, 403, 404)


def test_pictures_are_attachments_or_made_anew(client: TestClient, tmp_path: Path) -> None:
    content = png("green", prompt="{}")
    send(client, content)
    plain = client.get("/view", params={"filename": "a.png", "type": "input", "rand": "0.3"})
    assert plain.content == content and plain.headers["content-disposition"] == 'attachment; filename="a.png"'
    assert (
        plain.headers["content-type"] == "image/png" and plain.headers["x-content-type-options"] == "nosniff" and "etag" in plain.headers
    )
    assert client.get("/api/view", params={"filename": "a.png [input]"}).content == content
    for preview, form in (("webp;75", "WEBP"), ("jpeg;80", "JPEG"), ("x", "WEBP")):
        seen = client.get("/view", params={"filename": "a.png", "type": "input", "preview": preview})
        assert Pil.open(io.BytesIO(seen.content)).format == form and b"{}" not in seen.content
    alpha = Pil.open(io.BytesIO(client.get("/view", params={"filename": "a.png", "type": "input", "channel": "a"}).content))
    assert alpha.mode == "RGBA" and alpha.getpixel((0, 0)) == (0, 0, 0, 255)
    (tmp_path / "output" / "page.svg").write_text("<svg onload='alert(1)'/>")
    page = client.get("/view", params={"filename": "page.svg"})
    assert page.headers["content-type"] == "application/octet-stream" and page.headers["content-disposition"].startswith("attachment")
    assert client.get("/view", params={"filename": "page.svg", "preview": "webp"}).status_code == 400


def test_nothing_outside_is_shown(client: TestClient, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    os.symlink(tmp_path / "secret.png", tmp_path / "output" / "link.png")
    wanted = {
        "../secret.png": 403,
        "/etc/passwd": 403,
        "..\\secret.png": 403,
        "link.png": 403,
        "a/../../secret.png": 403,
        "none.png": 404,
        "": 404,
        "C:\\x.png": 403,
        "../user/settings.json": 403,
        "a" * 999: 403,
    }
    assert {n: client.get("/view", params={"filename": n}).status_code for n in wanted} == wanted
    assert client.get("/view", params={"filename": "secret.png", "subfolder": ".."}).status_code == 403
    assert client.get("/view", params={"filename": "secret.png", "type": "home"}).status_code == 400


def test_users_keep_files_and_settings(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/users").json() == {"storage": "server", "migrated": True}
    assert client.get("/userdata", params={"dir": "workflows"}).status_code == 404 and client.get("/userdata").status_code == 400
    assert client.post("/api/userdata/workflows%2Fa.json", content=b'{"x":1}').json() == "workflows/a.json"
    assert client.post("/userdata/workflows%2Fa.json?overwrite=false", content=b"{}").status_code == 409
    full = client.post("/userdata/workflows%2Fsub%2Fb.json?full_info=true", content=b"{}").json()
    assert full["path"] == "workflows/sub/b.json" and full["size"] == 2 and isinstance(full["modified"], int)
    assert client.get("/userdata", params={"dir": "workflows"}).json() == ["a.json"]
    deep = {"dir": "workflows", "recurse": "true"}
    assert client.get("/userdata", params=deep).json() == ["a.json", "sub/b.json"]
    assert client.get("/userdata", params={**deep, "split": "true"}).json()[1] == ["sub/b.json", "sub", "b.json"]
    assert [f["name"] for f in client.get("/v2/userdata", params={"path": "workflows"}).json()] == ["a.json", "sub"]
    got = client.get("/userdata/workflows%2Fa.json")
    assert got.json() == {"x": 1} and got.headers["content-disposition"].startswith("attachment")
    assert client.post("/userdata/workflows%2Fa.json/move/workflows%2Fc.json").json() == "workflows/c.json"
    assert client.delete("/userdata/workflows%2Fc.json").status_code == 204 and client.delete("/userdata/no").status_code == 404
    client.post("/settings", json={"Comfy.A": 1, "b": [2]})
    assert client.post("/settings/Comfy.C", content=b'"x"').status_code == 200
    assert client.get("/api/settings").json() == {"Comfy.A": 1, "b": [2], "Comfy.C": "x"} and client.get("/settings/none").json() is None
    for path in ("..%2Fsettings.json", "%2Fetc%2Fpasswd", "..%2F..%2Fqueue.sqlite"):
        assert (
            client.get(f"/userdata/{path}").status_code in (403, 404)
            and client.post(f"/userdata/{path}", content=b"x").status_code == 403
        )
    assert (tmp_path / "user" / "settings.json").is_file()


def test_free_names_count_up_for_each_prefix(tmp_path: Path) -> None:
    names = Names()
    (tmp_path / "shot_00007_.png").touch()
    (tmp_path / "sub").mkdir()

    def free(*staged: str) -> list[str]:
        chosen: dict[str, str] = {}
        made = [names.free(tmp_path, name, chosen) for name in staged]
        for place in made:
            place.touch()
        return [place.relative_to(tmp_path).as_posix() for place in made]

    assert free("shot_00001_.png", "shot_00002_.png", "sub/shot_00001_.png", "other_00009_.png") == [
        "shot_00008_.png", "shot_00009_.png", "sub/shot_00001_.png", "other_00001_.png"]
    (tmp_path / "shot_00010_.png").touch()
    assert free("shot_00001_.png") == ["shot_00011_.png"]
    assert free("page.html") + free("page.html") == ["page.html", "page_00001_.html"]
    model = ("m_00001_/unet/config.json", "m_00001_/vae/config.json")
    assert free(*model) + free(*model) == [*model, "m_00002_/unet/config.json", "m_00002_/vae/config.json"]
