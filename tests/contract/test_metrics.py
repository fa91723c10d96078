"""What every metric keeps, whichever there are."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.scoring import METRICS, Subject
from safelight.scoring import clip as module
from safelight.values import Blob, Dataset, Image, Row
from tests import towers as small


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.write(tmp_path_factory.mktemp("towers")) / "clip"


@pytest.fixture
def subject(embedded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "embedded", lambda: embedded)
    for name in "abcd":
        Pil.effect_noise((50, 50), 60).convert("RGB").save(tmp_path / name, "PNG")
    rows = tuple(Row(Blob.of(tmp_path / name), name, 50, 50) for name in "abcd")
    pixels = np.random.default_rng(0).random((5, 40, 48, 3), dtype=np.float32)
    pixels[0] = 0.5
    return Subject(Image(pixels), ("a", "b", "c", "狗", "e"), Dataset(rows))


@pytest.mark.parametrize("name", METRICS)
def test_one_finite_float_a_picture(name: str, subject: Subject) -> None:
    values = METRICS[name].take(subject)
    assert len(values) == 5 and all(type(v) is float and math.isfinite(v) for v in values)


@pytest.mark.parametrize("name", METRICS)
def test_a_picture_is_judged_alone(name: str, subject: Subject) -> None:
    """The same number whatever else is in the batch, and the same again."""
    whole = METRICS[name].take(subject)
    for i in (0, 3):
        one = Subject(Image(subject.image.pixels[i:i + 1]), subject.prompts[i:i + 1], subject.against)
        assert METRICS[name].take(one)[0] == pytest.approx(whole[i], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", METRICS)
def test_pictures_are_not_changed(name: str, subject: Subject) -> None:
    before = subject.image.pixels.copy()
    METRICS[name].take(subject)
    assert (before == subject.image.pixels).all()


@pytest.mark.parametrize("name", METRICS)
def test_it_says_what_it_is(name: str) -> None:
    assert METRICS[name].name == name and METRICS[name].label and len(METRICS[name].doc) > 40
