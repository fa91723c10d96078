"""The waist between networks and everything else: one class a family, used by generation and by training."""
from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, runtime_checkable

from safelight.values import digest

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from safelight.families.layouts import Layout
    from safelight.families.sources import Parts
    from safelight.families.weight_file import WeightFile
    from safelight.values import Cond


@runtime_checkable
class Family(Protocol):
    """A loaded model. Everything is in k-diffusion's terms: x = x0 + sigma * noise, and a network answers with x0.

    Latents are (B, C, H/f, W/f) float32 in the model's own scaled units; pictures are (B, H, W, 3) float32 in [0, 1].
    `sigmas` is the training table, (T,) float32, rising, and `log_sigmas` its logarithms (see `noise_levels.rounded`). Flow models use
    x = (1 - sigma) x0 + sigma noise and say so in `prediction`.
    """

    name: str
    prediction: str  # "eps", "v", "edm" or "flow"
    clock: str  # see `noise_levels.clock`
    channels: int
    factor: int
    size: int
    sigmas: Tensor
    log_sigmas: Tensor
    device: torch.device
    dtype: torch.dtype

    @property
    def cell(self) -> int:
        """How many pixels a side are one to the denoiser: sides of pictures to learn from are multiples of it."""
        ...

    @property
    def tile(self) -> int:
        """The side in pixels of the tiles in which the latest pictures were encoded or decoded; 0: whole, as memory allowed."""
        ...

    def tokens(self, text: str) -> int:
        """How many tokens the text takes, without begin and end marks."""
        ...

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """Prompts, with `(word:1.2)` weights, to a condition batch; long prompts take several chunks.

        `skip` leaves out that many last layers of the text encoders beyond what the family does (clip skip); `negative` says that the
        prompts are what pictures should not be like.
        """
        ...

    def encode_image(self, pixels: Tensor, *, tile: int = 0, overlap: int = 0) -> Tensor:
        """(B, H, W, 3) in [0, 1] -> latents (the mean, no sampling). With `tile`, in tiles of that many pixels a side that share `overlap`;
        without, whole where memory allows."""
        ...

    def decode(self, latent: Tensor, *, tile: int = 0, overlap: int = 0) -> Tensor:
        """Latents -> (B, H, W, 3) float32 in [0, 1]; tiles are blended before what is beyond 0 and 1 is cut off."""
        ...

    def scale_input(self, x: Tensor, sigma: Tensor) -> Tensor:
        """What the network is fed for x at sigma (B,)."""
        ...

    def predict(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The network's own output (eps, v or flow) for x at sigma (B,); gradients flow."""
        ...

    def denoise(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """x (B, C, h, w), sigma (B,) -> x0, whatever the network predicts."""
        ...

    def target(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """What `predict` should have said for x = x0 + sigma * noise."""
        ...

    def noised(self, x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        """x at sigma (B,), from a clean latent and unit noise."""
        ...

    def inpainting(self, pixels: Tensor, mask: Tensor) -> Mapping[str, Tensor]:
        """What the network wants to see of pixels (B, H, W, 3) to be painted over where mask (B, 1, H, W) is 1: a condition's extras."""
        ...

    def trainable(self) -> Mapping[str, nn.Module]:
        """The networks by diffusers' names, the denoiser first: `unet` or `transformer`, `text_encoder`, `vae`, ..."""
        ...

    def for_training(self) -> None:
        """Choose the forms of the networks whose backward pass is fast on this device; the lease undoes it."""
        ...


@runtime_checkable
class RepeatsTokens(Protocol):
    """A family that reads its tokens by cross attention alone, so that a sequence repeated as a whole (77 tokens to 154) says the same; its
    prompts of different lengths can share a forward pass."""

    repeats_tokens: bool


class Loader(Protocol):
    """How a family is made: its class, called with a model's parts.

    `pipelines` are the names a diffusers folder of this family has as `_class_name` in model_index.json, or those of components that no
    other family has.
    """

    pipelines: tuple[str, ...]

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """The parts of this family's models in a single file, by its tensors' names and shapes; None when it is no file of this family.

        A part that is not in the file and may be given beside it has a layout without tensors, with what only the family knows of it.
        """
        ...

    def __call__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> Family:
        """Build the networks on `device` in `dtype`, frozen and in eval mode."""
        ...


FAMILIES: dict[str, Loader] = {}


F = TypeVar("F", bound=type[Any])


def family(cls: F) -> F:
    """Register a family class under its `name`, which is also the name of its module here."""
    FAMILIES[cls.name] = cast("Loader", cls)
    return cls


def find(name: str) -> Loader:
    """The family's class; its module is imported when it is first asked for. ValueError when there is none."""
    if name not in FAMILIES:
        try:
            importlib.import_module(f"{__name__}.{name}")
        except ModuleNotFoundError as e:
            raise ValueError(f"model: no family {name!r}") from e
    return FAMILIES[name]


def known() -> Mapping[str, Loader]:
    """Every family, by name. Imports the modules here, and so torch."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return FAMILIES


@cache
def edition() -> str:
    """Changes whenever a family's file does: what was found out about models with other families may no longer hold."""
    seen = ((f.name, f.stat()) for f in sorted(Path(__file__).parent.glob("*.py")))
    return digest(*[f"{name} {s.st_size} {s.st_mtime_ns}" for name, s in seen])


def of_pipeline(classes: Sequence[str]) -> str:
    """The family of a folder that names these classes: its components', then its pipeline's. Imports every family, and so torch.

    ValueError listing the known pipelines.
    """
    by_class = {p: name for name, cls in known().items() for p in cls.pipelines}
    found = next((by_class[c] for c in classes if c in by_class), None)
    if found is None:
        raise ValueError(f"model: no family draws with {classes[-1] or 'a nameless pipeline'}; known are {', '.join(sorted(by_class))}")
    return found
