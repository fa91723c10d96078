"""What adapters have in common: which layers are changed, how a change is put into a model and taken out, and how it is written down.

A layer keeps its place in the module tree; while the adapter is on, it has another `forward`.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from safelight.patches.lora import PREFIXES, kohya_name
from safelight.patches.lora.names import DENOISERS
from safelight.train.batches import generator
from safelight.train.settings import TARGETS, LoraShape
from safelight.train.trainables.products import added, beside

if TYPE_CHECKING:
    from safelight.families import Family

TEXT_TARGETS = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|self\.(query|key|value)"
"""Layers of CLIP's towers and of BERT."""

DOWN, UP = "lora_down.weight", "lora_up.weight"
"""What kohya calls the two matrices."""

Weights: TypeAlias = Mapping[str, Tensor]
"""What one layer's change is made of, by the names its method has for them."""


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

    def parameter(self, start: Tensor, *, trained: bool = True) -> nn.Parameter:
        """Float32 on the device."""
        return nn.Parameter(start.detach().to(self.device, torch.float32).clone(), requires_grad=trained)

    def drawn(self, size: Sequence[int], seed: int, what: str) -> Tensor:
        """Kaiming's uniform start, whose bound is 1 / sqrt(columns): a function of the seed and the layer's name alone."""
        start = torch.rand(*size, generator=generator("adapter", seed, self.name, what)) * 2 - 1
        return start / math.sqrt(start[0].numel())

    def plain(self) -> Tensor:
        """The layer's weight as a float32 matrix, a row an output channel."""
        weight: Tensor = self.layer.weight
        return weight.detach().float().flatten(1)


class Form(Protocol):
    """How a layer's change is computed, and what it is in a file."""

    def forward(self, layer: nn.Module, x: Tensor, w: Weights) -> Tensor:
        """The layer's output with the change in it."""
        ...

    def file(self, layer: nn.Module, w: Weights) -> dict[str, Tensor]:
        """Tensors by the end of their names."""
        ...


@dataclass(frozen=True)
class Pair:
    """scale * up @ down; `factors` makes down, up and scale of a layer's weights. Any such change is a plain LoRA in the file."""

    factors: Callable[[Weights], tuple[Tensor, Tensor, float]]

    def forward(self, layer: nn.Module, x: Tensor, w: Weights) -> Tensor:
        """As the layer's, in its dtype."""
        return beside(layer, x, *self.factors(w))

    def file(self, layer: nn.Module, w: Weights) -> dict[str, Tensor]:
        """kohya's three."""
        down, up, scale = self.factors(w)
        return {DOWN: down, UP: up, "alpha": torch.tensor(scale * len(down))}


@dataclass(frozen=True)
class Dense:
    """A difference as large as the weight; `delta` makes it of the layer's weights, which are written as they are, with `alpha`."""

    delta: Callable[[Weights], Tensor]
    alpha: float

    def forward(self, layer: Any, x: Tensor, w: Weights) -> Tensor:
        """As the layer's, in its dtype."""
        return added(layer, x, self.delta(w).view(layer.weight.shape))

    def file(self, layer: nn.Module, w: Weights) -> dict[str, Tensor]:
        """LyCORIS's names."""
        return {**w, "alpha": torch.tensor(self.alpha)}


@dataclass(frozen=True)
class Change:
    """One layer's change. `names` are those that `weights` are trained and checkpointed under; two layers may have one in common."""

    layer: Any
    form: Form
    weights: Mapping[str, nn.Parameter]
    names: Mapping[str, str]

    def __call__(self, x: Tensor) -> Tensor:
        """Stands in the layer for its `forward`."""
        return self.form.forward(self.layer, x, self.weights)


def change(spot: Spot, form: Form, weights: Mapping[str, nn.Parameter]) -> Change:
    """A change with weights of its own."""
    return Change(spot.layer, form, weights, {key: f"{spot.name}.{key}" for key in weights})


class Adapter:
    """Changes inside a model, by kohya name; the protocol of trainables, for methods of which nothing but the parameters moves."""

    def __init__(self, layers: Mapping[str, Change]) -> None:
        """Off, until `put_on`. `text`: some are a text encoder's; `rates` are what learning rates of parameters are multiplied by."""
        self.layers = layers
        self.text = False
        self.rates: Mapping[str, float] = {}

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Float32 weights by name. Those that need no gradient are part of the result, and nothing moves them but the method."""
        return {one.names[key]: p for one in self.layers.values() for key, p in one.weights.items()}

    @property
    def rising(self) -> list[str]:
        """Names of the up matrices, which LoRA+ (arXiv:2402.12354) trains at a higher rate."""
        return [name for name in self.parameters if name.endswith(UP)]

    def penalty(self) -> Tensor | None:
        """Nothing."""
        return None

    def buffers(self) -> Mapping[str, Tensor]:
        """None."""
        return {}

    def before_step(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def after_step(self, step: int, steps: int) -> None:
        """Nothing to do."""

    def file(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights as a kohya or LyCORIS file holds them, with one alpha for all layers: diffusers misreads kohya files of more."""
        made = {n: one.form.file(one.layer, {key: weights[full] for key, full in one.names.items()}) for n, one in self.layers.items()}
        alpha = max(float(tensors["alpha"]) for tensors in made.values())
        out = {}
        for name, tensors in made.items():
            part = float(tensors["alpha"]) / alpha
            if part != 1:
                tensors |= {"alpha": torch.tensor(alpha), UP: tensors[UP] * part}
            out |= {f"{name}.{end}": t.detach().clone(memory_format=torch.contiguous_format) for end, t in tensors.items()}
        return out

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in place. KeyError when one is missing."""
        for name, p in self.parameters.items():
            p.data.copy_(weights[name])

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
        paths = layer_paths(network, TEXT_TARGETS if text else TARGETS[shape.targets]) if shape.text_encoder or not text else []
        for path in paths:
            found.append(Spot(kohya_name(part, path, several=several), network.get_submodule(path), text, family.device))
    if all(spot.text for spot in found):
        raise ValueError(f"train_lora: no layer of this {family.name} model fits targets {shape.targets!r}")
    return found


def layer_paths(network: nn.Module, pattern: str) -> list[str]:
    """Linear and convolution layers whose path ends in the pattern."""
    ends = re.compile(rf"(.*\.)?({pattern})")
    return [path for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and ends.fullmatch(path)]
