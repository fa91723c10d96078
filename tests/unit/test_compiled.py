"""`compile`: the denoiser goes through torch.compile for as long as a lease lasts."""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import safelight as sl
from safelight import runtime
from safelight.computing import Computing, computing
from safelight.families import Family
from safelight.runtime import lease
from safelight.values import Model
from tests import tiny
from tests.patching import look, same, write

F32 = torch.float32


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    runtime.release()
    torch.compiler.reset()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return tiny.model(tiny.mini(tmp_path / "mini"))


def _once(family: Family) -> Tensor:
    x = torch.randn(2, family.channels, 8, 8, generator=torch.Generator().manual_seed(3))
    return family.denoise(x, torch.full((2,), 2.0), family.encode_text(["a cat", ""]))


def test_a_compiled_denoiser_says_the_same_and_leaves_nothing(model: Model, tmp_path: Path) -> None:
    with lease(model, dtype=F32) as family:
        patched = model.with_patch(write(family, tmp_path / "a.safetensors"))
        before, plain = look(family), _once(family)
    with lease(patched, dtype=F32) as family:
        changed = _once(family)
    with computing(compile="eager"):
        with lease(model, dtype=F32) as family:
            assert family.trainable()["unet"]._compiled_call_impl is not None
            torch.testing.assert_close(_once(family), plain, rtol=1e-5, atol=1e-5)
        with lease(patched, dtype=F32) as family:
            torch.testing.assert_close(_once(family), changed, rtol=1e-5, atol=1e-5)
    with lease(model, dtype=F32) as family:
        assert same(look(family), before)
        assert torch.equal(_once(family), plain)


def test_it_is_for_drawing_and_not_shared_with_what_is_not_compiled(model: Model) -> None:
    with computing(compile="eager"), lease(model, dtype=F32, train=True) as family:
        assert family.trainable()["unet"]._compiled_call_impl is None
    with lease(model, dtype=F32, holder="plain"), computing(compile="eager"), pytest.raises(RuntimeError, match="held by plain"), \
            lease(model, dtype=F32):
        pass


def test_it_is_part_of_the_key_and_of_the_lineage(model: Model) -> None:
    asked = {"prompt": "a cat", "seeds": [1], "steps": 2}
    with computing("cpu", "float32"):
        plain = sl.generate(model, **asked)
    with computing("cpu", "float32", "eager"):
        compiled = sl.generate(model, **asked)
    assert plain.recipe != compiled.recipe
    assert abs(plain.pixels - compiled.pixels).max() < 1e-3
    assert Computing.read(sl.why(compiled).data["versions"]["computing"]) == Computing("cpu", "float32", "eager")


@pytest.mark.parametrize("said", ["", "cpu", "cuda:1 bfloat16", "float16", "compiled:inductor", "cpu float32 compiled:eager"])
def test_what_was_said_is_read_back(said: str) -> None:
    assert str(Computing.read(said)) == said
