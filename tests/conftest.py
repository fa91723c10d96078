"""What all tests share: one thread a worker, no network, a store of their own, and no GPU test where there is no GPU."""
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports torch or a hub client. One thread: the workers of pytest-xdist share the cores among them.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ[name] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A store for this worker alone, so that no test reads or fills the user's."""
    path = tmp_path_factory.mktemp("safelight-home")
    before = os.environ.get("SAFELIGHT_HOME")
    os.environ["SAFELIGHT_HOME"] = str(path)
    yield path
    if before is None:
        del os.environ["SAFELIGHT_HOME"]
    else:
        os.environ["SAFELIGHT_HOME"] = before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked `gpu` when torch sees no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
