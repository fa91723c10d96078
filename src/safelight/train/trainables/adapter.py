"""What adapters have in common: which layers are changed, how a change is put into a model and taken out, and how it is written down.

A layer keeps its place in the module tree; while the adapter is on, it has another `forward`.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from safelight.patches.lora import PREFIXES, kohya_name
from safelight.patches.lora.names import DENOISERS
from safelight.train.batches import generator
from safelight.train.settings import TARGETS, LoraShape
from safelight.train.trainables.products import beside, run
from safelight.train.trainables.steady import Steady

if TYPE_CHECKING:
    from safelight.families import Family

TEXT_TARGETS = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|self\.(query|key|value)"
"""Layers of CLIP's towers and of BERT."""

DOWN, UP = "lora_down.weight", "lora_up.weight"
"""What kohya calls the two matrices."""

Weights: TypeAlias = Mapping[str, Tensor]
"""What one layer's change is made of, by the names its method has for them."""

Form: TypeAlias = tuple[Callable[[Any, Tensor, Weights], Tensor], Callable[[Weights], dict[str, Tensor]]]
"""What a layer says of x with the change in it, in its dtype; and the change's tensors in a file, by the ends of their names."""


@dataclass(frozen=True)
class Change:
    """One layer's change. `names` are those that `weights` are trained and checkpointed under; two layers may have one in common."""

    layer: Any
    form: Form
    weights: Mapping[str, nn.Parameter]
    names: Mapping[str, str]
    text: bool

    def __call__(self, x: Tensor) -> Tensor:
        """Stands in the layer for its `forward`."""
        return self.form[0](self.layer, x, self.weights)


@dataclass(frozen=True)
class Spot:
    """A layer to change: its kohya name, and whether it is a text encoder's. What is trained lies on `device`."""

    name: str
    layer: Any
    text: bool
    device: torch.device

    @property
    def shape(self) -> torch.Size:
        """(out, in) or (out, in, k, k)."""
        size: torch.Size = self.layer.weight.shape
        return size

    @property
    def plain(self) -> Tensor:
        """The layer's weight as a float32 matrix, a row an output channel."""
        weight: Tensor = self.layer.weight
        return weight.detach().float().flatten(1)

    def parameter(self, start: Tensor, *, trained: bool = True) -> nn.Parameter:
        """Float32 on the device."""
        return nn.Parameter(start.detach().to(self.device, torch.float32).clone(), requires_grad=trained)

    def drawn(self, size: Sequence[int], seed: int, what: str) -> Tensor:
        """Kaiming's uniform start, whose bound is 1 / sqrt(columns): a function of the seed and the layer's name alone."""
        start = torch.rand(*size, generator=generator("adapter", seed, self.name, what)) * 2 - 1
        return start / math.sqrt(start[0].numel())

    def change(self, form: Form, weights: Mapping[str, nn.Parameter], names: Mapping[str, str] | None = None) -> Change:
        """With weights of its own, unless `names` say otherwise."""
        return Change(self.layer, form, weights, names or {key: f"{self.name}.{key}" for key in weights}, self.text)


def pair(factors: Callable[[Weights], tuple[Tensor, Tensor, float]]) -> Form:
    """scale * up @ down; `factors` makes down, up and scale of a layer's weights. Any such change is a plain LoRA in the file."""

    def file(w: Weights) -> dict[str, Tensor]:
        down, up, scale = factors(w)
        return {DOWN: down, UP: up, "alpha": torch.tensor(scale * len(down))}

    return lambda layer, x, w: beside(layer, x, *factors(w)), file


def dense(delta: Callable[[Weights], Tensor], alpha: float) -> Form:
    """A difference as large as the weight; computed beside it, for their sum would round most of a small one away. In a file the layer's
    weights are what they are, with `alpha`."""

    def forward(layer: Any, x: Tensor, w: Weights) -> Tensor:
        return run(layer, x, layer.weight, layer.bias) + run(layer, x, delta(w).view(layer.weight.shape).to(x.dtype), None)

    return forward, lambda w: {**w, "alpha": torch.tensor(alpha)}


@dataclass(frozen=True)
class Adapter(Steady):
    """Changes inside a model, by kohya name; of most methods nothing but the parameters moves. Parameters that need no gradient are part of
    the result, and only the method itself moves them. `rates` are what learning rates of parameters are multiplied by."""

    layers: Mapping[str, Change]
    rates: Mapping[str, float]

    @classmethod
    def of(cls, layers: Mapping[str, Change], shape: LoraShape, **more: Any) -> Self:
        """Off, until `put_on`. Up matrices have LoRA+'s rate (arXiv:2402.12354); ValueError when there are none for it."""
        parameters = {one.names[key]: p for one in layers.values() for key, p in one.weights.items()}
        rising = [name for name in parameters if name.endswith(UP) and shape.plus != 1]
        if shape.plus != 1 and not rising:
            raise ValueError(f"train_lora: plus {shape.plus:g} is for methods with an up matrix; leave it out for {shape.method}")
        return cls(parameters, any(one.text for one in layers.values()), layers, dict.fromkeys(rising, shape.plus), **more)

    def file(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as a kohya or LyCORIS file holds them, with one alpha for all layers: diffusers misreads kohya files of more."""
        made = {n: one.form[1]({key: weights[full] for key, full in one.names.items()}) for n, one in self.layers.items()}
        alpha, out = max(float(tensors["alpha"]) for tensors in made.values()), dict[str, Tensor]()
        for name, tensors in made.items():
            part = float(tensors["alpha"]) / alpha
            if part != 1:
                tensors |= {"alpha": torch.tensor(alpha), UP: tensors[UP] * part}
            out |= {f"{name}.{end}": t.detach().clone(memory_format=torch.contiguous_format) for end, t in tensors.items()}
        return out

    def put_on(self) -> None:
        """The layers say what they say with the change."""
        for one in self.layers.values():
            vars(one.layer)["forward"] = one

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before, for as long as the block lasts."""
        for one in self.layers.values():
            del vars(one.layer)["forward"]
        try:
            yield
        finally:
            self.put_on()


def scale(shape: LoraShape) -> float:
    """alpha / rank."""
    return 1.0 if shape.alpha is None else shape.alpha / shape.rank


def spots(family: Family, shape: LoraShape) -> list[Spot]:
    """The layers that `shape` names. Text encoders without layers of CLIP's or BERT's names (T5, ChatGLM) are left alone.

    ValueError when the denoiser has no layer of the kind.
    """
    networks = {part: net for part, net in family.trainable().items() if part in PREFIXES}
    several, found = "text_encoder_2" in networks, []
    for part, network in networks.items():
        text = part not in DENOISERS
        ends = re.compile(rf"(.*\.)?({TEXT_TARGETS if text else TARGETS[shape.targets]})")
        for path, layer in network.named_modules() if shape.text_encoder or not text else ():
            if isinstance(layer, nn.Linear | nn.Conv2d) and ends.fullmatch(path):
                found.append(Spot(kohya_name(part, path, several=several), layer, text, family.device))
    if all(spot.text for spot in found):
        raise ValueError(f"train_lora: no layer of this {family.name} model fits targets {shape.targets!r}")
    return found
