"""The algebra of patches: whatever the exit, nothing is left; strength 0 changes nothing; both forms of a LoRA agree."""
import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from safelight import patches
from safelight.families import Family
from safelight.patches import PATCHES, lora, preserved
from safelight.patches import find as find_patch
from safelight.patches.rows import BOXES, WEAK
from safelight.values import Blob, Patch
from tests import tiny
from tests.patching import MAKERS, look, same, tensors, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny.load(tiny.mini(tmp_path_factory.mktemp("m") / "mini"), device=CPU, dtype=torch.float32)


def said(family: Family) -> torch.Tensor:
    torch.manual_seed(1)
    x = torch.randn(2, family.channels, 8, 8)
    cond = family.encode_text(["a red apple", ""])
    marked = replace(cond, extras={**cond.extras, WEAK: torch.tensor([True]), BOXES: torch.full((2, 1, 4 + 32), 8.0)})
    return family.predict(x, family.sigmas[[100, 800]], marked)


def test_every_kind_has_a_maker() -> None:
    for module in pkgutil.iter_modules(patches.__path__):
        importlib.import_module(f"safelight.patches.{module.name}")
    assert set(PATCHES) == set(MAKERS)


@pytest.mark.parametrize("kind", sorted(MAKERS))
@pytest.mark.parametrize("leave", ["normally", "by error", "by close"])
def test_nothing_is_left(family: Family, tmp_path: Path, kind: str, leave: str) -> None:
    before, plain = look(family), said(family)
    p = MAKERS[kind](family, tmp_path / "p.safetensors")

    def work() -> Iterator[torch.Tensor]:
        with find_patch(kind)(family, p):
            yield said(family)
            if leave == "by error":
                raise ArithmeticError

    running = work()
    assert not torch.allclose(next(running), plain, atol=1e-3)
    if leave == "by close":
        running.close()  # type: ignore[attr-defined]
    elif leave == "by error":
        with pytest.raises(ArithmeticError):
            next(running)
    else:
        assert next(running, None) is None
    assert same(look(family), before)
    assert torch.equal(said(family), plain)


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_strength_zero_changes_nothing(family: Family, tmp_path: Path, kind: str) -> None:
    p = MAKERS[kind](family, tmp_path / "p.safetensors")
    plain = said(family)
    with find_patch(kind)(family, Patch(kind, p.weights, 0.0)):
        assert torch.equal(said(family), plain)


def test_preserved_undoes_anything(family: Family) -> None:
    before = look(family)
    unet = family.trainable()["unet"]
    with preserved(family.trainable()):
        unet.train().requires_grad_(True)
        unet.extra = nn.Linear(2, 2)  # type: ignore[assignment]
        unet.register_buffer("count", torch.zeros(1))
        unet.get_submodule("conv_in").register_forward_hook(lambda *_: None)
        unet.peft_config = {"default": 1}  # type: ignore[assignment]
        family.for_training()
        said(family).sum().backward()
        assert not same(look(family), before)
    assert same(look(family), before)


def test_a_lora_beside_the_layers_says_what_the_merged_one_says(family: Family, tmp_path: Path) -> None:
    p = write(family, tmp_path / "p.safetensors", rank=3, alpha=2.0)
    with lora.lora(family, p):
        merged = said(family)
    with lora.lora(family, Patch("lora", p.weights, options={"merged": False})):
        assert any(isinstance(m, lora.Beside) for m in family.trainable()["unet"].modules())
        beside = said(family)
    assert torch.allclose(merged, beside, atol=1e-5)


def test_strength_is_linear_in_the_weights_and_has_its_own_for_text(family: Family, tmp_path: Path) -> None:
    p = write(family, tmp_path / "p.safetensors", rank=2, alpha=3.0)
    name, place = next((n, at) for n, at in lora.places(family).items() if at.part == "unet")
    text = next(at for at in lora.places(family).values() if at.part == "text_encoder")
    was, text_was = place.layer.weight.clone(), text.layer.weight.clone()
    read = load_file(p.weights.path)
    down, up = read[f"{name}.lora_down.weight"].flatten(1), read[f"{name}.lora_up.weight"].flatten(1)
    with lora.lora(family, Patch("lora", p.weights, 0.5, options={"text_strength": 0.0})):
        assert torch.allclose(place.layer.weight, was + 0.5 * 3.0 / 2 * (up @ down).view_as(was), atol=1e-6)
        assert torch.equal(text.layer.weight, text_was)


def test_two_patches_add_up_in_any_order(family: Family, tmp_path: Path) -> None:
    a = write(family, tmp_path / "a.safetensors", rank=1)
    b = write(family, tmp_path / "b.safetensors", rank=4)
    results = []
    for first, second in ((a, b), (b, a)):
        with lora.lora(family, first), lora.lora(family, second):
            results.append(said(family))
    assert torch.allclose(*results, atol=1e-5)


def rename(key: str) -> str:
    name, _, role = key.partition(".lora_")
    return f"{name}.lora_{'A' if role.startswith('down') else 'B'}.weight"


def test_dotted_layouts_are_read(family: Family, tmp_path: Path) -> None:
    kohya = tensors(family, rank=2, alpha=2.0)
    dotted = {}
    for name, place in lora.places(family).items():
        for ours, theirs in (("lora_down", "lora_A"), ("lora_up", "lora_B")):
            dotted[f"{place.part}.{place.path}.{theirs}.weight"] = kohya[f"{name}.{ours}.weight"]
    save_file(kohya, tmp_path / "kohya.safetensors")
    save_file(dotted, tmp_path / "dotted.safetensors")
    results = []
    for file in ("kohya", "dotted"):
        with lora.lora(family, Patch("lora", Blob.of(tmp_path / f"{file}.safetensors"))):
            results.append(said(family))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: {k.replace("conv_in", "nowhere"): v for k, v in t.items()}, "no such"),
        (lambda t: {k: v for k, v in t.items() if "conv_in.lora_up" not in k}, "no up weight"),
        (lambda t: {**t, "lora_unet_conv_in.hada_w1_a": torch.zeros(2)}, "hada_w1_a"),
        (lambda t: {**t, "lora_unet_conv_in.lora_down.weight": torch.zeros(2, 3, 3, 3)}, "the layer is"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_the_model_alone(family: Family, tmp_path: Path, change: Any, says: str) -> None:
    before = look(family)
    save_file(change(tensors(family)), tmp_path / "bad.safetensors")
    with pytest.raises(ValueError, match=says), lora.lora(family, Patch("lora", Blob.of(tmp_path / "bad.safetensors"))):
        pass
    assert same(look(family), before)
