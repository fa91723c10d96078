"""The model's own weights as what is trained: float32 copies stand in their place, the model's stay as they are beside them.

Memory: the model's own numbers, and 16 bytes a trained weight (the copy, its gradient, AdamW's two means): 15.5 GB for SD 1.5's U-Net in
bfloat16, 46 GB for SDXL's.
"""
from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from safelight.patches import preserved
from safelight.patches.full import Home, homes, put
from safelight.patches.lora.names import DENOISERS
from safelight.train import parallel
from safelight.train.methods import FullShape
from safelight.train.trainables.embedding import towers
from safelight.train.trainables.steady import Steady

if TYPE_CHECKING:
    from safelight.families import Family

ATTENTION = re.compile(r"(.*\.)?attn\d?\..+")


@dataclass(frozen=True)
class Own(Steady):
    """Weights inside a model: float32 copies of `before`, the model's own. `layers` say where they are held, `numbers` what a file has."""

    layers: Mapping[str, Home]
    before: dict[str, nn.Parameter]
    numbers: torch.dtype

    def split(self, parts: Mapping[int, nn.Parameter]) -> None:
        """The model's own are held in parts too, in float32; whole ones wait in the machine's memory."""
        super().split(parts)
        for name, p in self.parameters.items():
            if parallel.local(p) is not p:
                whole = self.before[name]
                self.before[name] = nn.Parameter(parallel.split(whole.detach().float().contiguous(), p), requires_grad=False)
                whole.data = whole.data.cpu()

    def file(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights by name in the file's numbers."""
        return {name: t.to(self.numbers).contiguous() for name, t in weights.items()}

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model's own weights back in their place, for as long as the block lasts."""
        self._show(self.before)
        try:
            yield
        finally:
            self._show(self.parameters)

    def _show(self, weights: Mapping[str, nn.Parameter]) -> None:
        for name, home in self.layers.items():
            p, other = self.parameters[name], self.before[name].data
            if parallel.local(p) is p:
                put(home, weights[name])
            else:  # only FSDP2 puts parameters in place: the numbers of the parts change places
                mine = parallel.local(p.data)
                held = mine.clone()
                mine.copy_(other)
                other.copy_(held)


@contextmanager
def full(family: Family, shape: FullShape) -> Iterator[Own]:
    """The weights that `shape` names, trainable; the model is what it was when the block ends.

    ValueError when the model has none: a text encoder that is neither CLIP's nor BERT's (ChatGLM, T5) is left alone.
    """
    found = {name: home for name, home in homes(family).items() if _wanted(family, name, shape.parts)}
    if not found:
        raise ValueError(f"train_full: this {family.name} model has no weights for parts {shape.parts!r}; expected another part")
    names = {name.partition(".")[0] for name in found}
    networks: dict[str, Any] = {part: net for part, net in family.trainable().items() if part in names}
    before = {name: getattr(*home[0]) for name, home in found.items()}
    originals = [(p, p.device) for p in before.values()]
    with preserved(networks):
        masters = {name: nn.Parameter(p.detach().to(torch.float32, copy=True)) for name, p in before.items()}
        own = Own(masters, any(part not in DENOISERS for part in networks), found, before, getattr(torch, shape.kept))
        own._show(masters)
        for network in networks.values():
            if family.dtype != torch.float32:
                vars(network)["forward"] = _mixed(network.forward, family)
        try:
            yield own
        finally:
            for p, own_place in originals:
                p.data = p.data.to(own_place)


def _wanted(family: Family, name: str, parts: str) -> bool:
    part, _, path = name.partition(".")
    if part in DENOISERS:
        return parts in ("denoiser", "all") or (parts == "attention" and ATTENTION.fullmatch(path) is not None)
    return parts in ("text", "all") and part in towers(family)


def _mixed(forward: Callable[..., Any], family: Family) -> Callable[..., Any]:
    """The network computes in the model's numbers over its float32 weights."""

    def under(*args: Any, **rest: Any) -> Any:
        with torch.autocast(family.device.type, family.dtype):
            return forward(*args, **rest)

    return under
