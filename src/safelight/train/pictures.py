"""Pictures to learn from: how they are cut, and where their latents lie. Latents are read when they are shown, so memory does not grow with
their number, and a thread reads ahead, so nobody waits for the disk."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image as Pil
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

T = TypeVar("T")


@dataclass(frozen=True)
class Cut:
    """What of a picture is shown: `width` x `height` pixels, as large a window as fits, at (x, y) in [0, 1] of the room that is left; then
    mirrored."""

    width: int
    height: int
    x: float = 0.5
    y: float = 0.5
    mirrored: bool = False

    def window(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, width and height of the window in a picture of that size."""
        factor = max(self.width / width, self.height / height)
        w, h = min(width, max(1, round(self.width / factor))), min(height, max(1, round(self.height / factor)))
        return int((width - w) * self.x), int((height - h) * self.y), w, h

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, ...) -> (height, width, ...), by area averaging, bicubic where it must grow."""
        left, top, w, h = self.window(pixels.shape[1], pixels.shape[0])
        shown = Pil.fromarray(np.ascontiguousarray(pixels[top : top + h, left : left + w]))
        out = shown.resize((self.width, self.height), Pil.Resampling.BOX if w > self.width else Pil.Resampling.BICUBIC)
        return np.asarray(out.transpose(Pil.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else out)

    def told(self, width: int, height: int) -> Tensor:
        """(6,) what SDXL is told of a picture of that size (arXiv:2307.01952): original height and width, the window's top and left once
        the picture is resized, target height and width."""
        left, top, w, h = self.window(width, height)
        left = width - w - left if self.mirrored else left
        return torch.tensor([height, width, int(top * self.height / h), int(left * self.width / w), self.height, self.width]).float()


class Readable(Protocol):
    """Named tensors by key: a shelf, or a dictionary."""

    def get(self, key: str, /) -> dict[str, Tensor] | None:
        """What lies under the key, or None."""
        ...


@dataclass(frozen=True)
class Kept:
    """A picture on the shelf: what it is called, under which keys its cuts lie (`latent`, `size`, maybe `mask`), the latent's height and
    width, how often it counts in an epoch."""

    name: str
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    shape: tuple[int, int]
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures, and the shelf they lie on."""

    shelf: Readable = field(default_factory=dict[str, dict[str, Tensor]])
    kept: Sequence[Kept] = ()

    @classmethod
    def held(cls, latents: Tensor, captions: Sequence[str]) -> Pictures:
        """Of latents (N, C, h, w) in memory."""
        shape = (latents.shape[-2], latents.shape[-1])
        kept = [Kept(str(i), (caption,), (str(i),), shape) for i, caption in enumerate(captions)]
        return cls({str(i): {"latent": z} for i, z in enumerate(latents)}, kept)

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, i: int, cut: int = 0) -> dict[str, Tensor]:
        """One cut of a picture: `latent` (C, h, w), `size` (6,), maybe `mask` (1, h, w). RuntimeError when it is gone."""
        found = self.shelf.get(self.kept[i].keys[cut])
        if found is None:
            raise RuntimeError(f"train: the encoded {self.kept[i].name} vanished while it was being learned; run again")
        return found

    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Items by shape, each as often as it counts."""
        out: dict[tuple[int, int], list[int]] = {}
        for i, kept in enumerate(self.kept):
            out.setdefault(kept.shape, []).extend([i] * kept.repeats)
        return tuple(tuple(out[shape]) for shape in sorted(out))

    def some(self, which: Sequence[int]) -> Pictures:
        """Some of them."""
        return Pictures(self.shelf, [self.kept[i] for i in which])


class Ahead(Generic[T]):
    """`make(step)`, which is a function of the step alone, made in a thread for the steps that come next."""

    def __init__(self, make: Callable[[int], T], depth: int = 2) -> None:
        """The thread begins with the first step."""
        self.make, self.depth = make, depth
        self.pool = ThreadPoolExecutor(1, "ahead")
        self.waiting: Mapping[int, Future[T]] = {}

    def __call__(self, step: int) -> T:
        """What `make` gives for the step; what it raised is raised here."""
        waiting = dict(self.waiting)
        for ahead in range(step, step + 1 + self.depth):
            if ahead not in waiting:
                waiting[ahead] = self.pool.submit(self.make, ahead)
        self.waiting = {s: f for s, f in waiting.items() if step < s <= step + self.depth}
        return waiting[step].result()
