"""The command line, with the real ops on small pictures: what is typed, what is printed, what is written, how it ends."""
from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image as Pil

import safelight
from safelight.cli import cli, status
from safelight.cli.op_command import _arguments, _given, _with_strength, op_command
from safelight.store import Store
from safelight.values import Blob
from tests.small_ops import SMALL

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder and a store beside it."""
    monkeypatch.setenv("SAFELIGHT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def pictures(place: Path) -> Path:
    folder = place / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(4):
        Pil.fromarray(rng.integers(0, 255, (160, 160 + i, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"noise number {i}")
    Pil.fromarray(rng.integers(0, 255, (20, 20, 3), np.uint8)).save(folder / "small.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


Ran = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Ran:
    """Exit status, stdout and stderr of a command."""

    def typed(*words: object) -> tuple[int, str, str]:
        code = status(lambda: cli.main([str(w) for w in words], prog_name="safelight", standalone_mode=False))
        out, err = capsys.readouterr()
        return code, out, err

    return typed


def test_help_lists_every_op_and_command(run: Ran) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for words in ("Data:", "folder", "train-lora", "generate", "Commands:", "run", "reproduce", "store"):
        assert words in out
    assert run("--version")[1].startswith("safelight ")


def test_data_goes_by_path_from_command_to_command(run: Ran, pictures: Path, place: Path) -> None:
    code, out, err = run("curate", pictures, "--min-side", 100, "--out", "good")
    assert (code, err) == (0, "") and out.splitlines()[0].startswith("4 pictures; dropped: ")
    assert "too small" in out and {p.name for p in (place / "good").glob("*.png")} == {"0.png", "1.png", "2.png", "3.png"}
    code, out, _ = run("caption", "good", "--trigger", "in dust style", "--out", "said.jsonl")
    assert code == 0 and out.splitlines() == ["4 pictures", "said.jsonl"]
    rows = [json.loads(line) for line in (place / "said.jsonl").read_text().splitlines()]
    assert [r["text"] for r in rows] == [f"noise number {i}, in dust style" for i in range(4)]
    code, out, _ = run("folder", "said.jsonl")
    assert code == 0 and out == "4 pictures\n"
    assert "1. folder v" in run("why", "good")[1]


def test_pictures_in_and_out(run: Ran, pictures: Path, place: Path) -> None:
    code, out, _ = run("sheet", pictures / "0.png", "--title", "one", "--columns", 1, "--out", "sheet.png")
    assert code == 0 and out == "sheet.png\n"
    code, out, _ = run("why", "sheet.png")
    assert code == 0 and "1. load_image v1" in out and "2. sheet v1" in out and f'path="{pictures}/0.png"' in out
    code, out, _ = run("reproduce", "sheet.png")
    assert (code, out) == (0, "sheet.png: equal, byte for byte\n")
    graph = json.loads(run("why", "sheet.png", "--graph")[1])
    assert [n["class_type"] for n in graph.values()] == ["load_image", "sheet"]
    assert json.loads(run("why", "sheet.png", "--json")[1])["target"] == "2"
    (pictures / "0.png").write_bytes((pictures / "1.png").read_bytes())
    code, out, _ = run("reproduce", "sheet.png")
    assert code == 1 and "sheet.png: different" in out


def test_results_without_a_name_take_free_ones(run: Ran, pictures: Path) -> None:
    assert run("load-image", pictures / "0.png")[1] == "out/picture-0.png\n"
    assert run("load-image", pictures / "1.png")[1] == "out/picture-1.png\n"


def flow(pictures: Path) -> str:
    return f"""
photo: {{op: load_image, path: {pictures}/0.png}}
page: {{op: sheet, image: $photo, columns: 1}}
marks: {{op: score, image: $photo, by: [sharpness]}}
"""


def test_a_flow_runs_with_changes(run: Ran, pictures: Path, place: Path) -> None:
    (place / "flow.yaml").write_text(flow(pictures))
    code, out, err = run("run", "flow.yaml", "--set", "sheet.title=A title", "--set", "photo.path=pictures/1.png")
    assert (code, err) == (0, ""), err
    assert "page: out/page/0.png" in out and "marks: picture 0: sharpness" in out and "marks: out/marks.json" in out
    code, out, _ = run("run", "flow.yaml", "--set", "sheet.title=A title", "--target", "page", "--out", "there")
    assert code == 0 and out == "page: there/page/0.png\n"
    assert json.loads(run("why", "there/page/0.png", "--graph")[1])["2"]["inputs"]["title"] == "A title"
    assert run("run", "there/page/0.png", "--check")[1] == "there/page/0.png: nothing is wrong with it\n"


def test_a_flow_runs_from_python_and_from_standard_input(
    run: Ran, pictures: Path, place: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    (place / "flow.yaml").write_text(flow(pictures))
    values = safelight.run("flow.yaml", sets=["page.title=x"], targets=["page"])
    assert list(values) == ["page"] and values["page"].pixels.shape[0] == 1
    assert safelight.run({"p": {"op": "load_image", "path": str(pictures / "0.png")}})["p"].info[0]["file"] == "0.png"
    monkeypatch.setattr(sys, "stdin", io.StringIO(flow(pictures)))
    assert "marks: picture 0: sharpness" in run("run", "-")[1]


def test_events_are_lines_of_json(run: Ran, pictures: Path, place: Path) -> None:
    (place / "flow.json").write_text(json.dumps({"a": {"op": "folder", "path": str(pictures)}, "b": {"op": "curate", "data": "$a"}}))
    code, out, err = run("run", "flow.json", "--events", "jsonl")
    events = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "") and {e["node"] for e in events} == {"a", "b"}
    assert [e["event"] for e in events if e["event"] not in ("progress", "note")] == ["started", "done", "started", "done", "result"]
    assert events[-1]["type"] == "Dataset" and events[-1]["value"] == events[-2]["value"] and events[-1]["files"]
    again = [json.loads(line)["event"] for line in run("run", "flow.json", "--events", "jsonl")[1].splitlines()]
    assert again == ["cached", "cached", "result"]
    code, out, err = run("curate", "nowhere", "--events", "jsonl")
    last = json.loads(out.splitlines()[-1])
    assert code == 1 and last["event"] == "failed" and last["kind"] == "ValueError"
    assert "nowhere" in last["text"] and err.startswith("error: ")


@pytest.mark.parametrize(("words", "code", "message"), [
    (["curate", "pictures", "--min-side", "-3"], 1, "error: curate: min_side: got -3, expected int, 1 to 16384"),
    (["curate", "pictures", "--min-side", "much"], 1, "error: curate: min_side: got 'much', expected int"),
    (["curate"], 1, "error: curate: data: got nothing, expected a DATASET"),
    (["curate", "pictures", "--data", "other"], 2, "data is given twice"),
    (["caption", "pictures", "--by", "fil"], 1, "did you mean 'file'?"),
    (["curat", "pictures"], 2, "no command 'curat'; did you mean 'curate'?"),
    (["curate", "pictures", "--min-sidee", "3"], 2, "--min-side"),
    (["folder", "nowhere"], 1, "error: folder: nowhere does not exist; give a folder of pictures"),
    (["run", "none.yaml"], 1, "No such file"),
    (["run", "pictures/0.png"], 1, "no graph in this picture"),
    (["run", "odd.yaml"], 1, "expected nodes by name"),
    (["run", "ui.json"], 1, "Prompt has no outputs"),
    (["run", "bad.yaml"], 1, "node a: folderr: got an unknown op"),
    (["run", "bad.yaml", "--check"], 1, ""),
    (["why", "pictures/0.png"], 1, "no history in it"),
    (["store", "gc", "--keep", "lots"], 1, "expected a size such as 10GB"),
    (["ops", "generat"], 1, "did you mean 'generate'?"),
])
def test_errors_are_one_line_that_helps(run: Ran, pictures: Path, place: Path, words: list[str], code: int, message: str) -> None:
    (place / "odd.yaml").write_text("- 1\n- 2\n")
    (place / "ui.json").write_text('{"nodes": [], "links": []}')
    (place / "bad.yaml").write_text("a: {op: folderr, path: x}\n")
    got, out, err = run(*words)
    assert got == code and message in " ".join(err.split())
    assert "Traceback" not in err + out


def test_a_traceback_when_asked(run: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFELIGHT_TRACEBACK", "1")
    with pytest.raises(ValueError, match="nowhere"):
        run("folder", "nowhere")


def test_ops_are_described(run: Ran) -> None:
    code, out, _ = run("ops")
    assert code == 0 and "train-lora" in out and "DATASET -> DATASET" in out
    assert "| min_side | int, 1 to 16384 |" in run("ops", "curate")[1]
    told = json.loads(run("ops", "--json")[1])
    assert told["generate"]["output"] == "IMAGE" and "prompt" in told["generate"]["inputs"]["properties"]


def test_the_store_is_listed_and_emptied(run: Ran, pictures: Path) -> None:
    run("curate", pictures)
    code, out, _ = run("store", "ls")
    assert code == 0 and "curate" in out and "2 results, " in out and "kept 4" in out
    assert run("store", "ls", "--op", "folder")[1].count("\n") == 2
    code, out, _ = run("store", "gc", "--keep", "0")
    assert code == 0 and "; 0 B kept" in out
    assert "0 results" in run("store", "ls")[1]
    assert run("--store", "elsewhere", "store", "ls")[1].endswith("elsewhere\n")


def test_words_become_settings() -> None:
    def typed(name: str, *words: str) -> dict[str, Any]:
        op = SMALL[name]
        return _given(op.spec, op_command(op).make_context(name, list(words)).params, _arguments(op.spec))

    assert typed("paint", "a, b", "--seed", "7", "--seeds", "1..3") == {"model": "mini", "prompt": "a, b", "seeds": [7, 1, 2, 3]}
    assert typed("paint", "--prompt", "x", "--model", "other") == {"model": "other", "prompt": "x"}
    assert typed("add", "a.png", "b.png", "--betas", "0.1,0.2") == {"image": "a.png", "other": "b.png", "betas": [0.1, 0.2]}
    assert typed("stack", "a.png", "b.png") == {"images": ["a.png", "b.png"]}
    with pytest.raises(click.UsageError, match="prompt is given twice"):
        typed("paint", "x", "--prompt", "y")


def test_a_lora_with_its_strength() -> None:
    assert _with_strength("a.safetensors") == ("a.safetensors", 1.0) and _with_strength("a.safetensors:0.8") == ("a.safetensors", 0.8)
    assert _with_strength("C:\\a.safetensors") == ("C:\\a.safetensors", 1.0)


SLOW = """
from tests.small_ops import SMALL
from safelight.op import OPS, load_ops
load_ops()
OPS.update(SMALL)
from safelight.cli import main
main()
"""


def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    words = ["slow", "0.5", "--seconds", "60", "--events", "jsonl"]
    with subprocess.Popen(
        [sys.executable, "-c", SLOW, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if json.loads(line)["event"] == "progress":
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert process.returncode == 130 and err.strip() == "stopped; what was finished is kept"
    assert json.loads(out.splitlines()[-1])["kind"] == "stopped"
    store = Store(tmp_path / "home")
    assert [r.made.op for r in store.records()] == ["grey"] and not any((store.root / "pins").iterdir())
    assert not any((store.root / "tmp").iterdir())


def test_quiet_without_a_terminal(run: Ran, pictures: Path, place: Path) -> None:
    code, out, err = run("load-image", pictures / "0.png", "--out", "copy.png")
    assert (code, out, err) == (0, "copy.png\n", "") and Blob.of(place / "copy.png").sha256 != Blob.of(pictures / "0.png").sha256
