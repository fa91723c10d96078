"""LoRA (arXiv:2106.09685): two narrow matrices beside a layer, put into a loaded model, and taken out again without a trace."""
from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from safelight.patches import preserved
from safelight.patches.lora import PREFIXES, kohya_name
from safelight.patches.lora.names import DENOISERS
from safelight.train.batches import number
from safelight.train.settings import TARGETS, LoraShape

if TYPE_CHECKING:
    from safelight.families import Family

TEXT_TARGETS = r"(q_proj|k_proj|v_proj|out_proj|fc1|fc2)|self\.(query|key|value)"
"""Layers of CLIP's towers and of BERT."""

NAME = "default"


@dataclass(frozen=True)
class Adapter:
    """A LoRA inside a model. `layers` are peft's, by kohya name; `alpha` is the same for all; `text`: some are a text encoder's."""

    layers: Mapping[str, Any]
    alpha: float
    text: bool

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """The float32 weights by the name they have in a kohya file."""
        out: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            out[f"{name}.lora_down.weight"] = layer.lora_A[NAME].weight
            out[f"{name}.lora_up.weight"] = layer.lora_B[NAME].weight
        return out

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
        """Weights by name as a kohya file holds them: with each layer's alpha."""
        return {**weights, **{f"{name}.alpha": torch.tensor(self.alpha) for name in self.layers}}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights in place. KeyError when one is missing."""
        for name, p in self.parameters.items():
            p.data.copy_(weights[name])

    @contextmanager
    def off(self) -> Iterator[None]:
        """The model as it was before, for as long as the block lasts."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)


@contextmanager
def lora(family: Family, shape: LoraShape, seed: int) -> Iterator[Adapter]:
    """A LoRA beside the layers that `shape` names, in float32 over whatever dtype the model has; gone when the block ends.

    It starts as no change: up is zero, down is drawn from `seed`. Text encoders without layers of CLIP's or BERT's names (T5, ChatGLM) are
    left alone. ValueError when the denoiser has no layer of the kind.
    """
    alpha = float(shape.rank if shape.alpha is None else shape.alpha)
    networks = {part: net for part, net in family.trainable().items() if part in PREFIXES}
    wanted = [part for part in networks if part in DENOISERS or shape.text_encoder]
    chosen = {part: layer_paths(networks[part], TARGETS[shape.targets] if part in DENOISERS else TEXT_TARGETS) for part in wanted}
    if not any(chosen[part] for part in wanted if part in DENOISERS):
        raise ValueError(f"train_lora: no layer of this {family.name} model fits targets {shape.targets!r}")
    several = "text_encoder_2" in networks
    with preserved(networks):
        layers: dict[str, LoraLayer] = {}
        for part, paths in chosen.items():
            if paths:
                _inject(networks[part], paths, shape.rank, alpha, number("adapter", seed, part))
            layers |= {kohya_name(part, path, several=several): networks[part].get_submodule(path) for path in paths}
        yield Adapter(layers, alpha, any(chosen[part] for part in wanted if part not in DENOISERS))


def layer_paths(network: nn.Module, pattern: str) -> list[str]:
    """Linear and convolution layers whose path ends in the pattern."""
    ends = re.compile(rf"(.*\.)?({pattern})")
    return [path for path, m in network.named_modules() if isinstance(m, nn.Linear | nn.Conv2d) and ends.fullmatch(path)]


def _inject(network: nn.Module, paths: list[str], rank: int, alpha: float, seed: int) -> None:
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        torch.manual_seed(seed)
        # peft warns of module names that begin like its own patterns; the paths are exact
        warnings.filterwarnings("ignore", module="peft")
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths, init_lora_weights=True), network, NAME)
    for path in paths:
        layer: Any = network.get_submodule(path)
        for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
            part.to(torch.float32).requires_grad_(True)
