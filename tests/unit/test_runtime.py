"""Who holds a model, what stays loaded, what comes back."""
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from safelight import runtime
from safelight.runtime import lease
from safelight.values import Model
from tests import tiny
from tests.patching import look, same, write

F32 = torch.float32


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    yield
    runtime.release()
    assert runtime.warm() == []


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return tiny.model(tiny.mini(tmp_path / "mini"))


def patched(model: Model, path: Path) -> Model:
    with lease(model, dtype=F32) as family:
        return model.with_patch(write(family, path))


def test_a_lease_keeps_the_model_warm_and_clean(model: Model, tmp_path: Path) -> None:
    mine = patched(model, tmp_path / "a.safetensors")
    with lease(model, dtype=F32) as first:
        before = look(first)
    with lease(mine, dtype=F32) as second:
        assert second is first
        assert not same(look(second), before)
    assert same(look(first), before)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_any_exit_puts_the_model_back(model: Model, tmp_path: Path, error: type[BaseException]) -> None:
    mine = patched(model, tmp_path / "a.safetensors")
    with lease(model, dtype=F32) as family:
        before = look(family)
    with pytest.raises(error), lease(mine, dtype=F32, train=True):
        raise error
    assert same(look(family), before)
    with lease(model, dtype=F32):
        pass


def test_the_same_model_is_shared_until_the_last_one_leaves(model: Model, tmp_path: Path) -> None:
    mine = patched(model, tmp_path / "a.safetensors")
    with lease(model, dtype=F32) as family:
        plain = look(family)
    with lease(mine, dtype=F32) as a:
        with lease(mine, dtype=F32) as b:
            assert a is b
        assert not same(look(a), plain)
    assert same(look(a), plain)


def test_a_conflict_names_the_holder(model: Model, tmp_path: Path) -> None:
    mine = patched(model, tmp_path / "a.safetensors")
    with lease(model, dtype=F32, holder="the first"):
        with pytest.raises(RuntimeError, match=r"held by the first with other patches"), lease(mine, dtype=F32):
            pass
        with pytest.raises(RuntimeError, match=r"cannot be trained"), lease(model, dtype=F32, train=True):
            pass
        with lease(mine, dtype=torch.bfloat16):  # another copy of the weights: no conflict
            pass
    with lease(model, dtype=F32, train=True, holder="a training"), pytest.raises(RuntimeError, match="a training for training"):
        with lease(model, dtype=F32):
            pass


def test_a_patch_that_fails_leaves_nothing_held(model: Model, tmp_path: Path) -> None:
    other = tiny.model(tiny.sd1(tmp_path / "sd1"))
    mine = patched(other, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="match this sd model"), lease(model.with_patch(mine.patches[0]), dtype=F32):
        pass
    with lease(model, dtype=F32, train=True):
        pass


def test_the_oldest_idle_models_are_forgotten(tmp_path: Path) -> None:
    models = [tiny.model(tiny.sd1(tmp_path / str(i), seed=i)) for i in range(runtime.KEEP_WARM + 2)]
    with lease(models[0], dtype=F32):
        for m in models[1:]:
            with lease(m, dtype=F32):
                pass
        assert models[0].fingerprint in runtime.warm()
        assert len(runtime.warm()) == runtime.KEEP_WARM + 1
    assert models[1].fingerprint not in runtime.warm()


def test_files_that_changed_are_not_taken_for_the_model(model: Model) -> None:
    (Path(model.source) / "scheduler" / "scheduler_config.json").write_text("{}")
    with pytest.raises(ValueError, match="call model"), lease(model, dtype=F32):
        pass


def test_the_dtype_follows_the_hardware() -> None:
    able = torch.cpu.get_capabilities()
    native = any(able.get(n) for n in ("amx_bf16", "avx512_bf16", "bf16"))
    assert runtime.choose_dtype(torch.device("cpu")) == (torch.bfloat16 if native else torch.float32)
