"""Noise levels as values, and drawing along them."""
from __future__ import annotations

from typing import Annotated, Literal

from safelight.op import Knob, OneOf, Work, op
from safelight.sampling.settings import CURVE, SCALE, SOLVER, Curve, Scale, Solver, schedules
from safelight.values import Cond, Latent, Model, Sigmas

SEED = Knob(0, 2**64 - 1, draw=True)
LEVEL = Knob(0, 20000, step=0.001)
SHAPE = Knob(0, 50, step=0.01)


@op(group="latent", version=1)
def sample_along(
    model: Model, positive: Cond, *,
    latent: Latent,
    sigmas: Sigmas,
    negative: Cond | None = None,
    seed: Annotated[int, SEED] = -1,
    guidance: Scale = SCALE,
    solver: Solver = SOLVER,
) -> Work[Latent]:
    """Draw latents along noise levels of your own, by a sampler with settings of your own. Otherwise as `sample`.

    Args:
        positive: what to draw
        latent: where to start; empty, or a picture's
        sigmas: the noise levels; rising ones, with a sampler without noise, lead a picture back to its noise
        negative: what not to draw; may be left out for scale 1
        seed: of the noise; -1 draws one and records it
    """
    from safelight.runtime import lease
    from safelight.sampling.draw import fits
    from safelight.sampling.stage import along

    with lease(model, holder="sample_along") as family:
        yield from fits(family)
        levels = sigmas.levels
        work = along(family, positive, latent, negative=negative, seed=seed, sigmas=levels, scale=guidance, solver=solver)
        return (yield from work)


@op(group="latent", version=1)
def model_sigmas(
    model: Model, *,
    schedule: Annotated[str, OneOf(lambda: [*schedules(), "turbo"])] = "normal",
    steps: Annotated[int, Knob(1, 10000)] = 20,
    denoise: Annotated[float, Knob(0, 1, step=0.01)] = 1.0,
    alpha: Annotated[float, SHAPE] = 0.6,
    beta: Annotated[float, SHAPE] = 0.6,
) -> Sigmas:
    """The noise levels that a schedule takes of what the model was trained at.

    Args:
        schedule: by name, or turbo: the levels that SD Turbo and its kind were taught at, for at most ten steps
        steps: how many steps
        denoise: share of the way walked; below 1 it is its last part
        alpha: for schedule=beta: the distribution's first parameter
        beta: for schedule=beta: the second
    """
    import numpy as np

    from safelight.runtime import lease
    from safelight.sampling.curves import turbo
    from safelight.sampling.process import process
    from safelight.sampling.schedules import SCHEDULES, plan

    with lease(model, holder="model_sigmas") as family:
        way = process(family)
    if schedule == "turbo":
        return Sigmas(tuple(turbo(way, steps, denoise)))
    if min(alpha, beta) <= 0:
        raise ValueError(f"model_sigmas: got alpha={alpha:g}, beta={beta:g}; expected more than 0 of both")
    if schedule == "beta" and (alpha, beta) != (0.6, 0.6):
        total = int(steps / denoise) if denoise else 0
        found = np.asarray(SCHEDULES["beta"](way, total, alpha, beta), dtype=np.float32).tolist() if total else []
    else:
        found = plan(way, steps, schedule=schedule, denoise=denoise)
    return Sigmas(tuple(found[-(steps + 1) :]))


@op(group="latent", version=1)
def sigmas(*, shape: Curve = CURVE) -> Sigmas:
    """Noise levels along a curve, whatever the model."""
    from safelight.sampling.curves import levels

    return Sigmas(tuple(levels(shape)))


@op(group="latent", version=1)
def cut_sigmas(
    sigmas: Sigmas, *,
    keep: Literal["high", "low"] = "low",
    step: Annotated[int, Knob(0, 10000)] = 0,
    share: Annotated[float | None, Knob(0, 1, step=0.01)] = None,
) -> Sigmas:
    """The part of the noise levels before a step, or from it on; both have the level in between.

    Args:
        keep: high: before the step; low: from it on
        step: where to cut
        share: instead of a step: the share of the steps that are low
    """
    levels = sigmas.levels
    at = step if share is None else max(len(levels) - 1, 0) - round(max(len(levels) - 1, 0) * share)
    return Sigmas(levels[: at + 1] if keep == "high" else levels[at:])


@op(group="latent", version=1)
def flip_sigmas(sigmas: Sigmas) -> Sigmas:
    """The same noise levels from the last to the first, 0 as 0.0001: from a picture to its noise."""
    import numpy as np

    levels = sigmas.levels[::-1]
    return Sigmas((levels[0] or float(np.float32(1e-4)), *levels[1:]) if levels else ())


@op(group="latent", version=1)
def set_first_sigma(sigmas: Sigmas, *, sigma: Annotated[float, LEVEL] = 136.0) -> Sigmas:
    """The same noise levels with another first one.

    Args:
        sigma: the new level
    """
    import numpy as np

    return Sigmas((float(np.float32(sigma)), *sigmas.levels[1:]))


@op(group="latent", version=1)
def add_noise(model: Model, latent: Latent, *, sigmas: Sigmas, seed: Annotated[int, SEED] = -1) -> Latent:
    """Put as much noise on a latent as lies between the first and the last noise level.

    Args:
        latent: what is to be noisy
        sigmas: the noise levels; nothing happens when there are none
        seed: of the noise; -1 draws one and records it
    """
    import dataclasses

    from safelight.runtime import lease
    from safelight.sampling.noise import start_noise
    from safelight.sampling.process import process
    from safelight.sampling.stage import adapted

    if not sigmas.levels:
        return latent
    with lease(model, holder="add_noise") as family:
        samples, way = adapted(family, latent), process(family)
    level = abs(sigmas.levels[0] - sigmas.levels[-1]) if len(sigmas.levels) > 1 else sigmas.levels[0]
    noisy = way.noised(samples, start_noise(samples.shape, seed, latent.rows), level)
    return dataclasses.replace(latent, samples=noisy, family=model.family)


@op(group="latent", version=1)
def extend_sigmas(
    sigmas: Sigmas, *, steps: Annotated[int, Knob(1, 100)] = 2, start: Annotated[float | None, LEVEL] = None,
    end: Annotated[float, LEVEL] = 12.0, spacing: Literal["linear", "cosine", "sine"] = "linear",
) -> Sigmas:
    """Noise levels with further ones between some of them.

    Args:
        steps: how many steps each of those becomes
        start: only below this level; nothing: from the first on
        end: only down to this level
        spacing: linear; cosine goes fast first, sine slowly
    """
    import math

    def bent(x: float) -> float:
        return x if spacing == "linear" else math.sin(x * math.pi / 2) if spacing == "cosine" else 1 - math.cos(x * math.pi / 2)

    out: list[float] = []
    for s, t in zip(sigmas.levels, sigmas.levels[1:], strict=False):
        inside = end <= s <= (math.inf if start is None else start)
        out += [s, *((t - s) * bent(i / steps) + s for i in range(1, steps) if inside)]
    return Sigmas((*out, *sigmas.levels[-1:]))
