"""Samplers."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from safelight.comfy.building import Building, Link, Steer, Words
from safelight.comfy.node import Given, Places, choice, integer, node, real, seed, socket
from safelight.op import load_ops

ON_GPU = "_gpu"
"""ComfyUI's samplers whose noise is drawn on the GPU, and so is another on each; ours is always drawn on the CPU."""


def samplers(_: Places) -> Sequence[str]:
    """The samplers there are, by ComfyUI's names."""
    known = _choices("sampler")
    return [*known, *(name + ON_GPU for name in ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde") if name in known)]


def schedules(_: Places) -> Sequence[str]:
    """The schedules there are."""
    return _choices("schedule")


def _choices(setting: str) -> list[str]:
    return [str(name) for name in load_ops()["sample"].spec.setting[setting].choices or ()]


WAY = [integer("steps", 20, 1, 10000), real("cfg", 8.0, 0, 100, 0.1, digits=0.01),
       choice("sampler_name", samplers), choice("scheduler", schedules)]
WHAT = [*socket("CONDITIONING", "positive", "negative"), *socket("LATENT", "latent_image")]


def _sampled(b: Building, n: Given, noise_seed: int, **more: Any) -> Link:
    positive, negative = n["positive"], n["negative"]
    return b.add(
        "sample", model=steered(b, n["model"], positive, negative), positive=positive.cond, negative=negative.cond,
        latent=n["latent_image"], seed=noise_seed, steps=n["steps"], scale=n["cfg"],
        sampler=n["sampler_name"].removesuffix(ON_GPU), schedule=n["scheduler"], **dict(n["model"].sampled), **more,
    )


def steered(b: Building, model: Link, positive: Words, negative: Words) -> Link:
    """The model with the ControlNets that the conditions carry, and the GLIGEN."""
    if found := positive.gligen or negative.gligen:
        model = b.add("with_network", part="gligen", model=model, kind="gligen", path=found)
    for i, (steer, side) in enumerate(_steers(positive, negative)):
        model = b.add(
            "with_control", part="control" if not i else f"control{i}", model=model, control=steer.control, image=steer.image,
            strength=steer.strength, start=steer.start, end=steer.end, side=None if side == "both" else side,
        )
    return model


def _steers(positive: Words, negative: Words) -> Iterator[tuple[Steer, str]]:
    """What steers which side. As in ComfyUI, what the old node put on the positive condition steers the negative one too, if that carries
    no ControlNet itself; the node that came last decides."""
    rest = list(positive.steers if positive.steers and positive.steers[-1].both and not negative.steers else negative.steers)
    for steer in positive.steers:
        shared = steer in rest
        if shared:
            rest.remove(steer)
        yield steer, "both" if shared else "positive"
    for steer in rest:
        yield steer, "negative"


@node("KSampler", "sampling", [*socket("MODEL"), seed(), *WAY, *WHAT, real("denoise", 1.0, 0, 1)], "LATENT")
def ksampler(b: Building, n: Given) -> Any:
    """From a latent to a picture's latent."""
    return _sampled(b, n, n["seed"], denoise=n["denoise"])


@node("KSamplerAdvanced", "sampling",
      [*socket("MODEL"), choice("add_noise", ("enable", "disable")), seed("noise_seed"), *WAY, *WHAT, integer("start_at_step", 0, 0, 10000),
       integer("end_at_step", 10000, 0, 10000), choice("return_with_leftover_noise", ("disable", "enable"))], "LATENT",
      title="KSampler (Advanced)")
def ksampler_advanced(b: Building, n: Given) -> Any:
    """One stage of the way."""
    return _sampled(
        b, n, n["noise_seed"], add_noise=n["add_noise"] == "enable", start_at_step=n["start_at_step"], end_at_step=n["end_at_step"],
        leftover_noise=n["return_with_leftover_noise"] == "enable",
    )
