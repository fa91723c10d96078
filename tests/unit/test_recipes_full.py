"""Full fine-tuning: which weights, what is left behind, the file, and a whole model in its base's layout."""
from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from safelight.families import Family
from safelight.families.sources import open_source
from safelight.patches.full import full as put_on
from safelight.runtime import lease
from safelight.train import whole
from safelight.train.loop import recomputing
from safelight.train.lora_file import probe
from safelight.train.methods import FullShape
from safelight.train.trainables.full import full
from safelight.values import Blob, Model, Patch
from tests import checkpoints, tiny
from tests.patching import a_full, look, same

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.loader(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def family(load: Any) -> Family:
    return load("sd1")


@pytest.mark.parametrize(("parts", "named"), [
    ("denoiser", ["unet."]), ("attention", ["unet."]), ("text", ["text_encoder."]), ("all", ["text_encoder.", "unet."]),
])
def test_the_parts_asked_for_are_float32_copies_and_go_again(family: Family, parts: str, named: list[str]) -> None:
    before, plain = look(family), probe(family, ["a red apple"])
    with full(family, FullShape(parts=parts)) as own:  # type: ignore[arg-type]
        assert sorted({name.partition(".")[0] + "." for name in own.parameters}) == named
        assert (parts == "attention") is all("attn" in name for name in own.parameters)
        assert own.text is ("text_encoder." in named)
        assert torch.equal(probe(family, ["a red apple"]), plain)
        own.load({name: p.detach() + 0.1 for name, p in own.parameters.items()})
        assert not torch.allclose(probe(family, ["a red apple"]), plain, atol=1e-3)
        with own.off():
            assert torch.equal(probe(family, ["a red apple"]), plain)
        assert not torch.allclose(probe(family, ["a red apple"]), plain, atol=1e-3)
    assert same(look(family), before)


def test_every_trained_weight_gets_a_gradient_with_and_without_checkpointing(family: Family) -> None:
    grads = []
    for checkpointing in (False, True):
        with full(family, FullShape(parts="all")) as own, recomputing(list(family.trainable().values()) if checkpointing else []):
            x = torch.randn(1, family.channels, 8, 8, generator=torch.Generator().manual_seed(1))
            family.predict(x, family.sigmas[[300]], family.encode_text(["a red apple"])).square().mean().backward()
            assert all(p.grad is not None for name, p in own.parameters.items() if "final_layer" not in name)
            grads.append({name: p.grad for name, p in own.parameters.items()})
    assert all(torch.allclose(a, grads[1][name], atol=1e-6) for name, a in grads[0].items() if a is not None)


def test_half_precision_networks_learn_in_float32(tmp_path: Path) -> None:
    family = tiny.load(tiny.sd1(tmp_path / "m"), device=CPU, dtype=torch.bfloat16)
    with full(family, FullShape()) as own, recomputing(family.trainable().values()):
        x = torch.randn(1, family.channels, 8, 8)
        family.predict(x, family.sigmas[[300]], family.encode_text([""])).square().mean().backward()
        assert {p.dtype for p in own.parameters.values()} == {torch.float32}
        assert all(p.grad is not None for p in own.parameters.values())
    assert {p.dtype for p in family.trainable()["unet"].parameters()} == {torch.bfloat16}


def test_a_model_without_such_weights_is_refused(load: Any) -> None:
    with pytest.raises(ValueError, match="kolors model has no weights for parts 'text'"), full(load("kolors"), FullShape(parts="text")):
        pass


def test_strength_is_a_line_between_the_model_and_the_file(family: Family, tmp_path: Path) -> None:
    p = a_full(family, tmp_path / "p.safetensors")
    name, t = next(iter(load_file(p.weights.path).items()))
    layer = family.trainable()["unet"].get_parameter(name.removeprefix("unet."))
    with put_on(family, replace(p, strength=0.25)):
        now = family.trainable()["unet"].get_parameter(name.removeprefix("unet."))
        assert torch.allclose(now, 0.75 * layer + 0.25 * t, atol=1e-6)
    with pytest.raises(ValueError, match="0 of 1 tensors fit"), put_on(family, _one(tmp_path, {"unet.conv_in.weight": torch.zeros(2)})):
        pass


def _one(folder: Path, tensors: dict[str, torch.Tensor]) -> Patch:
    save_file(tensors, folder / "one.safetensors")
    return Patch("full", Blob.of(folder / "one.safetensors"))


def _changed(model: Model, folder: Path) -> Patch:
    """All of the denoiser and the text encoder, moved a little."""
    with lease(model, device="cpu", dtype=torch.float32, holder="test") as family:
        torch.manual_seed(3)
        with full(family, FullShape(parts="all", kept="float32")) as own:
            tensors = own.file({n: p.detach() + 0.02 * torch.randn_like(p) for n, p in own.parameters.items()})
    save_file(tensors, folder / "full.safetensors")
    return Patch("full", Blob.of(folder / "full.safetensors"))


def _says(model: Model) -> torch.Tensor:
    with lease(model, device="cpu", dtype=torch.float32, holder="test") as family:
        return probe(family, ["a red apple", "night city"])


@pytest.mark.parametrize("layout", ["sd1", "sdxl", "sd3"])
def test_a_folder_is_written_as_a_folder(tmp_path: Path, layout: str) -> None:
    model = tiny.model(tiny.LAYOUTS[layout](tmp_path / "base"))
    changed = model.with_patch(_changed(model, tmp_path))
    whole.write(changed, tmp_path / "out")
    again = tiny.model(tmp_path / "out")
    assert torch.equal(_says(again), _says(changed))
    assert not torch.allclose(_says(again), _says(model), atol=1e-3)
    with lease(changed, device="cpu", dtype=torch.float32, holder="test") as family:
        part, net = next(iter(family.trainable().items()))
        theirs = type(net).from_pretrained(tmp_path / "out" / part, local_files_only=True)
        assert all(torch.equal(t, net.state_dict()[n]) for n, t in theirs.state_dict().items())


@pytest.mark.parametrize("kind", ["sd1", "sd2", "sdxl"])
def test_a_single_file_is_written_under_its_own_names(tmp_path: Path, kind: str) -> None:
    made = checkpoints.maker(tmp_path)(kind)
    model = Model("sdxl" if kind == "sdxl" else "sd", str(made.file), open_source(made.file).fingerprint())
    changed = model.with_patch(_changed(model, tmp_path))
    whole.write(changed, tmp_path / "out.safetensors")
    parts, before, after = open_source(tmp_path / "out.safetensors"), load_file(made.file), load_file(tmp_path / "out.safetensors")
    assert {n: (t.shape, t.dtype) for n, t in before.items()} == {n: (t.shape, t.dtype) for n, t in after.items()}
    assert all(torch.equal(t, after[n]) for n, t in before.items() if n.startswith("first_stage"))
    with lease(changed, device="cpu", dtype=torch.float32, holder="test") as family:
        for part, net in family.trainable().items():
            again = parts.build(part, type(net), device=CPU, dtype=torch.float32).state_dict()
            assert all(torch.equal(t, again[n]) for n, t in net.state_dict().items())
            assert part == "vae" or any(not torch.equal(t, made.nets[part].state_dict()[n]) for n, t in again.items())


def test_what_no_weights_can_hold_is_refused(tmp_path: Path) -> None:
    model = tiny.model(tiny.sd1(tmp_path / "base"))
    with pytest.raises(ValueError, match="'freeu'"):
        whole.write(model.with_patch(Patch("freeu", Blob("", ""))), tmp_path / "out")
    with pytest.raises(ValueError, match="expected a folder"):
        whole.write(Model("sd", model.source, model.fingerprint), tmp_path / "out.safetensors")

