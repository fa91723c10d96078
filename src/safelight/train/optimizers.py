"""Optimizers by name. All that changes lies in tensors beside the parameters and in the numbers of a group, so that checkpoints hold it."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from safelight.train.settings import Optimizer

Groups = Sequence[Mapping[str, Any]]

BLOCK = 256
"""Entries of an 8-bit state that share a scale."""

SMALL = 4096
"""Tensors with fewer entries keep their state in 32 bits: norms and biases need the precision and cost nothing."""


class _Stepping(torch.optim.Optimizer):
    """The walk over the parameters that have a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all groups."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, self.state[p], group)
            group["k"] += 1

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One parameter's step."""
        raise NotImplementedError


def _held(state: dict[str, Tensor], name: str, p: Tensor) -> Tensor:
    """A state tensor, which begins as zeros."""
    if name not in state:
        state[name] = torch.zeros_like(p)
    return state[name]


class Lion(_Stepping):
    """The sign of a running mean (arXiv:2302.06675, algorithm 2). Wants a third to a tenth of AdamW's rate, and as much more decay."""

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0) -> None:
        """As in the paper."""
        super().__init__(list(map(dict, groups)), {"lr": lr, "betas": betas, "weight_decay": weight_decay, "k": 0})

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One parameter's step."""
        beta1, beta2 = group["betas"]
        m = _held(state, "exp_avg", p)
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(m.lerp(g, 1 - beta1).sign_(), alpha=-group["lr"])
        m.lerp_(g, 1 - beta2)


class ScheduleFree(_Stepping):
    """Schedule-free AdamW (arXiv:2405.15682, algorithm 1): the gradient is taken at y, which the parameters hold; z makes the steps, and
    their average x is what has been learned (see `averaged`). Steps count in x by the square of the largest rate so far."""

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        """As in the paper; the first beta is over 0."""
        known = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8, "k": 0, "weights": 0.0, "largest": 0.0, "share": 1.0}
        super().__init__(list(map(dict, groups)), known)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all groups."""
        for group in self.param_groups:
            group["largest"] = max(group["largest"], group["lr"])
            weight = group["largest"] ** 2
            group["weights"] += weight
            group["share"] = weight / group["weights"] if weight else 0.0
        super().step()

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One parameter's step."""
        (beta1, beta2), lr, share = group["betas"], group["lr"], group["share"]
        if "z" not in state:
            state["z"] = p.detach().clone()
        z, v = state["z"], _held(state, "exp_avg_sq", p)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        d = g / (v / (1 - beta2 ** (group["k"] + 1))).sqrt_().add_(group["eps"])
        d.add_(p, alpha=group["weight_decay"])
        p.lerp_(z, share).add_(d, alpha=lr * (beta1 * (1 - share) - 1))
        z.sub_(d, alpha=lr)

    @torch.no_grad()
    def averaged(self, p: Tensor) -> Tensor:
        """x of a parameter: y = (1 - beta1) z + beta1 x, solved for x."""
        group = next(g for g in self.param_groups if any(q is p for q in g["params"]))
        return p.lerp(self.state[p]["z"], 1 - 1 / group["betas"][0]) if "z" in self.state[p] else p.detach().clone()


class Prodigy(_Stepping):
    """Adam that estimates its rate d (arXiv:2306.06101, algorithm 4), with Adam's bias correction, and with warm-ups kept out of the
    estimate, as its authors advise for diffusion models. All parameters share d; lr is a factor of it."""

    def __init__(self, groups: Groups, *, lr: float = 1.0, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0,
                 first: float = 1e-6, d_coef: float = 1.0) -> None:
        """`first` is d before the first step, estimates of which are multiplied by `d_coef`. ValueError when parameters should have
        different rates."""
        if len({g.get("factor", 1.0) for g in groups}) > 1:
            raise ValueError("prodigy finds one rate for all parameters, and this method wants several; choose another optimizer")
        known = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8, "first": first, "k": 0, "d": first, "most": first,
                 "d_coef": d_coef, "numerator": 0.0, "rate": 0.0}
        super().__init__(list(map(dict, groups)), known)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all groups."""
        self._estimate(self.param_groups)
        super().step()

    def _estimate(self, groups: list[dict[str, Any]]) -> None:
        lead = groups[0]
        (beta1, beta2), d, first = lead["betas"], lead["d"], lead["first"]
        rate, beta3 = self._rate(lead), beta2**0.5
        moved, size = 0.0, 0.0
        for p in (p for group in groups for p in group["params"] if p.grad is not None):
            state, g = self.state[p], p.grad
            if not state:
                state |= {name: torch.zeros_like(p) for name in ("s", "exp_avg", "exp_avg_sq")} | {"p0": p.detach().clone()}
            state["exp_avg"].mul_(beta1).add_(g, alpha=d * (1 - beta1))
            state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=d * d * (1 - beta2))
            state["s"].mul_(beta3).add_(g, alpha=d / first * d)
            both = torch.stack([torch.dot(g.flatten(), (state["p0"] - p).flatten()), state["s"].abs().sum()]).tolist()
            moved, size = moved + d / first * rate * both[0], size + both[1]
        numerator = beta3 * lead["numerator"] + moved
        guess = lead["d_coef"] * numerator / size if size else d
        now = max(lead["most"], guess)
        for group in groups:
            group |= {"numerator": numerator, "most": now, "d": now, "rate": rate} if size and lead["lr"] else {"rate": 0.0}

    def _rate(self, group: dict[str, Any]) -> float:
        (beta1, beta2), k = group["betas"], group["k"] + 1
        return float(group["d"] * group["lr"] * (1 - beta2**k) ** 0.5 / (1 - beta1**k))

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One parameter's step, at the rate that d had before this gradient."""
        p.add_(p, alpha=-group["weight_decay"] * group["rate"])
        p.addcdiv_(state["exp_avg"], state["exp_avg_sq"].sqrt().add_(group["d"] * group["eps"]), value=-group["rate"])


@cache
def codebook(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(256,) rising values in [-1, 1] or [0, 1] of an 8-bit number of dynamic exponent (arXiv:2110.02861, section 1.3), and the (255,)
    places where rounding changes. Seven decades; the bits that the exponent does not need make the fraction finer."""
    values = [0.0, 1.0]
    for decade in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (decade if signed else decade + 1) + 1, dtype=torch.float64)
        middle = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - 6)
        values += [*middle.tolist(), *((-middle).tolist() if signed else [])]
    table = torch.tensor(sorted(values), dtype=torch.float32, device=device)
    return table, (table[:-1] + table[1:]) / 2


def packed(x: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """(codes, scales) of a tensor: one byte an entry and the largest size of each BLOCK entries."""
    blocks = torch.nn.functional.pad(x.flatten(), (0, -x.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    inside = blocks / scales.clamp(min=torch.finfo(x.dtype).tiny)[:, None]
    return torch.bucketize(inside, codebook(signed, x.device)[1], out_int32=True).to(torch.uint8), scales


def unpacked(codes: Tensor, scales: Tensor, like: Tensor, *, signed: bool) -> Tensor:
    """The tensor again, in the shape of another."""
    return (codebook(signed, codes.device)[0][codes.int()] * scales[:, None]).flatten()[: like.numel()].view_as(like)


class AdamW8bit(_Stepping):
    """AdamW whose running mean and square are kept in 8 bits, block by block (arXiv:2110.02861)."""

    def __init__(self, groups: Groups, *, lr: float, betas: tuple[float, float] = (0.9, 0.999), weight_decay: float = 0.0) -> None:
        """As AdamW."""
        super().__init__(list(map(dict, groups)), {"lr": lr, "betas": betas, "weight_decay": weight_decay, "eps": 1e-8, "k": 0})

    def move(self, p: Tensor, g: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        """One parameter's step."""
        (beta1, beta2), k, lr = group["betas"], group["k"] + 1, group["lr"]
        m, v = self._kept(p, state, "exp_avg", signed=True), self._kept(p, state, "exp_avg_sq", signed=False)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(1 - lr * group["weight_decay"])
        p.addcdiv_(m, v.sqrt().div_((1 - beta2**k) ** 0.5).add_(group["eps"]), value=-lr / (1 - beta1**k))
        if p.numel() >= SMALL:
            state["exp_avg"], state["exp_avg scales"] = packed(m, signed=True)
            state["exp_avg_sq"], state["exp_avg_sq scales"] = packed(v, signed=False)

    def _kept(self, p: Tensor, state: dict[str, Tensor], name: str, *, signed: bool) -> Tensor:
        if f"{name} scales" not in state:
            return _held(state, name, p)
        return unpacked(state[name], state[f"{name} scales"], p, signed=signed)


def _adamw(groups: Groups, o: Optimizer) -> torch.optim.Optimizer:
    """torch's own; fused takes a third of the time of its other forms with many small tensors on a CPU."""
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(list(map(dict, groups)), lr=o.lr, betas=o.betas, weight_decay=o.weight_decay, fused=fused)


def _adafactor(groups: Groups, o: Optimizer) -> torch.optim.Optimizer:
    """torch's own (arXiv:1804.04235): the rate is relative to a parameter's size, and falls with the steps if they are many."""
    return torch.optim.Adafactor(list(map(dict, groups)), lr=o.lr, weight_decay=o.weight_decay)


def _prodigy(groups: Groups, o: Optimizer) -> torch.optim.Optimizer:
    return Prodigy(groups, lr=o.lr, betas=(o.betas[0], o.betas[1]), weight_decay=o.weight_decay, d_coef=o.d_coef)


def _own(made: Callable[..., torch.optim.Optimizer]) -> Callable[[Groups, Optimizer], torch.optim.Optimizer]:
    return lambda groups, o: made(groups, lr=o.lr, betas=(o.betas[0], o.betas[1]), weight_decay=o.weight_decay)


@dataclass(frozen=True)
class Kind:
    """How it is made; whether it looks at each entry by itself, so that parameters may be one long tensor; whether it may see shards."""

    make: Callable[[Groups, Optimizer], torch.optim.Optimizer]
    flat: bool = True
    shards: bool = True


KINDS = {
    "adamw": Kind(_adamw), "adamw8bit": Kind(_own(AdamW8bit), shards=False), "prodigy": Kind(_prodigy, shards=False),
    "schedulefree": Kind(_own(ScheduleFree)), "adafactor": Kind(_adafactor, flat=False, shards=False), "lion": Kind(_own(Lion)),
}


def made(o: Optimizer, groups: Groups) -> torch.optim.Optimizer:
    """The optimizer that is asked for. Each group has `params`, and a `factor` of the rate that whoever steps applies."""
    return KINDS[o.kind].make(groups, o)
