"""LoRAs that a prompt names: taken out of the text, put on the model of that request, in keys and lineage as if written out."""
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import safelight as sl
from safelight import engine
from safelight.cli import cli
from safelight.op import load_ops
from safelight.patches import lora
from safelight.patches.lora import places
from safelight.sampling.tags import plain, refuse, taken
from safelight.spec import InputError
from safelight.values import Patch
from tests import tiny
from tests.patching import tensors

OPS = load_ops()
DRAW: dict[str, Any] = {"seeds": [3], "steps": 2, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("m")
    folder = tiny.mini(root / "checkpoints" / "mini")
    family = tiny.load(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert places(family)
    for i, name in enumerate(("ink", "old/brush")):
        (root / "loras" / name).parent.mkdir(parents=True, exist_ok=True)
        save_file({k: v * (1 + i) for k, v in tensors(family).items()}, root / "loras" / f"{name}.safetensors")
    return root


@pytest.fixture(autouse=True)
def here(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAFELIGHT_MODELS", str(base))
    return base


def model(base: Path) -> sl.Model:
    return sl.model(str(base / "checkpoints" / "mini"))


@pytest.mark.parametrize(
    ("tags", "strengths"),
    [
        ("<lora:ink>", [("ink", 1.0, None)]),
        ("<lora:ink:0.8>", [("ink", 0.8, None)]),
        ("<lora:ink:-0.5:.8>", [("ink", 0.8, -0.5)]),
        ("<lora:ink:te=0.5:unet=2>", [("ink", 2.0, 0.5)]),
        ("<lyco:ink.safetensors:1>", [("ink", 1.0, None)]),
        ("<lora:old/brush:0.3> <lora:ink:0.4>", [("brush", 0.3, None), ("ink", 0.4, None)]),
        ("<lora:brush:0.3>", [("brush", 0.3, None)]),
    ],
)
def test_what_a_tag_says(tags: str, strengths: list[Any]) -> None:
    text, found = taken("generate", f"a cat {tags}, red")
    assert text == f"a cat {' ' * (len(strengths) - 1)}, red"
    assert [(Path(n.file).stem, n.strength, n.text_strength) for n in found] == strengths


@pytest.mark.parametrize(
    ("tag", "says"),
    [
        ("<lora:inc:0.8>", "<lora:inc:0.8>.*near are ink"),
        ("<lora:../../loras/ink:0.8>", "no name below a models folder"),
        ("<lora:/etc/passwd>", "no name below a models folder"),
        ("<lora:ink:strong>", "<lora:name:strength>"),
        ("<lora:ink:1:1:1>", "<lora:name:strength>"),
        ("<lora:ink:nan>", "<lora:name:strength>"),
        ("<lora::1>", "a LoRA's name"),
        ("<hypernet:ink:1>", "hypernetwork, they are not supported"),
    ],
)
def test_a_tag_that_cannot_be_is_refused(base: Path, tag: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        sl.generate(model(base), f"a cat {tag}", **DRAW)
    graph = {"m": {"op": "model", "name": "mini"}, "g": {"op": "generate", "model": "$m", "prompt": f"a {tag}", "seeds": [1]}}
    assert [(p.node, p.input) for p in engine.check(graph)] == [("g", "prompt")]


def test_other_brackets_and_escaped_ones_stay_text(base: Path) -> None:
    for text in ("a <b> cat", "<lora>", "a < b : c >", r"a \<lora:ink:1> cat"):
        assert taken("generate", text) == (text, [])
    assert plain(r"a \<lora:ink:1> \<b>") == r"a <lora:ink:1> \<b>"
    refuse("generate", "negative", r"\<lora:ink:1>", "")
    with pytest.raises(InputError, match=r"generate: negative: got <lora:ink:1>"):
        sl.generate(model(base), "a cat", negative="<lora:ink:1>", **DRAW)


def test_a_prompt_with_loras_is_the_calls_it_stands_for(base: Path) -> None:
    bare = model(base)
    got = sl.generate(bare, "a red apple <lora:ink:0.5:0.8>, night <lora:brush:-0.4>", **DRAW)
    ink, brush = (sl.load_lora(base / "loras" / f"{n}.safetensors") for n in ("ink", "old/brush"))
    led = sl.with_lora(sl.with_lora(bare, ink, strength=0.8, text_strength=0.5), brush, strength=-0.4)
    wanted = sl.generate(led, "a red apple , night", **DRAW)
    assert got.recipe == wanted.recipe, "one recipe: what was drawn for one is there for the other"
    assert np.array_equal(got.pixels, wanted.pixels)
    assert np.abs(got.pixels - sl.generate(bare, "a red apple , night", **DRAW).pixels).max() > 1e-3
    assert got.info[0]["prompt"] == "a red apple , night"
    told = str(sl.why(got))
    assert told.count("with_lora") == 2 and told.count("load_lora") == 2 and ink.weights.sha256[:10] in told
    assert sl.run(sl.why(got).graph()).popitem()[1].recipe == got.recipe


def test_a_tag_in_a_graph_becomes_nodes(base: Path) -> None:
    prompt = {"op": "generate", "model": str(base / "checkpoints" / "mini"), "prompt": "a cat <lora:ink:0.8>", **DRAW}
    seen: list[Any] = []
    work = engine.run({"g": prompt})
    while True:
        try:
            seen.append(next(work))
        except StopIteration as end:
            drawn = end.value["g"]
            break
    assert {"g.model", "g.model.0", "g.model.0.lora", "g"} <= {e.node for e in seen}
    assert drawn.recipe == sl.generate(model(base), "a cat <lora:ink:0.8>", **DRAW).recipe


def test_nodes_that_a_tag_becomes_take_no_other_nodes_place(base: Path) -> None:
    name = str(base / "checkpoints" / "mini")
    prompt = {"op": "generate", "model": name, "prompt": "a cat <lora:ink:0.8>", **DRAW}
    own = {key: {"op": "model", "name": name} for key in ("g.model", "g.model.0", "g.model.0.lora")}
    drawn = engine.finish(engine.run({"g": prompt, **own}, targets=["g"]))["g"]
    assert drawn.recipe == sl.generate(model(base), "a cat <lora:ink:0.8>", **DRAW).recipe


def test_another_content_of_the_file_is_another_picture(base: Path, tmp_path: Path) -> None:
    first = sl.generate(model(base), "a cat <lora:ink:0.8>", **DRAW)
    again = base / "loras" / "ink.safetensors"
    before = again.read_bytes()
    try:
        save_file({k: v * 3 for k, v in sl_load(again).items()}, again)
        other = sl.generate(model(base), "a cat <lora:ink:0.8>", **DRAW)
    finally:
        again.write_bytes(before)
    assert first.recipe != other.recipe and np.abs(first.pixels - other.pixels).max() > 1e-3


def sl_load(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load

    return load(path.read_bytes())


def test_a_text_strength_of_zero_leaves_the_text_encoder(base: Path) -> None:
    file = sl.load_lora(base / "loras" / "ink.safetensors")
    family = tiny.load(base / "checkpoints" / "mini", device=torch.device("cpu"), dtype=torch.float32)
    plainly = family.encode_text(["a cat"]).tokens
    patch: Patch = sl.with_lora(model(base), file, strength=0.8, text_strength=0.0).patches[0]
    with lora.lora(family, patch):
        assert torch.equal(family.encode_text(["a cat"]).tokens, plainly)
    with lora.lora(family, replace(patch, options={})):
        assert not torch.equal(family.encode_text(["a cat"]).tokens, plainly)


def test_the_command_line_and_storyboards(base: Path, tmp_path: Path) -> None:
    common = ["--model", str(base / "checkpoints" / "mini"), "--steps", "1", "--width", "64", "--height", "64"]
    out = tmp_path / "a.png"
    run = CliRunner().invoke(cli, ["generate", "a cat <lora:ink:0.8>", "--seed", "3", *common, "--out", str(out)])
    assert run.exit_code == 0, run.output
    told = CliRunner().invoke(cli, ["why", str(out)]).output
    assert "with_lora" in told and "ink.safetensors" in told
    assert CliRunner().invoke(cli, ["generate", "a <lora:inc:0.8>", *common]).exit_code != 0
    (tmp_path / "s.txt").write_text("a cat <lora:ink:1>\n")
    with pytest.raises(InputError, match="put the LoRA on it by with_lora"):
        sl.storyboard(model(base), tmp_path / "s.txt")
