"""Adapters made narrower, or made of others: products of two matrices cut to their largest singular values, with the share that is lost.

All of it is done on the small side, in float64: QR of both factors first, then a decomposition as large as the rank.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from safelight.patches.lora.beside import original
from safelight.patches.lora.file import split
from safelight.patches.lora.kinds import Change, Full, Lora


@dataclass(frozen=True)
class Width:
    """How much is left: `rank` at most, and as many ranks as hold the share `keep` of the squared singular values."""

    rank: int | None
    keep: float = 1.0

    def of(self, values: Tensor) -> int:
        """How many of the falling singular values."""
        share = values.square().cumsum(0)
        enough = int((share < self.keep * share[-1]).sum()) + 1 if self.keep < 1 else len(values)
        return max(1, min(enough, len(values), self.rank or len(values)))


@dataclass
class Written:
    """A LoRA file in the making. `keys` name a layer's down, up and alpha, which is "" where its file has none; `whole` and `lost` are sums
    of squares of the differences asked for, and of what is missing."""

    width: Width
    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    keys: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)
    whole: float = 0.0
    lost: float = 0.0

    @property
    def error(self) -> float:
        """||what is written - what was asked for|| / ||what was asked for||, over all layers."""
        return math.sqrt(self.lost / self.whole) if self.whole else 0.0

    @property
    def ranks(self) -> list[int]:
        """Of the layers."""
        return [len(down) for _, down in self.pairs.values()]

    def add(self, name: str, up: Tensor, down: Tensor, inner: torch.Size) -> None:
        """up (out, r) @ down (r, columns), cut. `inner` is the shape of a row: (in,) or (in, k, k)."""
        wide, q = torch.linalg.qr(up.double())
        tall, r = torch.linalg.qr(down.double().t())
        u, s, v = torch.linalg.svd(q @ r.t())
        n = self.width.of(s)
        self.whole += float(s.square().sum())
        self.lost += float(s[n:].square().sum())
        root, ones = s[:n].sqrt(), [1] * (len(inner) - 1)
        made = (wide @ u[:, :n] * root).view(-1, n, *ones), (root[:, None] * (v[:n] @ tall.t())).view(n, *inner)
        self.pairs[name] = made[0].float(), made[1].float()
        self.keys.setdefault(name, kohya_keys(name))

    def dense(self, name: str, delta: Tensor) -> None:
        """A difference as large as the weight."""
        flat = delta.flatten(1)
        one = torch.eye(min(flat.shape), dtype=torch.float64, device=flat.device)
        self.add(name, *((one, flat) if len(flat) <= flat.shape[1] else (flat, one)), delta.shape[1:])

    def lose(self, delta: Tensor | None) -> None:
        """A difference that no LoRA can hold, a norm's or a bias."""
        square = 0.0 if delta is None else float(delta.double().square().sum())
        self.whole, self.lost = self.whole + square, self.lost + square

    def change(self, name: str, change: Change, layer: nn.Module, weight: Tensor) -> None:
        """A change of any kind of a layer with this weight."""
        self.lose(change.bias)
        if isinstance(change.weight, Lora) and change.weight.factor.b is not None:
            up, down = factors(change.weight)
            self.add(name, up, down.flatten(1), weight.shape[1:])
        elif change.weight is not None and isinstance(original(layer), nn.Linear | nn.Conv2d):
            self.dense(name, change.weight.delta(weight))
        elif change.weight is not None:
            self.lose(change.weight.delta(weight))

    def tensors(self) -> dict[str, Tensor]:
        """What is to be written. Where layers have an alpha it is one number for all: diffusers misreads kohya files of more."""
        out, most = dict(self.others), max(self.ranks, default=1)
        for name, (up, down) in self.pairs.items():
            down_key, up_key, alpha_key = self.keys[name]
            out |= {down_key: down, up_key: up * (len(down) / most) if alpha_key else up}
            out |= {alpha_key: torch.tensor(float(most))} if alpha_key else {}
        return out


def kohya_keys(name: str) -> tuple[str, str, str]:
    """Of a layer's down, up and alpha."""
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def merged(files: Iterable[tuple[Mapping[str, Change], float, str]], width: Width) -> Written:
    """The sum of (changes, weight, path), cut. Layers go by their names in the files. ValueError for a layer that is no plain LoRA."""
    out, layers = Written(width), dict[str, list[tuple[Change, float, str]]]()
    for changes, weight, path in files:
        for name, change in changes.items():
            layers.setdefault(name, []).append((change, weight, path))
    for name, parts in layers.items():
        _sum(out, name, parts)
    return out


def _sum(out: Written, name: str, parts: list[tuple[Change, float, str]]) -> None:
    (first, _, path), pairs = parts[0], []
    head, roles = split(path, first.keys[0])[0], {split(path, key)[1]: key for key in first.keys}
    down, up, _ = kohya_keys(head)
    out.keys[name] = roles.get("down", down), roles.get("up", up), roles.get("alpha", "")
    for change, weight, where in parts:
        kind = change.weight
        if isinstance(kind, Lora) and kind.factor.b is not None:
            pairs.append((factors(kind)[0] * weight, factors(kind)[1]))
        elif kind is not None and not isinstance(kind, Full):
            raise ValueError(f"lora {where}: {name} is {kind.name}; expected plain LoRA, which as_lora makes of it")
        for end, t in (("diff_b", change.bias), ("diff", kind.difference if isinstance(kind, Full) else None)):
            if t is not None:
                out.others[f"{head}.{end}"] = out.others.get(f"{head}.{end}", 0) + t.float() * weight
    if pairs:
        ups, downs = zip(*pairs, strict=True)
        out.add(name, torch.cat(ups, dim=1), torch.cat([d.flatten(1) for d in downs]), downs[0].shape[1:])


def factors(kind: Lora) -> tuple[Tensor, Tensor]:
    """up (out, r), with the scale in it, and down (r, in) or (r, in, k, k), both float64."""
    a, b, core = kind.factor.a.double(), kind.factor.b, kind.factor.core
    assert b is not None
    if core is None:
        return a.flatten(1) * kind.scale, b.double()
    return a.t() * kind.scale, torch.einsum("ij...,jr->ir...", core.double(), b.double().flatten(1))
