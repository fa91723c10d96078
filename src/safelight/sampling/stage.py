"""One sampler of a chain: from a latent, perhaps noisy already, to a latent, perhaps still noisy."""
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from safelight.events import Event
from safelight.families import Family
from safelight.families.vision import label
from safelight.sampling import guidance as guides
from safelight.sampling.draw import LOOKS, guide
from safelight.sampling.driver import drive
from safelight.sampling.process import process
from safelight.sampling.request import Request
from safelight.sampling.resize import repeated, scaled
from safelight.sampling.schedules import part, plan
from safelight.sampling.settings import Guidance, Sampling, Scale, Solver, Stage
from safelight.values import Cond, Latent

CELL = 8
"""Pixels a side of a cell of a latent that was made without knowing the model."""

BLANK = (0.8223, -0.6876, 0.6364, 0.1380)
"""Middle grey as SD 1.x's autoencoder has it: what its inpainting network is shown when there is no picture; ComfyUI's figures."""

OWN, MIXED = 10, 0.05
"""How far the seed of pictures' noise is below the sampler's, and the noise on what several say to an unCLIP model; ComfyUI's figures."""


def staged(
    family: Family, positive: Cond, latent: Latent, *, negative: Cond | None, seed: int, sampling: Sampling, scale: Scale, stage: Stage
) -> Generator[Event, None, Latent]:
    """`along` the part of the schedule that the stage says."""
    sigmas = list(stage.sigmas) or part(
        plan(process(family), sampling.steps, schedule=sampling.schedule, sampler=sampling.sampler, denoise=sampling.denoise),
        stage.start_at_step, stage.end_at_step, to_zero=not stage.leftover_noise,
    )
    solver = Solver(sampling.sampler, add_noise=stage.add_noise)
    return (yield from along(family, positive, latent, negative=negative, seed=seed, sigmas=sigmas, scale=scale, solver=solver))


def along(
    family: Family, positive: Cond, latent: Latent, *,
    negative: Cond | None, seed: int, sigmas: Sequence[float], scale: Scale, solver: Solver,
) -> Generator[Event, None, Latent]:
    """Walk along the sigmas; the latent's mask and rows stay with the result. The batch is one draw of noise; `rows` are drawn one by one.

    A level that comes twice running counts once.
    """
    samples = adapted(family, latent)
    sigmas = [s for i, s in enumerate(sigmas) if i == 0 or s != sigmas[i - 1]]
    mask = None if latent.mask is None else scaled(latent.mask, samples.shape[-1], samples.shape[-2])
    if mask is not None and len(mask) != 1:
        mask = repeated(mask, len(samples))
    positive, guidance, graded = _guided(_seen(_shown(family, positive, samples, mask), seed), scale)
    request = Request(
        cond=positive,
        negative=None if negative is None else _seen(_shown(family, negative, samples, mask), seed),
        latent=samples,
        sigmas=sigmas,
        seed=seed,
        sampler=solver.sampler,
        options=settings(solver.options),
        denoised=solver.denoised,
        guidance=guidance,
        graded=graded,
        mask=mask,
        noise=None if solver.add_noise else torch.zeros_like(samples),
        rows=latent.rows,
        preview=-(-len(sigmas) // LOOKS),
    )
    found = yield from drive(family, [request])
    return replace(latent, samples=found[0], family=family.name)


def _guided(positive: Cond, scale: Scale) -> tuple[Cond, guides.Guidance, float]:
    """The condition without a third one, the guidance with that and with changes, and how far a soft mask says when."""
    found, changes = guide(Guidance(scale=scale.scale, guide=scale.guide, rescale=scale.rescale)), settings(scale.changes)
    graded, (first, *rest) = changes.pop("differential", 0.0), positive.parts
    third = next((part for part in rest if part.region.guide), None)
    if third is not None:
        changes = settings([third.region.guide]) | changes
        positive = replace(first, others=tuple(part for part in rest if part is not third))
    return positive, guides.Changed(found, changes, third) if changes else found, graded


def settings(told: Sequence[str]) -> dict[str, float]:
    """`eta=0.5` as {"eta": 0.5}; whole numbers are whole. ValueError for what is not of this form."""
    found: dict[str, float] = {}
    for one in told:
        name, _, value = one.partition("=")
        try:
            number = float(value)
        except ValueError as e:
            raise ValueError(f"sampling: options: got {one!r}; expected a name and a number, such as eta=0.5") from e
        found[name.strip()] = int(number) if number.is_integer() else number
    return found


def adapted(family: Family, latent: Latent) -> Tensor:
    """The samples, of the family's channels. An empty latent (all zeros) fits every family; ValueError when another one does not."""
    samples = latent.samples
    if samples.count_nonzero():
        if samples.shape[1] != family.channels:
            wanted = f"expected {family.channels} for {family.name}; encode the picture by this model"
            raise ValueError(f"sample: latent: got {samples.shape[1]} channels, {wanted}")
        return samples
    h, w = samples.shape[-2:] if latent.family == family.name else (max(1, round(n * CELL / family.factor)) for n in samples.shape[-2:])
    return samples.new_zeros(len(samples), family.channels, h, w)


def _shown(family: Family, cond: Cond, samples: Tensor, mask: Tensor | None) -> Cond:
    """For an inpainting network a condition without its picture is shown the latent itself and the mask, or grey and a mask of all."""
    if all("inpaint" in part.extras for part in cond.parts) or not _inpaints(family):
        return cond
    if mask is not None:
        seen = torch.cat([mask.round().expand(len(samples), -1, -1, -1), samples], dim=1)
    elif family.channels == len(BLANK):
        shape = samples[:, :1].shape
        seen = torch.cat([torch.ones(shape), *(torch.full(shape, value) for value in BLANK)], dim=1)
    else:
        return cond
    parts = [part if "inpaint" in part.extras else replace(part, extras={**part.extras, "inpaint": seen}) for part in cond.parts]
    return replace(parts[0], others=tuple(parts[1:]))


def _seen(cond: Cond, seed: int) -> Cond:
    """With what `pictures` (1, N, P + 2) say under the seed's noise: as the label of an unCLIP model, or as SDXL's pooled text."""
    parts = [replace(p, extras={**p.extras, **_said(p.extras, seed)}) if "pictures" in p.extras else p for p in cond.parts]
    return replace(parts[0], others=tuple(parts[1:]))


def _said(extras: Mapping[str, Tensor], seed: int) -> Mapping[str, Tensor]:
    pictures, pooled = extras["pictures"][0], extras.get("pooled")
    if pooled is None:
        return {"label": label(pictures, seed - OWN, mixed=MIXED)}
    if (wide := pooled.shape[1]) != pictures.shape[1] - 2:
        raise ValueError(f"sample: pictures: got vectors of {pictures.shape[1] - 2}, and this model's text has {wide}; take its own CLIP")
    return {"pooled": label(pictures, seed - OWN, mixed=0.0)[:, :wide]}


def _inpaints(family: Family) -> bool:
    f = family.factor
    return bool(family.inpainting(torch.full((1, f, f, 3), 0.5), torch.ones(1, 1, f, f)))
