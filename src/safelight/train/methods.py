"""The knobs of single methods of training, beside those that all recipes share (`settings`). No torch here: surfaces read these."""
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Literal

from safelight.spec import Knob
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer
from safelight.values import Knobs


@dataclass(frozen=True)
class FullShape(Knobs):
    """Which of the model's own weights are trained, and how."""

    parts: Annotated[Literal["denoiser", "attention", "text", "all"], "the U-Net or transformer, its attention alone, the CLIP or BERT "
                     "encoders, or denoiser and encoders"] = "denoiser"
    kept: Annotated[Literal["float16", "bfloat16", "float32"], "numbers of the file; float32 is exact and twice as large"] = "float16"


@dataclass(frozen=True)
class Subject(LoraShape):
    """What DreamBooth (arXiv:2208.12242) teaches, what it should leave alone, and what is trained for it. Pictures of the class are a share
    `prior` of the objective's."""

    instance: Annotated[str, "the prompt of the pictures: a rare word before what they show"] = "a sks person"
    class_name: Annotated[str, "the same without the rare word"] = "a person"
    classes: Annotated[int, Knob(1, 10_000, help="pictures of the class that the model draws before it is trained")] = 100
    whole: Annotated[bool, "train the denoiser itself, not a LoRA; at about a hundredth of its rate"] = False
    judged: Annotated[int, Knob(0, 256, help="pictures drawn afterwards to measure overfitting and language drift; 0: none")] = 16
    judge: Annotated[str, "the CLIP they are measured in: a folder, or a name in the Hugging Face cache; empty: the embedded one"] = ""

    def __post_init__(self) -> None:
        """ValueError for settings of a LoRA where none is trained."""
        other = [f.name for f in fields(LoraShape) if f.name != "text_encoder" and getattr(self, f.name) != f.default]
        if self.whole and other:
            raise ValueError(f"whole trains the denoiser itself, and {', '.join(other)} would shape a LoRA; leave out whole, or these")


@dataclass(frozen=True)
class Token(Knobs):
    """A word of its own for what the pictures show (arXiv:2208.01618)."""

    token: Annotated[str, "the new word; it is no word of the prompts' language"] = "<new>"
    init_word: Annotated[str, "what it means before it is trained"] = "person"
    vectors: Annotated[int, Knob(1, 64, help="how many tokens it takes; more hold more, and leave less of the prompt")] = 4
    layout: Annotated[Literal["webui", "diffusers"], "names in the file: emb_params, which most programs read, or diffusers' own"] = "webui"


GENTLE, SLOW = Optimizer(lr=1e-5, warmup=50), Batches(steps=1000)
"""What a full fine-tune begins with."""

QUICK, SPOKEN = Optimizer(lr=5e-3, weight_decay=0.0), Batches(steps=300, drop=0.0)
"""What a textual inversion begins with: few numbers, far from where they should be; an empty caption would teach the word nothing."""

HELD, FREE = Objective(prior=0.5, prior_by="pictures"), Objective(prior=0.0)
"""What is good for DreamBooth: half of each batch are the class's pictures; and for what cannot change the model."""

FULL, SUBJECT, TOKEN = FullShape(), Subject(), Token()
