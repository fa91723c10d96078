"""Pickled checkpoints that were made into safetensors are results too: they make room when they were not used for longest."""
import os
import time
from pathlib import Path

import pytest
import torch

from safelight.locks import locked
from safelight.store import Store
from safelight.sweep import sweep
from safelight.weights.pickles import to_safetensors


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "s")


def converted(store: Store, name: str, number: float) -> Path:
    source = store.root.parent / name
    torch.save({"x": torch.full((1000,), number)}, source)
    return to_safetensors(source, store.root / "weights")


def age(*paths: Path, days: int) -> None:
    then = time.time() - days * 86400
    for path in paths:
        os.utime(path, (then, then))
        os.utime(path.with_suffix(".lock"), (then, then))


def test_the_longest_unused_conversion_goes_first(store: Store) -> None:
    old, new, used = (converted(store, f"{i}.ckpt", i) for i in range(3))
    age(old, days=3)
    age(new, days=1)
    age(used, days=5)
    to_safetensors(store.root.parent / "2.ckpt", store.root / "weights")  # used again, without a change of the file
    done = sweep(store, 20_000)
    assert (done.removed, done.kept) == (1, new.stat().st_size + used.stat().st_size)
    assert not old.exists() and new.exists() and used.exists()
    assert sweep(store, 0).kept == 0 and not any((store.root / "weights").glob("*.safetensors"))
    assert to_safetensors(store.root.parent / "0.ckpt", store.root / "weights") == old and old.exists()


def test_what_is_in_use_stays(store: Store) -> None:
    before = converted(store, "0.ckpt", 0)
    age(before, days=1)
    with store.pin():
        during = converted(store, "1.ckpt", 1)
        assert sweep(Store(store.root), 0).living == 1
        assert during.exists() and not before.exists()
    half = store.root / "weights" / "2.part"
    half.write_bytes(b"x" * 100)
    with locked(half.with_suffix(".lock")):
        sweep(store, 0)
        assert half.exists() and not during.exists()
    sweep(store, 0)
    assert not half.exists()
