"""One file of tensors: what its header says, and its bytes where they are asked for."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.weights import header

if TYPE_CHECKING:
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors' names -> shapes."""


class WeightFile:
    """A safetensors file; only its header is read at first. ValueError, naming the file, when that is cut off or lies."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._header = header.read(path)
        self.metadata = self._header.metadata

    @cached_property
    def shapes(self) -> Shapes:
        """Every tensor's shape by its name."""
        return {name: entry.shape for name, entry in self._header.tensors.items()}

    def under(self, prefix: str) -> Shapes:
        """The shapes whose names begin with the prefix, by the rest of their names."""
        return {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from the file: its bytes are read when they are used, and are not held twice."""
        found: Tensor = self._bytes.get_tensor(name)
        return found

    @cached_property
    def _bytes(self) -> Any:
        from safetensors import safe_open

        return safe_open(self.path, "pt").__enter__()  # closed with the last reference to it

    def summary(self) -> str:
        """What is in it, in a few words: for messages about files that nobody knows."""
        heads: dict[str, int] = {}
        for name in self.shapes:
            head = ".".join(name.split(".")[:2])
            heads[head] = heads.get(head, 0) + 1
        most = sorted(heads.items(), key=lambda item: -item[1])[:4]
        examples = list(self.shapes.items())[:2]
        told = ", ".join(f"{n} {list(s)}" for n, s in examples)
        return f"{len(self.shapes)} tensors, most under {', '.join(f'{h} ({n})' for h, n in most)}; such as {told}"
