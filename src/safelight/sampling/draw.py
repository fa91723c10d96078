"""From prompts to pictures on a loaded model: texts encoded once, all trajectories walked together, latents decoded."""
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from safelight.events import Event, Note, Progress
from safelight.families.prompt import in_comfy
from safelight.patches import told
from safelight.patches.rows import PICTURE
from safelight.sampling import guidance as guides
from safelight.sampling.driver import drive
from safelight.sampling.process import process
from safelight.sampling.request import Request, blank
from safelight.sampling.schedules import plan
from safelight.sampling.settings import Guidance, Sampling, Size
from safelight.sampling.tags import plain
from safelight.values import Cond, Image, Mask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from safelight.families import Family

AT_ONCE = 8
"""Pictures decoded in one pass."""

LOOKS = 10
"""About how many previews a picture sends on its way."""


@dataclass(frozen=True)
class Shot:
    """One picture to draw. `start` is a latent (1, C, h, w) to begin from, `mask` (1, 1, h, w) where it may change; `seen` is what an
    inpainting network is shown of the picture (`Family.inpainting`)."""

    prompt: str
    seed: int
    sampling: Sampling
    guidance: Guidance
    start: Tensor
    mask: Tensor | None = None
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    def info(self) -> dict[str, Any]:
        """What is written beside the picture."""
        s, g = self.sampling, self.guidance
        told = {"prompt": self.prompt, "negative": g.negative, "seed": self.seed, "steps": s.steps, "sampler": s.sampler}
        return told | {"schedule": s.schedule, "cfg": 1.0 if g.guide == "off" else g.scale, "denoise": s.denoise}


def draw(family: Family, shots: Sequence[Shot], *, previews: bool = True) -> Generator[Event, None, Image]:
    """Draw the shots, all of one size, in one go; the batch, with each picture's `info`. Weights stay where they are."""
    latents = yield from walk(family, shots, previews=previews)
    pixels: list[NDArray[np.float32]] = []
    for start in range(0, len(latents), AT_ONCE):
        pixels += list(family.decode(torch.cat(list(latents[start : start + AT_ONCE]))).cpu().numpy())
        yield Progress(step=len(pixels), total=len(shots), what="decode", unit="picture")
    found = np.stack(pixels)
    size = {"size": [found.shape[2], found.shape[1]]}
    return Image(found, tuple(shot.info() | size for shot in shots))


def walk(family: Family, shots: Sequence[Shot], *, previews: bool = True) -> Generator[Event, None, list[Tensor]]:
    """The shots' latents, (1, C, h, w) each."""
    written = [[in_comfy(plain(t), s.guidance.emphasis) for t in (s.prompt, s.guidance.negative)] for s in shots]
    wanted = encode(family, [prompt for prompt, _ in written])
    unwanted = encode(family, [negative for _, negative in written], negative=True)
    way = process(family)
    requests = [
        Request(
            cond=_shown(wanted[written[i][0]], s, i),
            negative=_shown(unwanted[written[i][1]], s, i),
            latent=s.start,
            sigmas=plan(way, s.sampling.steps, schedule=s.sampling.schedule, sampler=s.sampling.sampler, denoise=s.sampling.denoise),
            seed=s.seed,
            sampler=s.sampling.sampler,
            guidance=guide(s.guidance),
            mask=s.mask,
            preview=-(-s.sampling.steps // LOOKS) if previews else 0,
        )
        for i, s in enumerate(shots)
    ]
    return (yield from drive(family, requests))


@torch.no_grad()
def encode(family: Family, texts: Sequence[str], *, negative: bool = False) -> Mapping[str, Cond]:
    """Each different text's condition."""
    return {t: family.encode_text([t], negative=negative) for t in dict.fromkeys(texts)}


def _shown(cond: Cond, shot: Shot, picture: int) -> Cond:
    return replace(cond, extras={**cond.extras, **shot.seen, PICTURE: torch.tensor([picture])})


def guide(g: Guidance) -> guides.Guidance:
    """The guidance object for the knobs."""
    made: dict[str, guides.Guidance] = {"off": guides.Off(), "cfg": guides.CFG(g.scale), "rescale": guides.Rescale(g.scale, g.rescale)}
    return made[g.guide]


def fitting(family: Family, size: Size, image: Image | None) -> Size:
    """The size to draw at: what was asked, else the given picture's cut to a multiple of the factor, else the model's own."""
    height, width = image.pixels.shape[1:3] if image is not None else (family.size, family.size)
    wide = size.width or (size.height if image is None and size.height else width // family.factor * family.factor)
    high = size.height or (size.width if image is None and size.width else height // family.factor * family.factor)
    if min(wide, high) < family.factor or wide % family.factor or high % family.factor:
        raise ValueError(f"generate: size {wide} x {high}; expected multiples of {family.factor} for this model")
    return Size(wide, high)


def starts(family: Family, size: Size, count: int, image: Image | None, mask: Mask | None) -> list[tuple[Tensor, Tensor | None]]:
    """For each of `count` pictures its first latent and its mask. One picture or mask serves all; ValueError for another number."""
    size = fitting(family, size, image)
    if image is None:
        if mask is not None:
            raise ValueError("generate: got a mask and no image; expected the picture that the mask is for")
        return [(z, None) for z in blank(family, size.width, size.height, count).split(1)]
    pixels = cover(image.pixels, size)
    latents = _each("image", family.encode_image(pixels).cpu().split(1), count)
    if mask is None:
        return [(z, None) for z in latents]
    shown = cover(mask.values[..., None], size).permute(0, 3, 1, 2)  # (B, 1, H, W)
    return list(zip(latents, _each("mask", shown.split(1), count), strict=True))


def seen(family: Family, size: Size, count: int, image: Image | None, mask: Mask | None) -> list[Mapping[str, Tensor]]:
    """For each of `count` pictures what an inpainting network is shown of `image`; nothing where there is no mask."""
    if image is None or mask is None:
        return [{}] * count
    size = fitting(family, size, image)
    pixels, covered = cover(image.pixels, size), cover(mask.values[..., None], size).permute(0, 3, 1, 2)
    rows = zip(_each("image", pixels.split(1), count), _each("mask", covered.split(1), count), strict=True)
    return [family.inpainting(p, m) for p, m in rows]


def _each(name: str, given: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    if len(given) not in (1, count):
        raise ValueError(f"generate: {name} is a batch of {len(given)} for {count} pictures; expected 1 or {count}")
    return given if len(given) == count else list(given) * count


def warnings(image: Image | None, sampling: Sampling) -> Generator[Event, None, None]:
    """What the user may not have meant."""
    if image is not None and sampling.denoise == 1:
        yield Note(text="generate: denoise is 1, which keeps nothing of the given picture but its size; try 0.5", level="warning")


def fits(family: Family) -> Generator[Event, None, None]:
    """How the patches fit the model that was just leased."""
    for text in told(family):
        yield Note(text=text)


def painted_over(image: Image, drawn: Image, mask: Mask) -> Image:
    """The given picture where the mask is 0, to the pixel; the drawn one where it is 1."""
    size = Size(drawn.pixels.shape[2], drawn.pixels.shape[1])
    m, before = cover(mask.values[..., None], size).numpy(), cover(image.pixels, size).numpy()
    return replace(drawn, pixels=np.asarray(before * (1 - m) + drawn.pixels * m, dtype=np.float32))


def cover(values: NDArray[np.float32], size: Size) -> Tensor:
    """(B, H, W, C) scaled to cover the size, the middle cut out: (B, height, width, C). What has the size already is not touched."""
    x = torch.from_numpy(np.array(values)).movedim(-1, 1)  # (B, C, H, W)
    scale = max(size.width / x.shape[3], size.height / x.shape[2])
    if scale != 1:
        grown = max(size.height, round(x.shape[2] * scale)), max(size.width, round(x.shape[3] * scale))
        x = torch.nn.functional.interpolate(x, grown, mode="bilinear", antialias=True).clamp(0, 1)
    top, left = (x.shape[2] - size.height) // 2, (x.shape[3] - size.width) // 2
    return x[:, :, top : top + size.height, left : left + size.width].movedim(1, -1)
