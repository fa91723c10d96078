"""What trainables have in common whose file has the names of their parameters, and which do nothing but let them be moved."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Steady:
    """`parameters` by the file's names; `text`: some are a text encoder's."""

    parameters: dict[str, nn.Parameter]
    text: bool

    def split(self, parts: Mapping[int, nn.Parameter]) -> None:
        """See `Trainable`."""
        for name, p in self.parameters.items():
            self.parameters[name] = parts.get(id(p), p)

    def penalty(self) -> Tensor | None:
        """Nothing."""
        return None

    def buffers(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def formed(self, step: int, steps: int) -> bool:
        """Always."""
        return True

    def before_step(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def after_step(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def file(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name as they are."""
        return dict(weights)

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in place. KeyError when one is missing."""
        for name, p in self.parameters.items():
            p.data.copy_(weights[name])
