"""Pictures to latents and back by a family's autoencoder: whole or in tiles, with a hole to be painted over or without."""
from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from safelight.events import Event, Progress
from safelight.families import Family
from safelight.sampling.draw import AT_ONCE, cover, fitting
from safelight.sampling.resize import grid, grown, plane, scaled
from safelight.sampling.settings import Size
from safelight.values import Image, Mask

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def encoded(family: Family, image: Image, *, size: Size, tile: int, overlap: int) -> Tensor:
    """(B, C, h, w) of the pictures, their edges cut to whole cells; with a size, of what covers it."""
    if size.width or size.height:
        pixels = cover(image.pixels, fitting(family, size, image))
    else:
        pixels = whole_cells(grid(image), family.factor).movedim(1, -1)
    some = pixels.split(1 if tile else AT_ONCE)
    return torch.cat([family.encode_image(p, tile=tile, overlap=overlap).cpu() for p in some])


def decoded(family: Family, latent: Tensor, *, tile: int, overlap: int) -> Generator[Event, None, NDArray[np.float32]]:
    """(B, H, W, 3) float32 in [0, 1]."""
    out: list[Tensor] = []
    for rows in latent.split(1 if tile else AT_ONCE):
        out += family.decode(rows, tile=tile, overlap=overlap).cpu()
        yield Progress(step=len(out), total=len(latent), what="decode", unit="picture")
    return torch.stack(out).contiguous().numpy()


def holed(family: Family, image: Image, mask: Mask, *, grow: int, soft: bool) -> tuple[Tensor, Tensor]:
    """The latent (B, C, h, w) of the pictures with grey where the mask rounds to 1, and the mask (B, 1, H, W) `grow` pixels larger, rounded
    unless `soft`. Both without what does not fill a cell."""
    pixels = grid(image)
    over = whole_cells(scaled(plane(mask), pixels.shape[3], pixels.shape[2]), family.factor)
    painted = ((whole_cells(pixels, family.factor) - 0.5) * (1.0 - over.round()) + 0.5).movedim(1, -1)
    kept = over if soft else (grown(over.round(), grow) if grow else over).round()
    return torch.cat([family.encode_image(p).cpu() for p in painted.split(AT_ONCE)]), kept


def whole_cells(x: Tensor, factor: int) -> Tensor:
    """(B, C, H, W) without the rows and columns that fill no cell, half of them off each edge. ValueError when nothing is left."""
    for dim in (2, 3):
        n = x.shape[dim]
        if n < factor:
            raise ValueError(f"encode: image: got {x.shape[3]} x {x.shape[2]} pixels, expected at least {factor} a side")
        x = x.narrow(dim, n % factor // 2, n // factor * factor)
    return x
