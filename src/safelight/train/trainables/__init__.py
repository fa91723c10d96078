"""What is trained: new or existing parameters of a loaded model, one method a file; the model is what it was when the block ends."""
from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

from safelight.patches import kept
from safelight.train.settings import LoraShape, methods
from safelight.train.trainables.adapter import Adapter, spots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from safelight.families import Family


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

    def split(self, parts: Mapping[int, nn.Parameter]) -> None:
        """Some parameters are held in parts by several processes now: these, by the ids of what was (see `parallel.sharded`)."""
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

    def formed(self, step: int, steps: int) -> bool:
        """Whether the weights after so many steps have the form that was asked for, and may be kept."""
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


METHODS = tuple(methods())
"""Names of the methods: one file each in `methods/`."""

OWN_START = ("lora", "rslora", "lora-fa")
"""Methods that `init` is for."""


@contextmanager
def adapter(family: Family, shape: LoraShape, seed: int) -> Iterator[Adapter]:
    """The adapter that `shape` asks for inside the model, in float32 over whatever dtype the model has; gone when the block ends.

    It starts as no change, and its start is a function of `seed`. ValueError when the denoiser has no layer of the kind, and for a setting
    that the method does not have.
    """
    if shape.method not in METHODS:
        raise ValueError(f"train_lora: method {shape.method!r}; expected one of {', '.join(METHODS)}")
    if shape.init != "kaiming" and shape.method not in OWN_START:
        raise ValueError(f"train_lora: init {shape.init!r} is for {', '.join(OWN_START)}; leave it out for {shape.method}")
    if shape.share != LoraShape.share and shape.method != "lora-drop":
        raise ValueError(f"train_lora: share {shape.share:g} is for lora-drop; leave it out for {shape.method}")
    found = spots(family, shape)
    made: Adapter = importlib.import_module(f"{__name__}.methods.{shape.method.replace('-', '_')}").method(found, shape, seed)
    with kept(spot.layer for spot in found):
        made.put_on()
        yield made
