"""Pulling models, against a real server on this machine that speaks both hubs' APIs and breaks, lies and refuses when it is told to."""
from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub
import pytest
from huggingface_hub import constants

from safelight.cli import cli, status
from safelight.events import Note, Progress
from safelight.pulling import KNOWN, Pulled, Remote, plan, pull, wanted
from safelight.pulling import http as fetching
from safelight.pulling.choose import matching, needed
from safelight.pulling.http import Http, Refused
from tests.hubs import COMMIT, Hub, git, noise, sha256

BIG = 3 * 2**20 + 12345
INDEX = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "U"], "tokenizer": ["t", "T"], "safety_checker": ["s", "c"]}
FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "README.md": b"# a model",
    "sample.png": noise(5000, 1),
    "whole.safetensors": noise(9000, 2),
    "unet/config.json": b"{}",
    "unet/diffusion_pytorch_model.fp16.safetensors": noise(BIG, 3),
    "unet/diffusion_pytorch_model.safetensors": noise(7000, 4),
    "unet/diffusion_pytorch_model.bin": noise(6000, 5),
    "unet/model.onnx": noise(6000, 6),
    "tokenizer/vocab.json": b'{"a": 0}',
    "tokenizer/merges.txt": "a b\nü ö\n".encode(),
    "safety_checker/model.safetensors": noise(8000, 7),
}
WEIGHTS = "unet/diffusion_pytorch_model.fp16.safetensors"
NEEDED = {"model_index.json", "unet/config.json", WEIGHTS, "tokenizer/vocab.json", "tokenizer/merges.txt"}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub(FILES) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(fetching, "PAUSE", 0.0)
        monkeypatch.chdir(tmp_path)
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def run(name: str, **options: Any) -> tuple[Pulled, list[Any]]:
    """A whole pull and its events."""
    events = []
    with closing(pull(plan(name, **options))) as work:
        while True:
            try:
                events.append(next(work))
            except StopIteration as stop:
                return stop.value, events


def below(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


PLACES = {"hf:o/m": "cache", "ms:o/m": "models/diffusers/m"}


def test_hugging_face_goes_into_the_cache_that_others_read(hub: Hub, tmp_path: Path) -> None:
    done, events = run("hf:o/m")
    assert below(done.folder) == {name: FILES[name] for name in NEEDED}
    assert done.folder == tmp_path / "hf" / "models--o--m" / "snapshots" / COMMIT
    assert done.fetched == sum(len(FILES[n]) for n in NEEDED) and hub.sent[WEIGHTS] == BIG
    steps = [e for e in events if isinstance(e, Progress)]
    assert steps[-1].total == 3 and steps[-1].unit == "MB" and [e.step for e in steps] == sorted(e.step for e in steps)
    assert Path(huggingface_hub.hf_hub_download("o/m", WEIGHTS, local_files_only=True)) == done.folder / WEIGHTS
    assert Path(huggingface_hub.snapshot_download("o/m", local_files_only=True)) == done.folder
    before = hub.sent.copy()
    again, _ = run("hf:o/m")
    assert again.folder == done.folder and again.fetched == 0 and (hub.sent - before).keys() <= {"", "model_index.json"}
    assert not list((tmp_path / "hf").rglob("*.part"))


def test_modelscope_goes_into_the_models_folder(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, _ = run("ms:o/m")
    assert done.folder == Path("models/diffusers/m") and below(done.folder) == {name: FILES[name] for name in NEEDED}
    before = hub.sent.copy()
    assert run("ms:o/m")[0].fetched == 0 and (hub.sent - before).keys() <= {"", "model_index.json"}
    (done.folder / "unet/config.json").write_bytes(b"[]")  # changed by somebody; the hub's is brought again
    run("ms:o/m")
    assert (done.folder / "unet/config.json").read_bytes() == b"{}"
    monkeypatch.setenv("SAFELIGHT_MODELS", f"{tmp_path / 'extra.yaml'}{os.pathsep}{tmp_path / 'mine'}")
    assert plan("ms:o/m").folder == tmp_path / "mine" / "diffusers" / "m"


@pytest.mark.parametrize("name", PLACES)
def test_files_go_where_they_are_asked_for(hub: Hub, tmp_path: Path, name: str) -> None:
    done, _ = run(name, to=tmp_path / "there", only=["tokenizer/*", "whole.*"])
    wanted = {"tokenizer/vocab.json", "tokenizer/merges.txt", "whole.safetensors"}
    assert below(tmp_path / "there") == {n: FILES[n] for n in wanted} and done.folder == tmp_path / "there"
    assert not (tmp_path / "hf").exists()


# Connections that break.


@pytest.mark.parametrize("name", PLACES)
def test_a_broken_connection_goes_on_from_where_it_was(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.breaks[WEIGHTS] = [BIG // 2, 1000]
    _, events = run(name, to=tmp_path / "there")
    assert (tmp_path / "there" / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert hub.sent[WEIGHTS] == BIG, "something was sent twice"
    notes = [e.text for e in events if isinstance(e, Note)]
    assert len(notes) == 2 and f"going on from byte {BIG // 2} of {BIG}" in notes[0] and f"byte {BIG // 2 + 1000} " in notes[1]
    asked = [h["range"] for _, path, h in hub.seen if "range" in h and ("/cdn/" in path or "FilePath" in path)]
    assert asked == [f"bytes={BIG // 2}-", f"bytes={BIG // 2 + 1000}-"]


@pytest.mark.parametrize("name", PLACES)
def test_a_pull_that_gave_up_is_taken_up_by_the_next(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.breaks[WEIGHTS] = [BIG // 2, *[0] * 10]
    with pytest.raises(OSError, match=rf"{BIG // 2} of {BIG} bytes are kept, pull again"):
        run(name)
    assert len(hub.breaks[WEIGHTS]) == 11 - fetching.TRIES, "after the last byte came, each further try was counted"
    assert not [p for p in tmp_path.rglob("*.safetensors") if p.is_file()]
    hub.breaks.clear()
    done, _ = run(name)
    assert (done.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS] and hub.sent[WEIGHTS] == BIG
    assert done.fetched >= BIG - BIG // 2 and not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize("name", PLACES)
def test_a_stopped_pull_is_taken_up_by_the_next(hub: Hub, tmp_path: Path, name: str) -> None:
    work = pull(plan(name))
    steps = (e.step for e in work if isinstance(e, Progress))
    while next(steps) < 1:
        pass
    work.close()
    (part,) = tmp_path.rglob("*.part")
    kept = part.stat().st_size
    assert 2**20 <= kept < BIG and FILES[WEIGHTS].startswith(part.read_bytes())
    done, _ = run(name)
    assert (done.folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]
    assert [h["range"] for _, path, h in hub.seen if "range" in h and (WEIGHTS.rpartition("/")[2] in path)][-1] == f"bytes={kept}-"


def test_a_server_that_knows_no_ranges(hub: Hub, tmp_path: Path) -> None:
    hub.breaks[WEIGHTS], hub.ranges = [BIG // 2], False
    run("ms:o/m", to=tmp_path / "there")
    assert (tmp_path / "there" / WEIGHTS).read_bytes() == FILES[WEIGHTS] and hub.sent[WEIGHTS] == BIG // 2 + BIG


def test_a_server_that_is_busy_is_asked_again(hub: Hub) -> None:
    hub.status["/api/v1/models/o/m/repo/files"] = 503
    with pytest.raises(OSError, match="503"):
        plan("ms:o/m")
    assert len(hub.seen) == fetching.TRIES


# Content that is not what was announced.


@pytest.mark.parametrize("name", PLACES)
def test_a_wrong_hash_leaves_nothing(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.lies[WEIGHTS] = FILES[WEIGHTS][:-1] + b"!"
    with pytest.raises(ValueError, match=rf"{WEIGHTS}: what came has the hash {sha256(hub.lies[WEIGHTS])}, the hub announced"):
        run(name)
    left = {p.name for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_size > 10**6}
    assert not left and not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*fp16*"))
    hub.lies.clear()
    assert (run(name)[0].folder / WEIGHTS).read_bytes() == FILES[WEIGHTS]


def test_a_small_file_is_checked_as_git_does(hub: Hub, tmp_path: Path) -> None:
    hub.lies["unet/config.json"] = b"[]"
    with pytest.raises(ValueError, match=rf"unet/config.json: what came has the hash {git(b'[]')}"):
        run("hf:o/m", to=tmp_path / "there")


@pytest.mark.parametrize("name", PLACES)
def test_no_more_is_written_than_was_announced(hub: Hub, tmp_path: Path, name: str) -> None:
    hub.lies[WEIGHTS] = FILES[WEIGHTS] + noise(2**22, 9)
    with pytest.raises(ValueError, match=f"more bytes come than the {BIG}"):
        run(name)
    assert all(p.stat().st_size <= BIG for p in tmp_path.rglob("*") if p.is_file())


BAD_NAMES = ["../evil.safetensors", "/etc/evil.safetensors", "a/../../evil.safetensors", "a//b.safetensors", "C:evil.safetensors",
             "a\\..\\evil.safetensors", "nul.safetensors", "a\tb.safetensors", "a./b.safetensors"]


@pytest.mark.parametrize("bad", BAD_NAMES)
def test_names_that_lead_elsewhere(hub: Hub, tmp_path: Path, bad: str) -> None:
    hub.listed = [{"Path": bad, "Type": "blob", "Size": 4, "Sha256": sha256(b"evil")}]
    with pytest.raises(ValueError, match="has no name that can be written"):
        run("ms:o/m")
    hub.listed = [{"rfilename": bad, "size": 4, "blobId": git(b"evil")}]
    with pytest.raises(ValueError, match="has no name that can be written"):
        run("hf:o/m")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_hashes_and_links_that_lead_elsewhere(hub: Hub, tmp_path: Path) -> None:
    hub.listed = [{"rfilename": "a.safetensors", "size": 4, "blobId": "x", "lfs": {"sha256": "../../../evil", "size": 4, "pointerSize": 1}}]
    with pytest.raises(ValueError, match="not fetched"):
        run("hf:o/m")
    hub.listed = []
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "there" / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="lies outside"):
        run("ms:o/m", to=tmp_path / "there")
    assert not list((tmp_path / "elsewhere").iterdir())
    with pytest.raises(ValueError, match="is no revision"):
        plan("hf:o/m", revision="../../x")


# Answers that are no.


@pytest.mark.parametrize(("code", "words"), [(401, "accept its terms at"), (403, "with `hf auth login`"), (404, "no such repository")])
def test_hugging_face_says_no(hub: Hub, tmp_path: Path, code: int, words: str) -> None:
    hub.status["/api/models/o/m"] = code
    with pytest.raises(ValueError, match=words) as e:
        run("hf:o/m")
    assert f"answers {code}" in str(e.value) and "hf:o/m at main" in str(e.value)
    hub.status = {"/o/m/resolve": code}  # a gated repository lists its files to everybody
    with pytest.raises(ValueError, match=words):
        run("hf:o/m")
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("code", [401, 403, 404])
def test_modelscope_says_no(hub: Hub, code: int) -> None:
    hub.status["/api/v1/models/o/m"] = code
    with pytest.raises(ValueError, match=rf"ms:o/m at v2: not there, or private \(.*{code}"):
        run("ms:o/m", revision="v2")
    assert "Revision=v2" in hub.seen[0][1]


def test_an_answer_that_is_no_list(hub: Hub) -> None:
    hub.listed = [{"Path": 3}]
    with pytest.raises(ValueError, match="no weights in it"):
        plan("ms:o/m")
    with pytest.raises(ValueError, match="expected JSON, got b'a b"):
        Http(hub.url).json(f"{hub.url}/cdn/tokenizer/merges.txt")


# Where requests go.


def test_credentials_stay_with_the_endpoint(hub: Hub, tmp_path: Path) -> None:
    hub.breaks[WEIGHTS] = [BIG // 3]
    run("hf:o/m", to=tmp_path / "there")
    both = {host: [h for _, path, h in hub.seen if WEIGHTS in path and h["host"].startswith(host)] for host in ("127.0.0.1", "localhost")}
    assert {h.get("authorization") for h in both["127.0.0.1"]} == {"Bearer hf_secret"}
    assert len(both["localhost"]) == 2 and not any("authorization" in h for h in both["localhost"])
    assert both["localhost"][1]["range"] == f"bytes={BIG // 3}-"


def test_https_is_spoken(hub: Hub) -> None:
    secure = hub.url.replace("http:", "https:")
    with pytest.raises(URLError, match="SSL"):  # the server knows no TLS, and was asked for it
        Http(secure).open(f"{secure}/a")
    with pytest.raises(Refused, match="an address inside a network"):
        Http(secure, private=False).open(f"{secure}/a")


def test_redirects_into_a_network_are_refused(hub: Hub, tmp_path: Path) -> None:
    planned = plan("hf:o/m", to=tmp_path / "there")
    planned.hub.http.local = False  # as if the endpoint were a public one
    with closing(pull(planned)) as work, pytest.raises(Refused, match="leads to localhost, an address inside a network"):
        list(work)
    hub.cdn = "file://"
    with closing(pull(planned)) as work, pytest.raises(ValueError, match=r"only http and https|not allowed"):
        list(work)


def test_an_answer_whose_head_never_ends_is_given_up() -> None:
    """A tarpit: each byte comes in time, and all of them never do."""
    def drip(server: socket.socket) -> None:
        answer, _ = server.accept()
        with answer, contextlib.suppress(OSError):
            answer.sendall(b"HTTP/1.1 200 OK\r\n")
            for _ in range(100):
                answer.sendall(b"x")
                time.sleep(0.05)
            answer.sendall(b": y\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(fetching.BROKEN):
            Http(url, timeout=0.3).open(url)
        thread.join()


def test_which_addresses_are_asked() -> None:
    public = Http("https://93.184.216.34")
    for url in ("http://127.0.0.1/", "https://10.0.0.1/x", "https://192.168.1.1/", "http://169.254.169.254/latest", "https://[::1]/",
                "https://[::ffff:127.0.0.1]/", "https://0.0.0.0/", "https://localhost/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/",
                "https://[::7f00:1]/", "https://[64:ff9b:1::1]/", "https://[fec0::1]/", "https://224.0.0.1/", "https://[ff02::1]/",
                "file:///etc/passwd", "ftp://93.184.216.34/x"):
        with pytest.raises(Refused):
            public.check(url)
    public.check("https://198.18.3.4/")
    public.check("https://[64:ff9b::5db8:d822]/")
    public.check("https://93.184.216.35/x", "https://93.184.216.34")
    with pytest.raises(Refused, match="from https to"):
        public.check("http://93.184.216.35/x", "https://93.184.216.34")
    Http("http://127.0.0.1:9").check("http://192.168.1.1/")  # an endpoint that was given as a local one
    with pytest.raises(ValueError, match="no http or https address"):
        Http("file:///etc")


# Names and choices.


def test_names() -> None:
    assert wanted("kolors").id == "Kwai-Kolors/Kolors-diffusers" and wanted("ms:kolors").id == "Kwai-Kolors/Kolors"
    assert wanted("SDXL-vae-fp16-fix").kind == "vae" and (wanted("hf:a/b.c").hub, wanted("hf:a/b.c").name) == ("hf", "b.c")
    for text, words in {"sdxxl": "did you mean", "a/b": "hf:a/b is Hugging Face, ms:a/b is ModelScope", "gh:a/b": "no hub 'gh'",
                        "hf:../..": "expected hf:owner/name", "ms:sd15-inpainting": "not on ModelScope", "hf:a/b/c": "expected"}.items():
        with pytest.raises(ValueError, match=re.escape(words)):
            wanted(text)
    assert {"kolors", "sdxl", "sdxl-vae-fp16-fix", "sd15", "sd21", "taiyi", "sd35"} <= KNOWN.keys()


def chosen(names: str, index: dict[str, Any] | None = None) -> str:
    return " ".join(f.name for f in needed([Remote(n, 1) for n in names.split()], index))


SHARDED = "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json"
CHOICES = {
    "config.json diffusion_pytorch_model.bin diffusion_pytorch_model.safetensors sdxl.vae.safetensors x.png": (
        "config.json diffusion_pytorch_model.safetensors"),
    f"config.json {SHARDED} pytorch_model.bin": f"config.json {SHARDED}",
    f"config.json model.safetensors {SHARDED}": "config.json model.safetensors",
    f"config.json model.fp16.safetensors {SHARDED}": "config.json model.fp16.safetensors",
    "config.json model.fp16-00001-of-00001.safetensors model.safetensors.index.fp16.json model.safetensors": (
        "config.json model.fp16-00001-of-00001.safetensors model.safetensors.index.fp16.json"),
    "config.json model.non_ema.safetensors model.safetensors flax_model.msgpack model.onnx tf_model.h5": "config.json model.safetensors",
    "config.json pytorch_model.bin pytorch_model.fp16.bin modeling.py": "config.json pytorch_model.fp16.bin",
    "lora.safetensors other.v1.0.safetensors sub/lora.safetensors lora.ckpt README.md": (
        "lora.safetensors other.v1.0.safetensors sub/lora.safetensors"),
    "a.fp16.safetensors a.safetensors b.safetensors": "a.fp16.safetensors b.safetensors",
    "epoch=0-step=500.ckpt x.jpg": "epoch=0-step=500.ckpt",
}


@pytest.mark.parametrize("names", CHOICES)
def test_what_is_needed_of_one_part(names: str) -> None:
    assert sorted(chosen(names).split()) == sorted(CHOICES[names].split())


def test_what_is_needed_of_a_pipeline() -> None:
    index = {"_class_name": "X", "unet": ["d", "U"], "text": ["t", "T"], "image_encoder": [None, None], "feature_extractor": ["t", "F"]}
    used = [
        "model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors", "text/pytorch_model-00001-of-00001.bin",
        "text/pytorch_model.bin.index.json",
    ]
    others = "unet/deep/model.safetensors image_encoder/model.safetensors feature_extractor/a_config.json text/code.py x.safetensors"
    assert sorted(chosen(f"{' '.join(used)} {others}", index).split()) == sorted(used)
    with pytest.raises(ValueError, match=r"no weights in it that can be read; it has model_index\.json, x\.onnx"):
        chosen("model_index.json x.onnx", index)
    with pytest.raises(ValueError, match=r"--only 'y\*' fits none of the 1 files; there are x\.safetensors"):
        matching([Remote("x.safetensors", 1)], ["y*"])


# The command.


def typed(*words: object) -> int:
    return status(lambda: cli.main([str(w) for w in words], prog_name="safelight", standalone_mode=False))


def test_the_command(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed("pull", "ms:o/m", "--dry-run", "--to", "there") == 0
    assert f"3.0 MB  {WEIGHTS}" in capsys.readouterr().out and not Path("there").exists()
    assert typed("pull", "ms:o/m", "--to", "there") == 0
    assert capsys.readouterr().out.splitlines() == ["there", "5 files, 3.0 MB, 3.0 MB of them fetched now"]
    assert typed("pull", "hf:o/m", "--only", "*.txt", "--events", "jsonl") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "result" and [Path(f).name for f in events[-1]["files"]] == ["merges.txt"]
    assert typed("pull") == 0 and "kolors             hf:Kwai-Kolors/Kolors-diffusers  ms:Kwai-Kolors/Kolors" in capsys.readouterr().out
    assert typed("pull", "kolor") == 1 and "did you mean kolors?" in capsys.readouterr().err
    assert typed("pull", "hf:a/b", "hf:c/d", "--to", "x") == 2
    hub.status["/api/models/o/m"] = 404
    assert typed("pull", "hf:o/m") == 1 and "error: hf:o/m at main: there is no such repository" in capsys.readouterr().err
