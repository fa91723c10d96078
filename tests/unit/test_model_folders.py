"""Model folders as users have them: what is listed, where a name leads, what is remembered of files."""
from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import safelight as sl
from safelight import folders, index
from safelight.cli import cli, status
from safelight.families.listing import listed
from safelight.runtime import release
from tests import checkpoints as c
from tests import tiny


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder without models, an own home, an own cache of Hugging Face."""
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("SAFELIGHT_MODELS", "SAFELIGHT_FOLLOW_LINKS"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path


def fill(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return root


def old(path: Path) -> Path:
    """As if it had been written a while ago."""
    then = time.time_ns() - 60 * 10**9
    os.utime(path, ns=(then, then))
    return path


# Listing.


def test_names_are_listed_as_comfyui_lists_them(place: Path) -> None:
    root = fill(place / "models", "checkpoints/b.safetensors", "checkpoints/sub/deep/a.ckpt", "checkpoints/C.SAFETENSORS",
                "checkpoints/notes.txt", "checkpoints/.cache/x.safetensors", "unet/u.sft", "diffusion_models/v.safetensors")
    fill(root, "clip/t.safetensors", "loras/x/y.pt")
    found = folders.roots(root)
    assert found.names("checkpoints") == ["C.SAFETENSORS", "b.safetensors", "sub/deep/a.ckpt"]
    assert found.names("diffusion_models") == found.names("unet") == ["u.sft", "v.safetensors"]
    assert (found.names("clip"), found.names("loras"), found.names("vae")) == (["t.safetensors"], ["x/y.pt"], [])
    with pytest.raises(ValueError, match=r"no kind 'checkpoint'.*checkpoints"):
        found.names("checkpoint")


def test_webui_folders_are_read_where_its_program_lies(place: Path) -> None:
    root = fill(place / "webui", "models/Stable-diffusion/a.safetensors", "models/Lora/l.safetensors", "models/LyCORIS/k.safetensors",
                "models/VAE/v.pt", "models/ESRGAN/4x.pth", "embeddings/bad.pt", "models/ControlNet/c.safetensors")
    found = folders.roots(root)
    assert {kind: found.names(kind) for kind in ("checkpoints", "loras", "vae", "upscale_models", "embeddings", "controlnet")} == {
        "checkpoints": ["a.safetensors"], "loras": ["k.safetensors", "l.safetensors"], "vae": ["v.pt"], "upscale_models": ["4x.pth"],
        "embeddings": ["bad.pt"], "controlnet": ["c.safetensors"],
    }


YAML = """
comfyui:
    base_path: ../other
    is_default: true
    checkpoints: models/checkpoints/
    loras: |
        models/loras
        more loras
    custom_nodes: custom_nodes
    my_kind: mine
a111:
    base_path:
    vae: {absolute}
    clip: tower
    embeddings:
"""


def test_extra_model_paths(place: Path) -> None:
    base = fill(place / "models", "checkpoints/same.safetensors", "checkpoints/first.safetensors")
    other = fill(place / "other", "models/checkpoints/same.safetensors", "models/loras/l.safetensors", "more loras/m.safetensors")
    fill(other, "mine/x.bin")
    fill(place / "far", "v.safetensors")
    fill(place / "conf", "tower/t.safetensors")
    path = place / "conf" / "extra_model_paths.yaml"
    path.write_text(YAML.format(absolute=place / "far"))
    found = folders.roots(base, path)
    assert found.names("checkpoints") == ["first.safetensors", "same.safetensors"]
    assert found.find("checkpoints", "same.safetensors").samefile(other / "models/checkpoints/same.safetensors")
    assert found.names("loras") == ["l.safetensors", "m.safetensors"]
    assert (found.names("vae"), found.names("text_encoders"), found.names("my_kind")) == (["v.safetensors"], ["t.safetensors"], ["x.bin"])
    assert "custom_nodes" not in found.places
    for broken in ("- a\n- b", "a: [", "a: text"):
        path.write_text(broken)
        with pytest.raises(ValueError, match=r"extra_model_paths\.yaml"):
            folders.roots(path)


def test_roots_come_from_the_environment_or_lie_around(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = folders.current()
    assert {kind: found.names(kind) for kind, places in found.places.items() if places} == {"controlnet": ["mini-edges.safetensors"]}
    fill(place / "home" / "models", "loras/of-home.safetensors")
    fill(place / "here" / "models", "loras/of-here.safetensors")
    assert folders.current().names("loras") == ["of-here.safetensors", "of-home.safetensors"]
    fill(place / "named", "loras/of-name.safetensors")
    monkeypatch.setenv("SAFELIGHT_MODELS", os.pathsep.join([str(place / "named"), str(place / "home" / "models")]))
    assert folders.current().names("loras") == ["of-home.safetensors", "of-name.safetensors"]
    monkeypatch.setenv("SAFELIGHT_MODELS", str(place / "missing"))
    with pytest.raises(ValueError, match="there is no folder"):
        folders.current()


# Where a name leads.


def test_a_name_may_be_whole_short_or_the_last_part(place: Path) -> None:
    root = fill(place / "models", "checkpoints/sub/foo.safetensors", "checkpoints/bar.safetensors")
    fill(root, "checkpoints/x/twin.ckpt", "checkpoints/y/twin.ckpt")
    found, base = folders.roots(root), root / "checkpoints"
    for name in ("sub/foo.safetensors", "sub\\foo.safetensors", "sub/foo", "foo", "foo.safetensors"):
        assert found.find("checkpoints", name) == base / "sub/foo.safetensors"
    with pytest.raises(ValueError, match=r"not the only one: x/twin\.ckpt, y/twin\.ckpt"):
        found.find("checkpoints", "twin")
    with pytest.raises(ValueError, match=r"no checkpoints 'barr'.*near are bar\.safetensors"):
        found.find("checkpoints", "barr")


OUT = ["../secret.safetensors", "sub/../../secret.safetensors", "/etc/passwd", "C:\\x.safetensors", "C:x", "", "a\0b", ".."]


@pytest.mark.parametrize("name", OUT)
def test_no_name_leads_out(name: str, place: Path) -> None:
    root = fill(place / "models", "checkpoints/sub/a.safetensors", "secret.safetensors")
    with pytest.raises(ValueError, match="no name below a models folder"):
        folders.roots(root).find("checkpoints", name)


def test_links_out_are_followed_only_when_the_root_says_so(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place / "outside", "o.safetensors", "d/e.safetensors")
    root = fill(place / "models", "checkpoints/sub/a.safetensors")
    base = root / "checkpoints"
    (base / "in.safetensors").symlink_to(base / "sub" / "a.safetensors")
    (base / "out.safetensors").symlink_to(place / "outside" / "o.safetensors")
    (base / "dir").symlink_to(place / "outside" / "d")
    (base / "loop").symlink_to(base)
    found = folders.roots(root)
    assert found.names("checkpoints") == ["in.safetensors", "sub/a.safetensors"]
    for name in ("out.safetensors", "dir/e.safetensors"):
        with pytest.raises(ValueError, match="link out of"):
            found.find("checkpoints", name)
    every = ["dir/e.safetensors", "in.safetensors", "out.safetensors", "sub/a.safetensors"]
    path = place / "extra.yaml"
    path.write_text(f"mine:\n  base_path: {root}\n  checkpoints: checkpoints\n  follow_links: true\n")
    assert folders.roots(path).names("checkpoints") == every
    monkeypatch.setenv("SAFELIGHT_FOLLOW_LINKS", "1")
    assert folders.roots(root).names("checkpoints") == every
    assert folders.roots(root).find("checkpoints", "dir/e").samefile(place / "outside" / "d" / "e.safetensors")


def hub_model(place: Path, name: str = "models--some--one", commit: str = "c0ffee") -> Path:
    """A downloaded model as huggingface_hub keeps it: a snapshot of links into blobs."""
    made, repo = tiny.sd1(place / "made"), place / "hub" / name
    (repo / "blobs").mkdir(parents=True)
    for i, f in enumerate(sorted(f for f in made.rglob("*") if f.is_file())):
        at = repo / "snapshots" / commit / f.relative_to(made)
        at.parent.mkdir(parents=True, exist_ok=True)
        f.rename(repo / "blobs" / str(i))
        at.symlink_to(repo / "blobs" / str(i))
    fill(repo, "refs/main")
    (repo / "refs" / "main").write_text(commit)
    return repo / "snapshots" / commit


def test_models_of_the_hugging_face_cache(place: Path) -> None:
    at = hub_model(place)
    assert folders.hub_names() == ["hf:some/one"]
    assert folders.hub_snapshot("hf:some/one") == folders.hub_snapshot("some/one@c0ffee") == at
    assert sl.model("hf:some/one").source == str(at)
    assert [folders.shown(p) for p in (at, Path("a/b.c.safetensors"), Path("a/d.e"))] == ["some/one", "b.c", "d.e"]
    for name in ("hf:../../etc", "hf:some/one@../../x", "hf:some/one@..", "hf:a/b/c", "hf:"):
        with pytest.raises(ValueError, match="no name on Hugging Face"):
            folders.hub_snapshot(name)
    with pytest.raises(ValueError, match="pull hf:some/other"):
        sl.model("hf:some/other")


def test_folders_that_are_entries(place: Path) -> None:
    root = fill(place / "models", "diffusers/sub/one/model_index.json", "diffusers/sub/one/unet/x.safetensors", "LLM/glm/config.json",
                "LLM/glm/a.safetensors", "LLM/glm8.safetensors", "vae/fixed/config.json", "vae/fixed/w.safetensors")
    found = folders.roots(root)
    assert (found.names("diffusers"), found.names("LLM")) == (["sub/one"], ["glm", "glm8.safetensors"])
    assert found.find("diffusers", "one") == root / "diffusers" / "sub" / "one"
    assert found.find("vae", "fixed") == root / "vae" / "fixed"


def test_a_pulled_model_has_its_short_name(place: Path) -> None:
    at = hub_model(place, "models--stable-diffusion-v1-5--stable-diffusion-v1-5")
    assert sl.model("sd15").source == str(at)
    tiny.sd1(place / "here" / "models" / "diffusers" / "stable-diffusion-v1-5")
    assert sl.model("ms:sd15").source == str(place / "here" / "models" / "diffusers" / "stable-diffusion-v1-5")
    with pytest.raises(ValueError, match="safelight pull hf:Kwai-Kolors/Kolors-diffusers"):
        sl.model("kolors")


def test_a_model_by_its_name_is_the_model_at_its_path(place: Path) -> None:
    layout = c.sd1(words=c.WORDS)
    nets = c.networks(layout)
    base = place / "here" / "models"
    file = c.checkpoint(base / "checkpoints" / "sub" / "foo.safetensors", layout, nets)
    c.save(base / "vae" / "other.safetensors", c.vae_names(c.networks(layout, seed=3)["vae"]))
    assert sl.model("foo").key == sl.model("sub/foo.safetensors").key == sl.model(str(file)).key
    assert sl.model("foo").fingerprint == index.sha256(file)[:32]
    mine = sl.model("foo", vae="other")
    assert mine.parts[0].source == str(base / "vae" / "other.safetensors")
    with pytest.raises(ValueError, match=r"'nothing' is no file or folder here.*no checkpoints 'nothing'"):
        sl.model("nothing")
    shot = sl.generate(mine, "a cat", seeds=[1], steps=1, width=64, height=64)
    other = sl.generate(sl.model("foo"), "a cat", seeds=[1], steps=1, width=64, height=64)
    assert shot.key != other.key
    (picture,) = shot.save(place / "shot.png")
    assert "other" in str(sl.why(picture))
    assert sl.reproduce(picture, cached=True)
    release()


# What is remembered.


def test_an_unchanged_file_is_read_once(place: Path) -> None:
    path = old(fill(place, "x.bin") / "x.bin")
    first, seen = index.sha256(path), path.stat()
    path.write_bytes(b"XXXXX")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert index.sha256(path) == first  # size and time are as before, so it was not read
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert index.sha256(path) != first
    code = "import sys; from safelight.index import Path, sha256; print(sha256(Path(sys.argv[1]))); assert 'torch' not in sys.modules"
    path.write_bytes(b"YYYYY")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    other = old(fill(place, "y.bin") / "y.bin")
    before = index.sha256(other)
    other.write_bytes(b"ZZZZZ")
    assert index.sha256(other) != before  # what this process was told does not hold for a changed file
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout.strip()
    assert said == index.sha256(path)  # kept between processes


def test_a_file_that_may_still_change_is_read_again(place: Path) -> None:
    path = fill(place, "x.bin") / "x.bin"
    first, seen = index.sha256(path), path.stat()
    path.write_bytes(b"XXXXX")
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert index.sha256(path) != first


def test_answers_are_of_a_version_and_errors_are_not_kept(place: Path) -> None:
    path, asked = old(fill(place, "x.bin") / "x.bin"), []

    def answer(_: Path) -> int:
        asked.append(1)
        return len(asked)

    assert [index.remember(path, "n", answer, version=v) for v in ("1", "1", "2", "2", "1")] == [1, 1, 2, 2, 3]
    files = {str(p): p.stat() for p in (path, old(fill(place, "y.bin") / "y.bin"))}
    assert list(index.survey(files, "n", answer, version="1").values()) == [3, 4]
    assert list(index.survey(files, "n", answer, version="1").values()) == [3, 4]
    assert index.remember(place / "y.bin", "n", answer, version="1") == 4

    def fail(_: Path) -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        index.remember(path, "other", fail)
    assert index.remember(path, "other", lambda _: 5) == 5


def test_a_damaged_or_closed_index_is_gone_without(place: Path) -> None:
    path = old(fill(place, "x.bin") / "x.bin")
    first = index.sha256(path)
    (place / "home" / "files.sqlite").write_bytes(b"no database, and long enough to be looked at" * 30)
    for _ in range(2):
        index._told.clear()  # as in another process
        assert index.sha256(path) == first
    with sqlite3.connect(place / "home" / "files.sqlite") as again:
        assert again.execute("SELECT count(*) FROM answers").fetchone() == (1,)
    again.close()
    os.unlink(place / "home" / "files.sqlite")
    (place / "home" / "files.sqlite").mkdir()
    index._told.clear()
    assert index.sha256(path) == first


def test_the_command_lists_names_families_and_hashes(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layout = c.sd1()
    nets = c.networks(layout)
    base = place / "here" / "models"
    file = old(c.checkpoint(base / "checkpoints" / "a.safetensors", layout, nets))
    c.save(base / "checkpoints" / "l.safetensors", {"lora_unet_x.lora_down.weight": torch.zeros(1)})
    fill(base, "checkpoints/old.ckpt", "checkpoints/broken.safetensors")

    def said(*words: str) -> str:
        assert status(lambda: cli.main(["models", *words], prog_name="safelight", standalone_mode=False)) == 0
        return capsys.readouterr().out

    assert f"checkpoints: 4 in {base / 'checkpoints'}" in said()
    lines = {line.split()[-1]: line for line in said("checkpoints").splitlines()}
    assert " sd " in lines["a.safetensors"]
    assert " lora " in lines["l.safetensors"]
    assert " pickle " in lines["old.ckpt"]
    assert "no sound safetensors file" in lines["broken.safetensors"]
    rows = {row["name"]: row for row in json.loads(said("checkpoints", "--json", "--hash"))["checkpoints"]}
    assert rows["a.safetensors"]["sha256"] == index.sha256(file)
    assert (rows["a.safetensors"]["family"], rows["a.safetensors"]["size"]) == ("sd", file.stat().st_size)
    raw = file.read_bytes()
    seen = file.stat()
    file.write_bytes(b"\0" * len(raw))
    os.utime(file, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert {row.name: row.family for row in listed(folders.current(), "checkpoints")}["a.safetensors"] == "sd"  # known, so not looked into
