"""The groups of knobs that training recipes share. No torch here: surfaces read these."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from safelight.spec import Knob, OneOf
from safelight.values import Knobs

_ATTENTION = r"attn\d?\.(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
_BLOCK = r"|ff(_context)?\.net\.(0\.proj|2)|proj_in|proj_out"
_RESNET = r"|resnets\.\d+\.(conv1|conv2|conv_shortcut|time_emb_proj)|(down|up)samplers\.0\.conv"

TARGETS = {"attention": _ATTENTION, "transformer": _ATTENTION + _BLOCK, "full": _ATTENTION + _BLOCK + _RESNET}
"""Sets of layers of a U-Net or a transformer that a LoRA may change, as patterns for the end of a layer's path."""


def _targets() -> Iterable[str]:
    return TARGETS


def methods() -> list[str]:
    """What an adapter can be, by the names of the files that do it."""
    return sorted(p.stem.replace("_", "-") for p in (Path(__file__).parent / "trainables" / "methods").glob("[a-z]*.py"))


@dataclass(frozen=True)
class LoraShape(Knobs):
    """What of the model is trained, and how wide (arXiv:2106.09685)."""

    rank: Annotated[int, Knob(1, 1024, help="width of the bottleneck; more learns finer detail and makes a larger file")] = 16
    alpha: Annotated[float | None, Knob(0.001, 4096, help="the change counts alpha / rank; nothing: as much as rank")] = None
    targets: Annotated[str, OneOf(_targets, help="layers of the U-Net; a small one learns little with its attention alone")] = "full"
    text_encoder: Annotated[bool, "train the text encoder's layers too"] = True
    method: Annotated[str, OneOf(methods, help="what is trained beside each layer; lora is what every program reads")] = "lora"
    plus: Annotated[float, Knob(0.01, 100, help="the up matrices' rate is this many times the others' (LoRA+); 4 to 16 are usual")] = 1.0
    init: Annotated[Literal["kaiming", "gaussian", "pissa"], "where down begins; pissa: both at the weight's main directions"] = "kaiming"
    share: Annotated[float, Knob(0, 1, help="for lora-drop: layers that say this share of the change keep a LoRA of their own")] = 0.9


@dataclass(frozen=True)
class Optimizer(Knobs):
    """How a step is made: by which optimizer, and at what rate."""

    lr: Annotated[float, Knob(0, 10, help="learning rate; prodigy finds it by itself and wants 1")] = 1e-3
    kind: Annotated[Literal["adamw", "adamw8bit", "prodigy", "schedulefree", "adafactor", "lion"], (
        "adamw8bit needs a quarter of its memory, prodigy finds the rate, schedulefree needs no decay")] = "adamw"
    weight_decay: Annotated[float, Knob(0, 1, help="decoupled weight decay")] = 0.01
    betas: Annotated[tuple[float, float], Knob(0, 0.99999, help="decay of the running mean and of the running square")] = (0.9, 0.99)
    d_coef: Annotated[float, Knob(0.01, 100, help="for prodigy: the rate that it finds is multiplied by this")] = 1.0
    clip: Annotated[float, Knob(0, help="largest norm of the gradient; 0: any")] = 1.0
    decay: Annotated[Literal["constant", "cosine", "linear", "restarts", "polynomial", "rex"], (
        "how the rate falls after the warm-up")] = "cosine"
    warmup: Annotated[int, Knob(0, help="steps over which the learning rate rises")] = 20
    cycles: Annotated[int, Knob(1, 1000, help="how often the rate falls, for restarts")] = 3
    power: Annotated[float, Knob(0.1, 10, help="of what is left of the steps, for polynomial")] = 2.0
    average: Annotated[float, Knob(0, 0.99999, help="decay of a moving average of the weights, then watched and kept; 0: none")] = 0.0
    checkpointing: Annotated[bool, "compute activations a second time instead of keeping them: less memory, about a third slower"] = False

    def __post_init__(self) -> None:
        """ValueError for settings that say two things."""
        if self.kind == "prodigy" and self.lr < 0.1:
            raise ValueError(f"lr {self.lr:g} for prodigy, which finds the rate; lr is a factor of what it finds, expected 0.1 to 10")
        if self.d_coef != 1 and self.kind != "prodigy":
            raise ValueError(f"d_coef {self.d_coef:g} is for prodigy; leave it out for {self.kind}")
        if self.kind == "schedulefree" and (self.average or not self.betas[0]):
            raise ValueError("schedulefree averages the weights by itself; expected average 0 and a first beta over 0")


@dataclass(frozen=True)
class Batches(Knobs):
    """How long, and what is seen at once."""

    steps: Annotated[int, Knob(1, 10_000_000, help="optimizer steps")] = 400
    batch: Annotated[int, Knob(1, 4096, help="pictures a step")] = 8
    size: Annotated[int, Knob(0, 4096, step=8, help="side of the square the pictures are cut to, pixels; 0: the model's own")] = 0
    drop: Annotated[float, Knob(0, 1, help="share of pictures shown with an empty caption")] = 0.05
    at_once: Annotated[int, Knob(0, 4096, help="pictures of a step that are in memory at once; 0: all; fewer take less, and longer")] = 0
    buckets: Annotated[bool, "keep the pictures' shapes: cut them to sizes of about the same area, each step to one of them"] = False
    crops: Annotated[int, Knob(1, 64, help="windows taken of each picture, of which each step shows one; 1: the middle")] = 1
    flip: Annotated[bool, "show half of the pictures mirrored, but for those whose captions speak of sides or writing"] = False
    several: Annotated[bool, "draw one of the captions a picture has had, of all its layers, at each step"] = False
    shuffle: Annotated[bool, "put the parts between commas in another order at each step"] = False
    keep: Annotated[int, Knob(0, 100, help="parts of a caption that stay first and are never dropped")] = 1
    drop_parts: Annotated[float, Knob(0, 1, help="chance of each other part of being left out")] = 0.0


@dataclass(frozen=True)
class Objective(Knobs):
    """What counts as good."""

    weigh: Annotated[Literal["min_snr", "soft_min_snr", "snr", "debiased"], "how noise levels count; the first two by a gamma"] = "min_snr"
    min_snr: Annotated[float, Knob(0, 1000, help="gamma of min-SNR weighting (arXiv:2303.09556); 0: every noise level counts alike")] = 0.0
    times: Annotated[Literal["uniform", "logit_normal", "mode"], "how noise levels are drawn (arXiv:2403.03206)"] = "uniform"
    mean: Annotated[float, Knob(-10, 10, help="of logit_normal; above 0 is towards noise")] = 0.0
    spread: Annotated[float, Knob(-2, 10, help="deviation of logit_normal, or scale of mode, which is -1 to 1.75")] = 1.0
    towards_noise: Annotated[float, Knob(0, 10, help="draw noise levels with a density that rises as time to this power")] = 0.0
    shift: Annotated[float, Knob(0.01, 100, help="move the drawn levels towards noise, beyond the model's own table; 1: do not")] = 1.0
    lowest: Annotated[float, Knob(0, 1, help="where the drawn levels begin, as share of the table")] = 0.0
    highest: Annotated[float, Knob(0, 1, help="where they end")] = 1.0
    loss: Annotated[Literal["l2", "l1", "huber"], "the square of an error, its size, or pseudo-Huber (arXiv:2403.16728)"] = "l2"
    huber: Annotated[float, Knob(0.0001, 10, help="c of pseudo-Huber: errors beyond count by their size")] = 0.1
    huber_falls: Annotated[Literal["constant", "time", "snr"], "c for all noise levels, or falling from 1 with time or with SNR"] = "snr"
    noise_offset: Annotated[float, Knob(0, 1, help="noise that is one number a channel, for dark and bright pictures; 0.05 is usual")] = 0.0
    perturb: Annotated[float, Knob(0, 1, help="more noise in what is shown than in what is asked for (arXiv:2301.11706)")] = 0.0
    pyramid: Annotated[float, Knob(0, 1, help="discount of each coarser level of multi-resolution noise; 0: none, 0.3 is usual")] = 0.0
    unmasked: Annotated[float, Knob(0, 1, help="what the area outside a picture's mask counts; 1: masks are not read")] = 1.0
    prior: Annotated[float, Knob(0, 0.9, help="share of pictures that hold the model to what it said before, without the trigger")] = 0.25
    prior_by: Annotated[Literal["answers", "pictures"], "hold it to its answers, or to pictures it drew (arXiv:2208.12242)"] = "answers"
    prior_weight: Annotated[float, Knob(0, 100, help="what that share counts in the loss")] = 1.0
    trigger: Annotated[str, "the words that call what is learned; empty: the part that all captions share"] = ""

    def __post_init__(self) -> None:
        """ValueError for noise levels that are none."""
        if self.lowest >= self.highest:
            raise ValueError(f"lowest {self.lowest:g}, highest {self.highest:g}; expected lowest below highest")
        if self.times == "mode" and not -1 <= self.spread <= 1.75:
            raise ValueError(f"spread {self.spread:g} for times mode; expected -1 to 1.75")


@dataclass(frozen=True)
class Watch(Knobs):
    """What is looked at on the way."""

    held_out: Annotated[float, Knob(0, 0.5, help="share of pictures kept out of training to judge by; 0: keep the last step")] = 0.1
    every: Annotated[int, Knob(1, help="steps between looks")] = 50
    prompts: Annotated[Sequence[str], "prompts drawn at every look; empty: some of the captions"] = ()
    samples: Annotated[int, Knob(0, 64, help="how many pictures are drawn at every look; 0: none")] = 4
    files: Annotated[bool, "keep a file of every look too, beside the final one"] = False
    patience: Annotated[int, Knob(0, help="looks without a better held-out loss after which it ends; 0: never")] = 0
    tensorboard: Annotated[str, "folder for TensorBoard's event files (the extra `tensorboard`); empty: none"] = ""
    preflight: Annotated[bool, "say how much memory and time it will take, and stop"] = False


STEER, STEERED = Optimizer(lr=3e-4, warmup=100), Batches(steps=2000, drop=0.3)
"""What a ControlNet begins with."""

SHAPE, OPTIMIZER, BATCHES, OBJECTIVE, WATCH = LoraShape(), Optimizer(), Batches(), Objective(), Watch()
