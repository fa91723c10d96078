"""The edge ControlNet that comes with the package: small enough, and it follows edges."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

import safelight as sl
from safelight import folders
from safelight.data import hints
from safelight.sampling.settings import Sampling


def _edges(pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(B, H, W) of (B, H, W, 3)."""
    return hints.make(pixels, "canny", hints.Asked())[..., 0] > 0.5


def _found(wanted: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> float:
    """The share of the wanted edges with a drawn one at most two pixels away."""
    near = np.stack([binary_dilation(one, iterations=2) for one in drawn])
    return float((wanted & near).sum() / wanted.sum())


@pytest.mark.parametrize("name", ["mini-edges", "mini-edges.safetensors"])
def test_it_is_found_by_name_and_small(name: str) -> None:
    file = folders.current().find("controlnet", name)
    assert file.stat().st_size < 12e6
    assert sl.load_control(Path(name)).info["layout"] == "diffusers"


def test_pictures_follow_the_edges_whatever_the_prompt() -> None:
    source = sl.generate(sl.model("mini"), "a man with black hair, blue background", seeds=[11, 12], sampling=Sampling(steps=10))
    lines = sl.hint(source, by="canny")
    wanted = lines.pixels[..., 0] > 0.5
    asked = {"prompt": "a girl with long pink hair, white background", "seeds": [1, 2], "sampling": Sampling(steps=10)}
    free = sl.generate(sl.model("mini"), **asked)
    led = sl.generate(sl.with_control(sl.model("mini"), sl.load_control(Path("mini-edges")), image=lines), **asked)
    assert _found(wanted, _edges(led.pixels)) > _found(wanted, _edges(free.pixels)) + 0.2
