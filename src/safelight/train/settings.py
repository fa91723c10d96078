"""The groups of knobs that training recipes share. No torch here: surfaces read these."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class LoraShape(Knobs):
    """What of the model is trained, and how wide (arXiv:2106.09685)."""

    rank: Annotated[int, Knob(1, 1024, help="width of the bottleneck; more learns finer detail and makes a larger file")] = 16
    alpha: Annotated[float | None, Knob(0.001, 4096, help="the change counts alpha / rank; nothing: as much as rank")] = None
    targets: Annotated[str, OneOf(_targets, help="layers of the U-Net; a small one learns little with its attention alone")] = "full"
    text_encoder: Annotated[bool, "train the text encoder's layers too"] = True


@dataclass(frozen=True)
class Optimizer(Knobs):
    """AdamW (arXiv:1711.05101) and its learning rate over the steps."""

    lr: Annotated[float, Knob(0, 1, help="learning rate")] = 1e-3
    weight_decay: Annotated[float, Knob(0, 1, help="decoupled weight decay")] = 0.01
    betas: Annotated[tuple[float, float], Knob(0, 0.99999, help="decay of the running mean and of the running square")] = (0.9, 0.99)
    clip: Annotated[float, Knob(0, help="largest norm of the gradient; 0: any")] = 1.0
    decay: Annotated[Literal["constant", "cosine", "linear"], "how the learning rate falls after the warm-up"] = "cosine"
    warmup: Annotated[int, Knob(0, help="steps over which the learning rate rises")] = 20


@dataclass(frozen=True)
class Batches(Knobs):
    """How long, and what is seen at once."""

    steps: Annotated[int, Knob(1, 10_000_000, help="optimizer steps")] = 400
    batch: Annotated[int, Knob(1, 4096, help="pictures a step")] = 8
    size: Annotated[int, Knob(0, 4096, step=8, help="side of the square the pictures are cut to, pixels; 0: the model's own")] = 0
    drop: Annotated[float, Knob(0, 1, help="share of pictures shown with an empty caption")] = 0.05


@dataclass(frozen=True)
class Objective(Knobs):
    """What counts as good."""

    min_snr: Annotated[float, Knob(0, 1000, help="gamma of min-SNR weighting (arXiv:2303.09556); 0: every noise level counts alike")] = 0.0
    towards_noise: Annotated[float, Knob(0, 10, help="draw noise levels with a density that rises as time to this power")] = 0.0
    prior: Annotated[float, Knob(0, 0.9, help="share of pictures that hold the model to what it said before, without the trigger")] = 0.25
    trigger: Annotated[str, "the words that call what is learned; empty: the part that all captions share"] = ""


@dataclass(frozen=True)
class Watch(Knobs):
    """What is looked at on the way."""

    held_out: Annotated[float, Knob(0, 0.5, help="share of pictures kept out of training to judge by; 0: keep the last step")] = 0.1
    every: Annotated[int, Knob(1, help="steps between looks")] = 50
    prompts: Annotated[Sequence[str], "prompts drawn at every look; empty: some of the captions"] = ()
    samples: Annotated[int, Knob(0, 64, help="how many pictures are drawn at every look; 0: none")] = 4


STEER, STEERED = Optimizer(lr=3e-4, warmup=100), Batches(steps=2000, drop=0.3)
"""What a ControlNet begins with."""

SHAPE, OPTIMIZER, BATCHES, OBJECTIVE, WATCH = LoraShape(), Optimizer(), Batches(), Objective(), Watch()
