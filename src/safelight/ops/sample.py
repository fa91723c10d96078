"""Between pictures and latents, and the sampler between latents: what `generate` does, step by step."""
from __future__ import annotations

import dataclasses
from typing import Annotated

from safelight.op import Knob, Work, op
from safelight.sampling.settings import SAMPLING, SCALE, SIZE, STAGE, Sampling, Scale, Size, Stage
from safelight.values import Cond, Image, Latent, Mask, Model

TILE = Knob(0, 4096, step=64)
OVERLAP = Knob(0, 4096, step=32)


@op(group="latent", version=2)
def sample(
    model: Model, positive: Cond, *,
    latent: Latent,
    negative: Cond | None = None,
    seed: Annotated[int, Knob(0, 2**64 - 1, draw=True)] = -1,
    sampling: Sampling = SAMPLING,
    guidance: Scale = SCALE,
    stage: Stage = STAGE,
) -> Work[Latent]:
    """Draw latents: from noise on a latent to a picture, or one stage of that way.

    Only what the latent's mask covers is drawn. An empty latent may come from any model. Latents picked out of a batch are drawn with
    the noise they had there.

    Args:
        positive: what to draw
        latent: where to start; empty, or a picture's
        negative: what not to draw; may be left out for scale 1
        seed: of the noise; -1 draws one and records it
    """
    from safelight.runtime import lease
    from safelight.sampling.draw import fits
    from safelight.sampling.stage import staged

    with lease(model, holder="sample") as family:
        yield from fits(family)
        work = staged(family, positive, latent, negative=negative, seed=seed, sampling=sampling, scale=guidance, stage=stage)
        return (yield from work)


@op(group="latent", version=3)
def encode(
    model: Model, image: Image, *, size: Size = SIZE, tile: Annotated[int, TILE] = 0, overlap: Annotated[int, OVERLAP] = 64,
) -> Latent:
    """Pictures to latents, by the model's own encoder; what does not fill a cell is cut off the edges.

    Args:
        tile: encode tiles of this side in pixels, one by one, to save memory; 0: the whole picture at once
        overlap: pixels that neighbouring tiles share
    """
    from safelight.runtime import lease
    from safelight.sampling.cells import encoded

    with lease(model, holder="encode") as family:
        return Latent(encoded(family, image, size=size, tile=tile, overlap=overlap), family.name)


@op(group="latent", version=3)
def decode(
    model: Model, latent: Latent, *, tile: Annotated[int, TILE] = 0, overlap: Annotated[int, OVERLAP] = 64,
) -> Work[Image]:
    """Latents to pictures, by the model's own decoder.

    Args:
        tile: decode tiles of this side in pixels, one by one, to save memory; 0: the whole picture at once
        overlap: pixels that neighbouring tiles share
    """
    from safelight.runtime import lease
    from safelight.sampling.cells import decoded

    with lease(model, holder="decode") as family:
        pixels = yield from decoded(family, latent.samples, tile=tile, overlap=overlap)
        return Image(pixels)


@op(group="latent", version=2)
def encode_inpaint(
    model: Model, image: Image, *, mask: Mask, grow: Annotated[int, Knob(0, 64)] = 6, exact: bool = False,
) -> Latent:
    """Pictures to latents that an inpainting model continues: grey where the mask is, and only there drawn over.

    Args:
        mask: where 1, the picture is drawn over; scaled to the picture
        grow: by how many pixels the drawing reaches beyond the mask, so that no seam shows
        exact: leave the latent's mask soft, as it came; otherwise it is rounded
    """
    from safelight.runtime import lease
    from safelight.sampling.cells import holed

    with lease(model, holder="encode_inpaint") as family:
        samples, kept = holed(family, image, mask, grow=0 if exact else grow, soft=exact)
        return Latent(samples, family.name, kept)


@op(group="latent", version=1)
def inpaint_cond(cond: Cond, shown: Latent) -> Cond:
    """Show an inpainting model the picture that it draws into.

    Args:
        cond: what to draw, or what not to draw; give it to both
        shown: from encode_inpaint, best with exact
    """
    import torch

    from safelight.sampling.resize import scaled

    if shown.mask is None:
        raise ValueError("inpaint_cond: shown: got a latent without a mask, expected one from encode_inpaint")
    h, w = shown.samples.shape[-2:]
    mask = scaled(shown.mask, w, h, crop=True).round().expand(len(shown.samples), -1, -1, -1)
    seen = {"inpaint": torch.cat([mask, shown.samples], dim=1)}
    parts = [dataclasses.replace(part, extras={**part.extras, **seen}) for part in cond.parts]
    return dataclasses.replace(parts[0], others=tuple(parts[1:]))
