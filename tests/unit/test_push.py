"""Pushing to the hubs, against a real server on this machine that takes uploads, breaks off and refuses; what a pushed folder holds; and
whether a file was trained on given pictures."""
from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import close_session, constants
from PIL import Image as Pil

from safelight import provenance
from safelight.cli import cli, status
from safelight.embed import safetensors_texts
from safelight.op import load_ops
from safelight.pulling import http as fetching
from safelight.pulling.push import push, target
from safelight.reporting.model_card import curve
from safelight.train import lora_file
from safelight.values import Dataset, Patch
from tests import tiny
from tests.hubs import Hub, sha256

OPS = load_ops()
# huggingface_hub hands raw bytes to httpx under the old name
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub({}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("MODELSCOPE_DOMAIN", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(fetching, "PAUSE", 0.0)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        yield server
        close_session()  # what it keeps open the server would wait for
        server.shutdown()
        thread.join()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "up" / "images").mkdir(parents=True)
    (tmp_path / "up" / "README.md").write_text("# a LoRA")
    (tmp_path / "up" / "lora.safetensors").write_bytes(bytes(range(256)) * 9000)
    (tmp_path / "up" / "images" / "0.png").write_bytes(b"\x89PNG")
    (tmp_path / "up" / ".hidden").write_text("no")
    return tmp_path / "up"


def drained(name: str, folder: Path) -> str:
    work = push(target(name), folder)
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return str(stop.value)


def there(hub: Hub, folder: Path) -> bool:
    return hub.files == {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_folder_is_pushed_whole_and_once(hub: Hub, folder: Path, name: str) -> None:
    assert drained(f"{name}:o/m", folder).startswith(hub.url) and there(hub, folder)
    assert hub.made == ["o/m"] and hub.commits == 1
    uploads = hub.uploads.total()
    (folder / "README.md").write_text("# other words")
    drained(f"{name}:o/m", folder)
    assert there(hub, folder) and hub.uploads.total() == uploads, "what the hub has is not sent again"


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_connection_that_breaks_half_way_is_tried_again(hub: Hub, folder: Path, name: str) -> None:
    hub.hangs = 1
    drained(f"{name}:o/m", folder)
    assert there(hub, folder) and hub.uploads[sha256((folder / "lora.safetensors").read_bytes())] == 1


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_one_that_always_breaks_leaves_no_commit(hub: Hub, folder: Path, name: str) -> None:
    hub.hangs = 99
    with pytest.raises(OSError, match="push"):
        drained(f"{name}:o/m", folder)
    assert hub.commits == 0


@pytest.mark.parametrize("name", ["hf", "ms"])
def test_a_hub_that_is_not_there(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for variable in ("HF_ENDPOINT", "MODELSCOPE_DOMAIN"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    with pytest.raises(OSError, match=f"push {name}:o/m.*push again"):
        drained(f"{name}:o/m", folder)


@pytest.mark.parametrize(("name", "variable"), [("hf", "HF_TOKEN"), ("ms", "MODELSCOPE_API_TOKEN")])
def test_a_wrong_token_is_told_and_never_shown(
    hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, variable: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, "very_wrong")
    with pytest.raises(ValueError, match=f"{variable}.*wrong or expired") as e:
        drained(f"{name}:o/m", folder)
    assert "very_wrong" not in f"{e.value}{e.value.__cause__}{caplog.text}" and not hub.commits
    monkeypatch.setenv(variable, "a_secret")
    hub.status["/api"] = 403
    with pytest.raises(ValueError, match="may not write there"):
        drained(f"{name}:o/m", folder)


def test_no_token_and_no_such_place(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELSCOPE_API_TOKEN")
    with pytest.raises(ValueError, match="set MODELSCOPE_API_TOKEN"):
        drained("ms:o/m", folder)
    for wrong in ("o/m", "gh:o/m", "hf:m", "hf:o/m/x"):
        with pytest.raises(ValueError, match="expected hf:owner/name or ms:owner/name"):
            target(wrong)
    assert not hub.seen


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Patch, Dataset]:
    """The pictures' folder, the saved file, its patch and the dataset."""
    place, rng = tmp_path_factory.mktemp("trained"), np.random.default_rng(2)
    (place / "pictures").mkdir()
    for i, text in enumerate(["a red apple, in ink", "night city, in ink", "a fox, in ink", "a man, in ink"]):
        Pil.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(place / "pictures" / f"{i}.png")
        (place / "pictures" / f"{i}.txt").write_text(text)
    data = OPS["folder"](place / "pictures")
    knobs = {"steps": 4, "batch": 2, "rank": 2, "warmup": 0, "held_out": 0.4, "samples": 1, "every": 2}
    patch = OPS["train_lora"](tiny.model(tiny.sd1(place / "m")), data, **knobs)
    return place / "pictures", patch.save(place / "ink.safetensors")[0], patch, data


def test_a_card_has_what_a_hub_reads(trained: tuple[Path, Path, Patch, Dataset], tmp_path: Path) -> None:
    assert status(lambda: cli.main(
        ["push", "hf:o/m", str(trained[1]), "--dry-run", str(tmp_path / "d"), "--base", "a/b", "--licence", "mit"],
        standalone_mode=False)) == 0
    names = sorted(p.relative_to(tmp_path / "d").as_posix() for p in (tmp_path / "d").rglob("*") if p.is_file())
    assert names == ["README.md", "held-out.png", "images/0.png", "ink.safetensors"]
    _, head, body = (tmp_path / "d" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["base_model"], told["license"], told["instance_prompt"], told["pipeline_tag"]) == ("a/b", "mit", "in ink", "text-to-image")
    assert {"lora", "text-to-image", "stable-diffusion-v1"} <= set(told["tags"])
    assert told["widget"][0]["output"]["url"] == "images/0.png" and told["widget"][0]["text"] in body.replace("\\", "")
    assert "| rank | 2 |" in body and "not stated | 4 pictures" in body and "diffusers" in body and "0x" not in body
    assert (tmp_path / "d" / "ink.safetensors").read_bytes() == trained[1].read_bytes()


def test_a_card_is_pushed(trained: tuple[Path, Path, Patch, Dataset], hub: Hub) -> None:
    assert status(lambda: cli.main(["push", "ms:o/m", str(trained[1])], standalone_mode=False)) == 0
    assert hub.files["ink.safetensors"] == trained[1].read_bytes() and b"instance_prompt: in ink" in hub.files["README.md"]


def test_the_curve_is_drawn() -> None:
    import io

    with Pil.open(io.BytesIO(curve([[0, 1.0, 0.9, 1.1], [50, 0.5, 0.4, 0.6], [100, 0.6, 0.5, 0.7]]))) as picture:
        assert picture.size == (960, 480) and len(picture.convert("P").getcolors() or []) > 3


def test_the_root_is_of_the_pairs_in_any_order() -> None:
    pairs = [("00" * 32, "a"), ("11" * 32, "b"), ("22" * 32, "c")]
    assert provenance.root(pairs) == provenance.root(pairs[::-1])
    for other in (pairs[:2], [*pairs[:2], ("22" * 32, "d")], [*pairs, pairs[0]], []):
        assert provenance.root(other) != provenance.root(pairs)
    leaf = sha256(b"\0" + bytes(32) + b"a")
    assert provenance.root(pairs[:1]) == leaf


def verified(file: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = status(lambda: cli.main(["why", str(file), "--verify", str(folder)], standalone_mode=False))
    return code, capsys.readouterr().out


def test_verify_knows_the_pictures_and_what_was_tampered_with(
    trained: tuple[Path, Path, Patch, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, file = trained[:2]
    assert verified(file, pictures, capsys)[0] == 0
    copy = shutil.copytree(pictures, tmp_path / "copy")
    assert verified(file, copy, capsys)[0] == 0
    (copy / "1.txt").write_text("day city, in ink")
    code, said = verified(file, copy, capsys)
    assert code == 1 and "1 pictures have another caption: 1.png" in said
    (copy / "2.png").unlink()
    Pil.new("RGB", (32, 32)).save(copy / "9.png")
    said = verified(file, copy, capsys)[1]
    assert "1 pictures were trained on and are not here: 2.png" in said and "1 pictures are here and were not trained on: 9.png" in said


def test_verify_knows_a_changed_file(
    trained: tuple[Path, Path, Patch, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures, file = trained[:2]
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "a.safetensors").write_bytes(raw)
    assert "its tensors are not those that were saved" in verified(tmp_path / "a.safetensors", pictures, capsys)[1]
    from safetensors.torch import load_file

    notes = safetensors_texts(file)
    lora_file.write(tmp_path / "b.safetensors", load_file(file), notes | {"safelight.data_root": "00" * 32})
    assert "was changed or left out" in verified(tmp_path / "b.safetensors", pictures, capsys)[1]
    lora_file.write(tmp_path / "c.safetensors", load_file(file), {})
    assert status(lambda: cli.main(["why", str(tmp_path / "c.safetensors"), "--verify", str(pictures)], standalone_mode=False)) == 1
    assert "does not say what it was trained on" in capsys.readouterr().err


def test_why_shows_the_chain(trained: tuple[Path, Path, Patch, Dataset], capsys: pytest.CaptureFixture[str]) -> None:
    assert status(lambda: cli.main(["why", str(trained[1])], standalone_mode=False)) == 0
    said = capsys.readouterr().out
    notes = safetensors_texts(trained[1])
    assert "train_lora" in said and f"pictures and captions: {notes['safelight.data_root']}" in said
    assert notes["modelspec.hash_sha256"] == f"0x{provenance.tensors(trained[1])}"


def test_other_readers_find_the_notes(trained: tuple[Path, Path, Patch, Dataset]) -> None:
    notes = safetensors_texts(trained[1])
    assert notes["modelspec.trigger_phrase"] == "in ink" and notes["modelspec.thumbnail"].startswith("data:image/jpeg;base64,")
    datasets = json.loads(notes["ss_datasets"])
    assert datasets[0]["num_train_images"] == sum(datasets[0]["tag_frequency"]["1_in ink"][t] for t in ("in ink",))
    proof = {p["reader"]: p for p in json.loads(notes["safelight.proof"])}
    assert all(p["matched"] == p["total"] and p["max_difference"] <= 1e-5 for p in proof.values()) and len(proof) == 2


def test_export_lora_writes_another_layout(trained: tuple[Path, Path, Patch, Dataset], tmp_path: Path) -> None:
    out, words = tmp_path / "new" / "x.safetensors", ["export-lora", str(trained[1]), "--model", str(trained[1].parent / "m")]
    assert status(lambda: cli.main([*words, "--layout", "diffusers", "--out", str(out)], standalone_mode=False)) == 0
    notes = safetensors_texts(out)
    assert json.loads(notes["lora_adapter_metadata"])["unet.lora_alpha"] == 2.0
    assert notes["modelspec.hash_sha256"] == f"0x{provenance.tensors(out)}" != safetensors_texts(trained[1])["modelspec.hash_sha256"]
    assert not provenance.problems(out, trained[3]), "the other layout says the same of what it was trained on"
    assert status(lambda: cli.main([*words, "--layout", "kohia", "--out", str(out)], standalone_mode=False)) == 1
