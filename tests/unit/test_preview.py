"""A glance at a latent."""
from __future__ import annotations

import io
from base64 import b64decode
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from safelight.sampling.preview import LARGEST, Previewed, colours, jpeg
from tests.gaussian import Plain


@dataclass
class Seen(Plain):
    """Channels 0 to 2 are red, green and blue around the middle grey."""

    @property
    def preview_matrix(self) -> Tensor:
        return torch.cat([torch.eye(4, 3) / 2, torch.full((1, 3), 0.5)])


def test_a_family_says_what_its_channels_look_like() -> None:
    latent = torch.zeros(1, 4, 2, 2)
    latent[0, 0], latent[0, 1], latent[0, 2] = 1.0, -1.0, 9.0
    assert isinstance(Seen(), Previewed) and not isinstance(Plain(), Previewed)
    assert torch.equal(colours(Seen(), latent), torch.tensor([1.0, 0.0, 1.0]).expand(1, 2, 2, 3))


def test_another_is_shown_in_grey_at_full_range() -> None:
    latent = torch.randn(2, 16, 4, 6)
    got = colours(Plain(), latent)
    assert got.shape == (2, 4, 6, 3) and torch.equal(got[..., 0], got[..., 2])
    assert torch.allclose(got.amin((1, 2, 3)), torch.zeros(2)) and torch.allclose(got.amax((1, 2, 3)), torch.ones(2))
    assert colours(Plain(), torch.ones(1, 4, 2, 2)).isfinite().all()


@pytest.mark.parametrize(("cells", "size"), [((8, 12), (96, 64)), ((128, 64), (256, LARGEST))])
def test_a_jpeg_of_the_pictures_size_up_to_a_limit(cells: tuple[int, int], size: tuple[int, int]) -> None:
    latent = torch.zeros(2, 4, *cells)
    latent[:, 0] = 0.5
    first, second = (Image.open(io.BytesIO(b64decode(j))) for j in jpeg(Seen(), latent))
    assert first.format == "JPEG" and first.size == second.size == size
    assert np.abs(np.asarray(first).reshape(-1, 3).mean(axis=0) - [191, 128, 128]).max() < 4
