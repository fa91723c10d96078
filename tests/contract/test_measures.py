"""What every measure and every captioner keeps, whichever there are."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.data.captioners import CAPTIONERS, Asked
from safelight.data.measures import MEASURES, Picture, find
from safelight.data.networks import USUAL
from safelight.values import Blob, Caption, Row

SIZES = [(1, 1), (2, 3), (64, 64), (300, 200), (30, 900)]


def row(folder: Path, size: tuple[int, int]) -> Row:
    path = folder / f"{size[0]}x{size[1]}.png"
    Pil.fromarray(np.random.default_rng(size).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return Row(Blob.of(path), path.name, *size, (Caption("file", "noise"),), info={"bytes": path.stat().st_size})


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_is_a_finite_number_of_the_picture_alone(name: str, tmp_path: Path) -> None:
    for size in SIZES:
        one = row(tmp_path, size)
        value = find(name).take(Picture(one))
        assert isinstance(value, int | float) and math.isfinite(value) and value >= 0
        assert find(name).take(Picture(one)) == value


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_says_what_it_is(name: str) -> None:
    m = MEASURES[name]
    assert m.label and m.doc.endswith(".") and m.needs in ("header", "pixels") and m.name == m.take.__name__


@pytest.mark.parametrize("name", [n for n, m in MEASURES.items() if m.needs == "header"])
def test_a_header_measure_opens_no_file(name: str) -> None:
    assert MEASURES[name].take(Picture(Row(Blob("/nowhere", "0"), "x", 30, 20))) >= 0


def test_an_unknown_measure_is_named() -> None:
    with pytest.raises(ValueError, match="no measure 'shiny'"):
        find("shiny")


@pytest.mark.parametrize("name", [n for n in CAPTIONERS if n not in ("tagger", *USUAL)])
def test_a_captioner_gives_one_text_a_row(name: str, tmp_path: Path) -> None:
    rows = [row(tmp_path, size) for size in SIZES]
    work = CAPTIONERS[name](rows, Asked())
    while True:
        try:
            next(work)
        except StopIteration as stop:
            assert stop.value == ["noise"] * len(rows)
            return
