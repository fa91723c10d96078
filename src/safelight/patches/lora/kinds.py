"""The mathematics of each kind of adapter: from the tensors of one layer to the difference of its weight, float32.

A weight of any layer is read as a matrix, one row an output channel: (out, in), a convolution's (out, in * k * k).
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps


class Kind(Protocol):
    """What one layer's tensors mean."""

    @property
    def name(self) -> str:
        """lora, loha, lokr, full or dora."""
        ...

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of the difference; None when the tensors do not fit each other."""
        ...

    def delta(self, weight: Tensor) -> Tensor:
        """What is added to this weight at strength 1: float32, of its shape, on its device."""
        ...


@dataclass(frozen=True)
class Factor:
    """A matrix that is given whole (`a` alone), as a product a @ b, or in Tucker form with a core: sum_ij core_ij a_ip b_jr, where
    core is (r, r, k, k) and the columns are those of b times k * k (LyCORIS, arXiv:2309.14859)."""

    a: Tensor
    b: Tensor | None = None
    core: Tensor | None = None

    @property
    def rank(self) -> int | None:
        """Width of the bottleneck; None when there is none."""
        return None if self.b is None or self.b.ndim == 0 else int(self.b.shape[0])

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns; None when the parts do not fit each other."""
        given = [t for t in (self.a, self.b, self.core) if t is not None]
        if any(t.ndim == 0 or not t.numel() for t in given):
            return None
        if self.b is None:
            return _rows(self.a), _columns(self.a)
        if self.core is None:
            return (_rows(self.a), _columns(self.b)) if _columns(self.a) == _rows(self.b) else None
        if self.core.ndim < 2 or tuple(self.core.shape[:2]) != (_rows(self.a), _rows(self.b)):
            return None
        return _columns(self.a), _columns(self.b) * self.core[0, 0].numel()

    def matrix(self, device: torch.device, scale: float = 1.0) -> Tensor:
        """(rows, columns) float32, times `scale`."""
        a = _flat(self.a, device) * scale  # the smaller tensor to multiply
        if self.b is None:
            return a
        b = _flat(self.b, device)
        if self.core is None:
            return a @ b
        return torch.einsum("ij...,ip,jr->pr...", self.core.to(device, torch.float32), a, b).flatten(1)


@dataclass(frozen=True)
class Lora:
    """LoRA (arXiv:2106.09685) and LoCon: scale * up @ down, `scale` being alpha / rank. A LoCon with `lora_mid` is a factor with a core."""

    name = "lora"
    factor: Factor
    scale: float

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns; None when up and down do not fit each other."""
        return self.factor.size

    def delta(self, weight: Tensor) -> Tensor:
        """scale * up @ down."""
        return self.factor.matrix(weight.device, self.scale).view(weight.shape)


@dataclass(frozen=True)
class Loha:
    """LoHa (FedPara, arXiv:2108.06098): scale times the entrywise product of two low-rank matrices."""

    name = "loha"
    first: Factor
    second: Factor
    scale: float

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns; None when the two are not of one size."""
        return self.first.size if self.first.size == self.second.size else None

    def delta(self, weight: Tensor) -> Tensor:
        """scale * first * second."""
        return (self.first.matrix(weight.device, self.scale) * self.second.matrix(weight.device)).view(weight.shape)


@dataclass(frozen=True)
class Lokr:
    """LoKr (arXiv:2212.10650): scale times the Kronecker product of a small and a large matrix."""

    name = "lokr"
    small: Factor
    large: Factor
    scale: float

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns; None when a factor is broken."""
        a, b = self.small.size, self.large.size
        return (a[0] * b[0], a[1] * b[1]) if a and b else None

    def delta(self, weight: Tensor) -> Tensor:
        """scale * kron(small, large)."""
        return torch.kron(self.small.matrix(weight.device, self.scale), self.large.matrix(weight.device)).view(weight.shape)


@dataclass(frozen=True)
class Full:
    """The difference itself, of any layer's weight or a norm's."""

    name = "full"
    difference: Tensor

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns; None for a tensor that is no weight."""
        return Factor(self.difference).size

    def delta(self, weight: Tensor) -> Tensor:
        """The difference."""
        return self.difference.to(weight.device, torch.float32).view(weight.shape)


@dataclass(frozen=True)
class Dora:
    """DoRA (arXiv:2402.09353): the moved weight's direction with a trained magnitude, m * (W + d) / ||W + d||.

    `magnitude` is (out, 1, ...), a length for each row, or (1, in, 1, ...), one for each input channel, over all else. The norm is that of
    the moved weight, with LyCORIS's epsilon, as every trainer has it.
    """

    name = "dora"
    moved: Kind
    magnitude: Tensor

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of what moves the weight."""
        return self.moved.size

    def fits(self, weight: Tensor) -> bool:
        """Whether there are as many magnitudes as rows, or as input channels."""
        return self._by_row(weight) or self.magnitude.numel() == (weight.shape[1] if weight.ndim > 1 else 1)

    def _by_row(self, weight: Tensor) -> bool:
        return self.magnitude.numel() == weight.shape[0] and (self.magnitude.ndim == 1 or self.magnitude.shape[0] == weight.shape[0])

    def delta(self, weight: Tensor) -> Tensor:
        """The new weight less the old one."""
        moved = weight.float() + self.moved.delta(weight)
        along = tuple(range(1, weight.ndim)) if self._by_row(weight) else (0, *range(2, weight.ndim))
        norm: Tensor = torch.linalg.vector_norm(moved, dim=along, keepdim=True) + EPSILON
        wanted = self.magnitude.to(weight.device, torch.float32).view(norm.shape)
        return moved * (wanted / norm) - weight.float()


@dataclass(frozen=True)
class Rows:
    """Piece `at` of `of` equal ones of a difference whose rows are those of several layers, one after another (q, k and v in one)."""

    whole: Kind
    at: int
    of: int

    @property
    def name(self) -> str:
        """The whole's."""
        return self.whole.name

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of the piece; None when the whole has no such pieces."""
        size = self.whole.size
        return None if size is None or size[0] % self.of else (size[0] // self.of, size[1])

    def delta(self, weight: Tensor) -> Tensor:
        """The whole, cut."""
        rows = weight.shape[0]
        whole = self.whole.delta(torch.empty((rows * self.of, *weight.shape[1:]), device=weight.device))
        return whole[rows * self.at : rows * (self.at + 1)]


@dataclass(frozen=True)
class Change:
    """What a file does to one layer. `bias` is the difference of the bias; `keys` are the file's names for all of it."""

    weight: Kind | None
    bias: Tensor | None
    keys: tuple[str, ...]

    def misfit(self, weight: Tensor) -> str:
        """Why it does not go onto a layer with this weight; nothing when it does."""
        rows, columns = _rows(weight), _columns(weight)
        if self.weight is not None and self.weight.size is None:
            return "its tensors do not fit each other"
        if self.weight is not None and self.weight.size != (rows, columns):
            return f"the layer is {tuple(weight.shape)}"
        if isinstance(self.weight, Dora) and not self.weight.fits(weight):
            return f"the layer is {tuple(weight.shape)}, its magnitude {tuple(self.weight.magnitude.shape)}"
        if self.bias is not None and tuple(self.bias.shape) != (rows,):
            return f"the layer's bias has {rows} values"
        return ""

    def pieces(self, of: int) -> list[Change]:
        """One change for each of several layers that this one takes for one. A DoRA cannot be cut: its lengths are of all rows together."""
        if of == 1 or isinstance(self.weight, Dora):
            return [self] * of
        biases = [None] * of if self.bias is None else list(self.bias.flatten().tensor_split(of))
        return [Change(self.weight and _piece(self.weight, i, of), bias, self.keys) for i, bias in enumerate(biases)]

    def applied(self, weight: Tensor, bias: Tensor | None, strength: float) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the change in them, float32; what is not changed comes back as it is."""
        if self.weight is not None:
            weight = torch.add(weight, self.weight.delta(weight), alpha=strength)
        if self.bias is not None:
            added = self.bias.to(weight.device, torch.float32) * strength
            bias = added if bias is None else bias.float() + added
        return weight, bias


def _piece(kind: Kind, at: int, of: int) -> Kind:
    if isinstance(kind, Lora) and kind.factor.core is None and _rows(kind.factor.a) % of == 0:
        rows = _rows(kind.factor.a) // of
        return Lora(Factor(kind.factor.a[rows * at : rows * (at + 1)], kind.factor.b), kind.scale)
    return Rows(kind, at, of)


def _rows(t: Tensor) -> int:
    return int(t.shape[0])


def _columns(t: Tensor) -> int:
    return t.numel() // int(t.shape[0])


def _flat(t: Tensor, device: torch.device) -> Tensor:
    return t.to(device, torch.float32).reshape(t.shape[0], -1)
