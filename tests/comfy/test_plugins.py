"""Other people's node classes from an allowed folder: what they say, what they make, and what is refused."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from safelight import comfy, runtime
from safelight.comfy import Places, PromptError, object_info, translate
from safelight.comfy.fence import refused
from safelight.comfy.plugins import plugin_classes, refusals
from safelight.engine import finish
from safelight.events import Done
from safelight.folders import roots
from safelight.pictures import read
from safelight.store import Store
from tests.comfy.prompts import node

SPLIT = '''
import torch


class Split:
    """Halves of a picture."""

    CATEGORY = "theirs"
    RETURN_TYPES = ("IMAGE", "MASK", "INT", "STRING")
    RETURN_NAMES = ("left", "bright", "half", "said")
    FUNCTION = "split"
    ran = []

    @classmethod
    def INPUT_TYPES(cls):
        return {
            "required": {"image": ("IMAGE",), "at": ("FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0, "step": 0.1}),
                         "side": (["left", "right"],)},
            "optional": {"words": ("STRING", {"default": "", "multiline": True})}, "hidden": {"id": "UNIQUE_ID"},
        }

    @classmethod
    def VALIDATE_INPUTS(cls, at):
        return True if at < 0.95 else "at is almost all of it"

    def split(self, image, at, side, id, words="none"):
        Split.ran.append(id)
        wide = int(image.shape[2] * at)
        part = image[:, :, :wide] if side == "left" else image[:, :, wide:]
        part.mul_(0.5)
        return part, part.mean(dim=-1), wide, f"{words} {side} of {id}"


class Show:
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "show"
    INPUT_IS_LIST = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"forceInput": True})}}

    def show(self, text):
        return {"ui": {"text": text}}


class Fresh:
    RETURN_TYPES = ("LATENT", "IMAGE")
    OUTPUT_IS_LIST = (False, True)
    FUNCTION = "go"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "times": ("INT", {"default": 2})}}

    @classmethod
    def IS_CHANGED(cls, samples, times):
        return float("nan")

    def go(self, samples, times):
        return {**samples, "samples": samples["samples"] + 1}, [torch.zeros(1, 8, 8, 3) + i / 10 for i in range(times)]


NODE_CLASS_MAPPINGS = {"Split": Split, "Show": Show, "Fresh": Fresh}
'''


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Places]:
    (tmp_path / "nodes" / "pack").mkdir(parents=True)
    (tmp_path / "nodes" / "pack" / "__init__.py").write_text("from .inner import NODE_CLASS_MAPPINGS\n")
    (tmp_path / "nodes" / "pack" / "inner.py").write_text(SPLIT)
    yield Places(roots(), tmp_path, tmp_path / "out", tmp_path / "nodes")
    runtime.release()


def prompt(**changes: Any) -> dict[str, Any]:
    return {
        "1": node("EmptyImage", width=64, height=32, batch_size=2, color=0xFF8000),
        "2": node("Split", **{"image": ["1", 0], "at": 0.25, "side": "right", "words": "the", **changes}),
        "3": node("EmptyImage", width=["2", 2], height=8, batch_size=1, color=0),
        "4": node("SaveImage", images=["2", 0], filename_prefix="part"), "5": node("SaveImage", images=["3", 0], filename_prefix="size"),
        "6": node("MaskPreview", mask=["2", 1]), "7": node("Show", text=["2", 3]),
    }


def drawn(graph: dict[str, Any], here: Places, store: Store) -> tuple[dict[str, list[Path]], list[str]]:
    ops: list[str] = []
    work = comfy.run(graph, here, store=store)
    while True:
        try:
            event = next(work)
        except StopIteration as stop:
            return stop.value, ops
        ops += [event.op] if isinstance(event, Done) else []


def test_pictures_masks_numbers_and_texts_go_in_and_out(here: Places, tmp_path: Path) -> None:
    files, _ = drawn(prompt(), here, Store(tmp_path / "store"))
    part, size, bright = (read(files[k][0]) for k in "456")
    assert part.shape == (32, 48, 3) and len(files["4"]) == 2
    assert np.array_equal(part[0, 0], [127, 64, 0]) and size.shape == (8, 16, 3)
    assert bright.shape == (32, 48, 3) and abs(int(bright[0, 0, 0]) - 63) <= 1
    assert files["7"][0].read_text() == '{"text": ["the right of 2"]}'


def test_a_result_is_kept_until_the_file_changes(here: Places, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _, first = drawn(prompt(), here, store)
    assert first.count("Split/0") == 1
    _, again = drawn(prompt(), here, store)
    assert "Split/0" not in again and "empty_image" not in again
    file = tmp_path / "nodes" / "pack" / "inner.py"
    file.write_text(SPLIT.replace("mul_(0.5)", "mul_(0.25)"))
    files, changed = drawn(prompt(), here, store)
    assert "Split/0" in changed and np.array_equal(read(files["4"][0])[0, 0], [63, 32, 0])


def test_is_changed_and_lists(here: Places, tmp_path: Path) -> None:
    graph = {
        "1": node("EmptyLatentImage", width=64, height=64, batch_size=1), "2": node("Fresh", samples=["1", 0], times=3),
        "3": node("SaveImage", images=["2", 1], filename_prefix="x"), "4": node("Fresh", samples=["2", 0], times=1),
        "5": node("PreviewImage", images=["4", 1]),
    }
    store = Store(tmp_path / "store")
    files, first = drawn(graph, here, store)
    assert len(files["3"]) == 3 and read(files["3"][2])[0, 0, 0] == 51 and len(files["5"]) == 1
    _, again = drawn(graph, here, store)
    assert "Fresh/1" in first and "Fresh/1" in again, "NaN: it runs each time"


def test_what_it_says_of_itself(here: Places) -> None:
    told = object_info(here)["Split"]
    assert told["input"]["required"]["at"] == ["FLOAT", {"step": 0.1, "default": 0.5, "min": 0.0, "max": 1.0}]
    assert told["output"] == ["IMAGE", "MASK", "INT", "STRING"] and told["output_name"] == ["left", "bright", "half", "said"]
    assert told["description"] == "Halves of a picture." and told["python_module"].startswith("custom_nodes.")
    assert told["input"]["required"]["side"][0] == ["left", "right"] and object_info(here)["Show"]["output_node"]


@pytest.mark.parametrize(("change", "message"), [
    ({"at": 0.99}, "almost all of it"), ({"at": 7}, "almost all of it"),
    ({"side": "top"}, "not in list"), ({"image": 3}, "Bad linked input"), ({"at": "x"}, "Failed to convert"),
])
def test_wrong_inputs_are_told_by_node(here: Places, change: dict[str, Any], message: str) -> None:
    from safelight.comfy.run import known_ops

    with pytest.raises(PromptError, match=rf"node 2 \(Split\).*{message}"):
        translate(prompt(**change), here, known_ops(here))


@pytest.mark.parametrize(("line", "why"), [
    ("import os", "imports os"), ("from subprocess import run", "imports subprocess"), ("import torch.hub", "imports torch.hub"),
    ("x = open('/etc/passwd')", "uses open"), ("import numpy as np; np.load('x')", "uses .load"),
    ("().__class__.__subclasses__()", "__subclasses__"),
    ("from PIL import ImageGrab", "takes ImageGrab"), ("from ..other import y", "above its own folder"), ("def", "no Python"),
    ("__builtins__['eval']('1')", "__builtins__"), ("from torch import load", "takes load"), ("import comfy.utils", "imports comfy.utils"),
])
def test_files_that_reach_out_are_not_run(tmp_path: Path, line: str, why: str) -> None:
    assert why in refused(f"import torch\n{line}\n", "bad.py")
    (tmp_path / "bad.py").write_text(f"{line}\nraise SystemExit\n")
    (tmp_path / "good.py").write_text(SPLIT)
    assert "Split" in plugin_classes(tmp_path) and len(refusals(tmp_path)) == 1


def test_classes_with_other_sockets_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(SPLIT.replace('("IMAGE",)', '("MODEL",)') + "\n\n1 / 0 if False else None\n")
    assert set(plugin_classes(tmp_path)) == {"Show", "Fresh"} and "a socket MODEL" in refusals(tmp_path)[0]
    (tmp_path / "odd.py").write_text("1 / 0\n")
    assert plugin_classes(tmp_path) == {} and "ZeroDivisionError" in refusals(tmp_path)[0]
    with pytest.raises(ValueError, match="no folder"):
        plugin_classes(tmp_path / "none")


def test_nothing_is_loaded_that_was_not_allowed(here: Places, tmp_path: Path) -> None:
    bare = Places(here.models, here.input, here.output)
    assert "Split" not in object_info(bare)
    with pytest.raises(PromptError, match="'Split' not found"):
        finish(comfy.run(prompt(), bare, store=Store(tmp_path / "store")))
