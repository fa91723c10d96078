"""The groups of knobs that every op which draws pictures shares. No torch here: surfaces read these."""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from safelight.spec import Knob, OneOf
from safelight.values import Knobs


# Named functions: a class's annotations are evaluated where a lambda in them would not see this module. The registries bring numpy,
# so they are asked for with the names, not with the knobs.
def _samplers() -> Iterable[str]:
    from safelight.sampling.samplers import SAMPLERS

    return SAMPLERS


def schedules() -> Iterable[str]:
    """The schedules' names."""
    from safelight.sampling.schedules import SCHEDULES

    return SCHEDULES


def _curves() -> Iterable[str]:
    from safelight.sampling.curves import CURVES

    return CURVES


def _guidances() -> Iterable[str]:
    from safelight.sampling.guidance import GUIDANCES

    return GUIDANCES


def emphases() -> Iterable[str]:
    """Who may read a prompt's brackets."""
    from safelight.families.prompt import EMPHASES

    return EMPHASES


@dataclass(frozen=True)
class Size(Knobs):
    """How large the pictures are."""

    width: Annotated[int, Knob(0, 16384, step=8, help="pixels; 0: the model's own, or the given picture's")] = 0
    height: Annotated[int, Knob(0, 16384, step=8, help="pixels; 0: as width")] = 0


@dataclass(frozen=True)
class Sampling(Knobs):
    """The way from noise to the picture."""

    sampler: Annotated[str, OneOf(_samplers, help="how a step is made")] = "dpmpp_2m"
    schedule: Annotated[str, OneOf(schedules, help="at which noise levels")] = "sgm_uniform"
    steps: Annotated[int, Knob(1, 10000, help="how many steps")] = 20
    denoise: Annotated[float, Knob(0, 1, step=0.01, help="share of the way walked; below 1 keeps something of a given picture")] = 1.0


@dataclass(frozen=True)
class Scale(Knobs):
    """How much a prompt counts, where its opposite is an input of its own."""

    scale: Annotated[float, Knob(0, 100, step=0.1, help="1 is the prompt as the model takes it; more follows it more closely")] = 4.0
    guide: Annotated[str, OneOf(_guidances, help="cfg; rescale keeps its contrast down; off asks the prompt alone")] = "cfg"
    rescale: Annotated[float, Knob(0, 1, step=0.05, help="for guide=rescale: how much")] = 0.7
    changes: Annotated[tuple[str, ...], "further changes, such as differential=1: a soft mask says when a place is let go"] = ()


@dataclass(frozen=True)
class Stage(Knobs):
    """Which part of the way is walked, where several samplers share it."""

    add_noise: Annotated[bool, "start from the latent with the seed's noise on it; no: it is noisy already"] = True
    start_at_step: Annotated[int, Knob(0, 10000, help="leave out the steps before this one")] = 0
    end_at_step: Annotated[int, Knob(0, 10000, help="stop after this step")] = 10000
    leftover_noise: Annotated[bool, "stopping early, leave the noise in; no: the last step goes to the end"] = False
    sigmas: Annotated[tuple[float, ...], "noise levels to walk along instead of the schedule's, falling; none: the schedule's"] = ()


@dataclass(frozen=True)
class Solver(Knobs):
    """How steps are made, along noise levels that are given."""

    sampler: Annotated[str, OneOf(_samplers, help="how a step is made")] = "dpmpp_2m"
    options: Annotated[tuple[str, ...], "the sampler's own settings, such as eta=0.5; s_noise=1.1 scales the noise of any"] = ()
    add_noise: Annotated[bool, "start from the latent with the seed's noise on it; no: it is noisy already"] = True
    denoised: Annotated[bool, "hand on the picture that the last step saw in its noise, instead of the noisy one"] = False


@dataclass(frozen=True)
class Curve(Knobs):
    """Noise levels that follow a curve, whatever the model."""

    curve: Annotated[str, OneOf(_curves, help="its form")] = "karras"
    steps: Annotated[int, Knob(1, 10000, help="how many steps")] = 20
    high: Annotated[float, Knob(0, 5000, step=0.01, help="the first level; SD's by default")] = 14.614642
    low: Annotated[float, Knob(0, 5000, step=0.01, help="the last one before 0")] = 0.0291675
    rho: Annotated[float | None, Knob(0, 100, step=0.01, help="karras, polyexponential: how bent; nothing: 7 and 1")] = None
    middle: Annotated[float, Knob(-10, 10, step=0.1, help="laplace: log sigma where steps are densest")] = 0.0
    spread: Annotated[float, Knob(0, 10, step=0.1, help="laplace: how far they spread from there")] = 0.5
    beta_d: Annotated[float, Knob(0, 5000, step=0.01, help="vp: how fast the noise's rate grows")] = 19.9
    beta_min: Annotated[float, Knob(0, 5000, step=0.01, help="vp: the rate at the start")] = 0.1
    first_time: Annotated[float, Knob(0, 1, step=0.0001, help="vp: the time of the last level")] = 0.001
    denoise: Annotated[float, Knob(0, 1, step=0.01, help="ays-*: share of the steps walked, the last ones")] = 1.0


@dataclass(frozen=True)
class Canvas(Knobs):
    """The size a picture is said to have, to models that are told one (SDXL and its refiner)."""

    width: Annotated[int, Knob(0, 16384, step=8, help="of the picture that this is said to be cut from; 0: the size it is drawn at")] = 0
    height: Annotated[int, Knob(0, 16384, step=8, help="as width")] = 0
    crop_x: Annotated[int, Knob(0, 16384, step=8, help="how far from the left it is said to be cut")] = 0
    crop_y: Annotated[int, Knob(0, 16384, step=8, help="how far from the top")] = 0
    target_width: Annotated[int, Knob(0, 16384, step=8, help="of the picture it is said to be made for; 0: as width")] = 0
    target_height: Annotated[int, Knob(0, 16384, step=8, help="as target_width")] = 0
    score: Annotated[float | None, Knob(0, 1000, step=0.1, help="for a refiner, how good it looks; nothing: 6, if negative 2.5")] = None


@dataclass(frozen=True)
class Guidance(Knobs):
    """How much the prompt counts, and against what."""

    scale: Annotated[float, Knob(0, 100, step=0.1, help="1 is the prompt as the model takes it; more follows it more closely")] = 4.0
    negative: Annotated[str, Knob(multiline=True, help="what the pictures should not be like")] = ""
    guide: Annotated[str, OneOf(_guidances, help="cfg; rescale keeps its contrast down; off asks the prompt alone")] = "cfg"
    rescale: Annotated[float, Knob(0, 1, step=0.05, help="for guide=rescale: how much")] = 0.7
    emphasis: Annotated[str, OneOf(emphases, help="who reads the brackets: comfy, or a1111, where they multiply and [x] is less")] = "comfy"


SIZE, SAMPLING, GUIDANCE, SCALE, STAGE, CANVAS = Size(), Sampling(), Guidance(), Scale(), Stage(), Canvas()
SOLVER, CURVE = Solver(), Curve()
