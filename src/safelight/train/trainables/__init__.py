"""What is trained: new or existing parameters of a loaded model, one method a file; the model is what it was when the block ends."""
from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from safelight.train.trainables.lora import lora

if TYPE_CHECKING:
    from torch import Tensor, nn

    from safelight.families import Family
    from safelight.train.settings import LoraShape


class Trainable(Protocol):
    """Parameters inside a model, and how they are saved and put back. Names are those of the file."""

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The float32 parameters the optimizer moves, by the name they are checkpointed under."""
        ...

    @property
    def text(self) -> bool:
        """Whether some are a text encoder's, so that captions have to be read anew at every step."""
        ...

    @property
    def layers(self) -> Mapping[str, object]:
        """The changed layers, by name; their number is what a file read back has to match."""
        ...

    def off(self) -> AbstractContextManager[None]:
        """The model as it was before, for as long as the block lasts."""
        ...

    def penalty(self) -> Tensor | None:
        """What the method adds to the loss, or nothing."""
        ...

    def buffers(self) -> Mapping[str, Tensor]:
        """What else changes with the steps and belongs to the state: checkpoints hold it, and resuming copies into it."""
        ...

    def before_step(self, step: int, steps: int) -> None:
        """Called with the gradients in place, clipped, before the optimizer moves the parameters."""
        ...

    def after_step(self, step: int, steps: int) -> None:
        """Called after the optimizer moved the parameters."""
        ...

    def file(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name, as the loop returns them, in the layout of a file."""
        ...

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in place. KeyError when one is missing."""
        ...


def adapter(family: Family, shape: LoraShape, seed: int) -> AbstractContextManager[Trainable]:
    """The adapter that `shape` asks for inside the model; it starts as no change."""
    return lora(family, shape, seed)
