"""A dataset drawn by a model: every picture is kept as it is drawn, and says where it is from."""
from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from safelight import engine
from safelight.events import Progress
from safelight.op import load_ops
from safelight.pictures import read
from safelight.store import Store
from safelight.values import Dataset, Image, Model
from tests import tiny

OPS = load_ops()


@pytest.fixture
def model(tmp_path: Path) -> Model:
    named = OPS["model"](str(tiny.LAYOUTS["sd1"](tmp_path / "toy")))
    assert isinstance(named, Model)
    return named


def test_a_drawn_dataset(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safelight.ops.collect.TOGETHER", 2)
    (tmp_path / "prompts.txt").write_text("a red apple\na fox\tblue\t7\n")
    store = Store(tmp_path / "home")
    given = {"model": model, "path": tmp_path / "prompts.txt", "pictures": 2, "steps": 2, "licence": "CC0"}
    work = engine.call(OPS["synthesize"], given, store)
    while not (isinstance(event := next(work), Progress) and event.what == "drawing a dataset"):
        pass
    work.close()  # two of four are there
    seen = []
    work = engine.call(OPS["synthesize"], given, store)
    while True:
        try:
            seen.append(next(work))
        except StopIteration as stop:
            data = stop.value
            break
    assert sum(isinstance(e, Progress) and e.what == "drawing a dataset" for e in seen) == 1, "only the missing two are drawn"
    assert isinstance(data, Dataset) and [r.caption for r in data] == ["a red apple"] * 2 + ["a fox"] * 2
    assert [r.info["metadata"]["seed"] for r in data] == [0, 1, 7, 8] and data.kept[2].info["metadata"]["negative"] == "blue"
    assert {r.info["origin"]["licence"] for r in data} == {"CC0"} and data.kept[0].info["origin"]["source"] == "model:toy"
    assert model.fingerprint[:10] in data.kept[0].info["origin"]["attribution"]
    drawn = OPS["generate"](model, "a fox", seeds=[7, 8], steps=2, negative="blue")
    assert isinstance(drawn, Image)
    for i, row in enumerate(data.kept[2:]):
        gap = np.abs(read(row.picture.path).astype(int) - dataclasses.replace(drawn).bytes8()[i].astype(int)).max()
        assert gap <= 1, "what generate draws"
