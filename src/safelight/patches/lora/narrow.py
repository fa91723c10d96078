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
    """A LoRA file in the making. `whole` and `lost` are sums of squares of the differences asked for, and of what is missing."""

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

    def add(self, name: str, up: Tensor, down: Tensor, width: Width, *, inner: torch.Size, keys: tuple[str, str, str]) -> None:
        """up (out, r) @ down (r, columns), cut. `inner` is the shape of a row: (in,) or (in, k, k); `keys` name down, up and alpha, which
        may be "" where files have none."""
        wide, q = torch.linalg.qr(up.double())
        tall, r = torch.linalg.qr(down.double().t())
        u, s, v = torch.linalg.svd(q @ r.t())
        n = width.of(s)
        root = s[:n].sqrt()
        self.whole += float(s.square().sum())
        self.lost += float(s[n:].square().sum())
        ones = [1] * (len(inner) - 1)
        made = (wide @ u[:, :n] * root).view(-1, n, *ones), (root[:, None] * (v[:n] @ tall.t())).view(n, *inner)
        self.pairs[name], self.keys[name] = (made[0].float(), made[1].float()), keys

    def dense(self, name: str, delta: Tensor, width: Width) -> None:
        """A difference as large as the weight, under kohya's name."""
        flat = delta.flatten(1)
        one = torch.eye(min(flat.shape), dtype=torch.float64, device=flat.device)
        up, down = (one, flat) if len(flat) <= flat.shape[1] else (flat, one)
        self.add(name, up, down, width, inner=delta.shape[1:], keys=kohya_keys(name))

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
    out, layers = Written(), dict[str, list[tuple[Change, float, str]]]()
    for changes, weight, path in files:
        for name, change in changes.items():
            layers.setdefault(name, []).append((change, weight, path))
    for name, parts in layers.items():
        _sum(out, name, parts, width)
    return out


def _sum(out: Written, name: str, parts: list[tuple[Change, float, str]], width: Width) -> None:
    (first, _, path), ups, downs = parts[0], [], []
    head, inner = split(path, first.keys[0])[0], torch.Size()
    for change, weight, where in parts:
        if isinstance(change.weight, Lora) and change.weight.factor.b is not None:
            up, down = factors(change.weight)
            inner = down.shape[1:]
            ups.append(up * weight)
            downs.append(down.flatten(1))
        elif change.weight is not None and not isinstance(change.weight, Full):
            raise ValueError(f"lora {where}: {name} is {change.weight.name}; expected plain LoRA, which as_lora makes of it")
        for end, t in (("diff_b", change.bias), ("diff", change.weight.difference if isinstance(change.weight, Full) else None)):
            if t is not None:
                out.others[f"{head}.{end}"] = out.others.get(f"{head}.{end}", 0) + t.float() * weight
    if ups:
        out.add(name, torch.cat(ups, dim=1), torch.cat(downs), width, inner=inner, keys=_own_keys(path, first, head))


def _own_keys(path: str, change: Change, head: str) -> tuple[str, str, str]:
    roles = {split(path, key)[1]: key for key in change.keys}
    down, up, _ = kohya_keys(head)
    return roles.get("down", down), roles.get("up", up), roles.get("alpha", "")


def factors(kind: Lora) -> tuple[Tensor, Tensor]:
    """up (out, r), with the scale in it, and down (r, in) or (r, in, k, k), both float64."""
    a, b, core = kind.factor.a.double(), kind.factor.b, kind.factor.core
    assert b is not None
    if core is None:
        return a.flatten(1) * kind.scale, b.double()
    return a.t() * kind.scale, torch.einsum("ij...,jr->ir...", core.double(), b.double().flatten(1))


def layer_delta(out: Written, name: str, *, change: Change, layer: nn.Module, weight: Tensor, width: Width) -> None:
    """One layer's change of any kind as a LoRA. What cannot be one (a norm's, a bias) is missing from the file and counts as lost."""
    missing = [] if change.bias is None else [change.bias]
    if isinstance(change.weight, Lora) and change.weight.factor.b is not None:
        up, down = factors(change.weight)
        out.add(name, up, down.flatten(1), width, inner=weight.shape[1:], keys=kohya_keys(name))
    elif change.weight is not None and isinstance(original(layer), nn.Linear | nn.Conv2d):
        out.dense(name, change.weight.delta(weight), width)
    elif change.weight is not None:
        missing.append(change.weight.delta(weight))
    for t in missing:
        out.whole += float(t.double().square().sum())
        out.lost += float(t.double().square().sum())
