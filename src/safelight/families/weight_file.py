"""A file of tensors, or the shards of one: what the headers say, and the bytes where they are asked for."""
from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.weights import header

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]
"""Tensors' names -> shapes."""


FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
"""The format's names of what networks are computed in, and torch's."""


class WeightFile:
    """A safetensors file, or several that are one; only headers are read at first. ValueError, naming the file, when one is cut off, lies,
    or has a tensor that another has."""

    def __init__(self, path: str | Path, *more: str | Path) -> None:
        self.path = str(path)
        heads = {str(p): header.read(p) for p in (path, *more)}
        self.metadata = heads[self.path].metadata
        self._places = {name: p for p, head in heads.items() for name in head.tensors}
        self._entries = {name: entry for head in heads.values() for name, entry in head.tensors.items()}
        self._shapes = {name: entry.shape for name, entry in self._entries.items()}
        if len(self._shapes) < sum(len(head.tensors) for head in heads.values()):
            raise ValueError(f"{path}: tensors of its are in another shard too; expected every tensor once")

    @property
    def shapes(self) -> Shapes:
        """Every tensor's shape by its name."""
        return self._shapes

    def under(self, prefix: str) -> Shapes:
        """The shapes whose names begin with the prefix, by the rest of their names."""
        return {name.removeprefix(prefix): shape for name, shape in self.shapes.items() if name.startswith(prefix)}

    def read(self, name: str) -> Tensor:
        """One tensor, mapped from the file: its bytes are read when they are used, and are not held twice."""
        found: Tensor = self._bytes[self._places[name]].get_tensor(name)
        return found

    def read_as(self, name: str, dtype: torch.dtype) -> Tensor:
        """One tensor to be used in this dtype: mapped where the file has it so, else in memory of its own, since the bytes of a mapped one
        would stay in memory beside what is made of them. OSError when the file changes meanwhile."""
        import torch

        entry = self._entries[name]
        if entry.dtype not in FLOATS or FLOATS[entry.dtype] == str(dtype).removeprefix("torch."):
            return self.read(name)
        held = torch.empty(entry.shape, dtype=getattr(torch, FLOATS[entry.dtype]))
        taken: Any = held.reshape(-1).view(torch.uint8).numpy()
        room = memoryview(taken)
        with open(self._places[name], "rb", buffering=0) as f:
            f.seek(entry.start)
            while len(room):
                got = f.readinto(room)
                if not got:
                    raise OSError(f"{self._places[name]}: it ended in the middle of {name}; it is being written")
                room = room[got:]
        return held

    @cached_property
    def _bytes(self) -> Mapping[str, Any]:
        from safetensors import safe_open

        return {p: safe_open(p, "pt").__enter__() for p in set(self._places.values())}  # closed with the last reference to them

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
