"""The parameters that are trained: how they move, what is shown of them, and their state in a checkpoint."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from safelight.train import optimizers, parallel
from safelight.train.flat import Flat
from safelight.train.settings import Optimizer

SMALL = 2**26
"""Up to so many numbers are put into one tensor: with hundreds of small ones, a clipped AdamW step then takes half of the time."""

Reduce = Callable[[Sequence[Tensor]], None]


class Stepper:
    """Parameters and their optimizer. `moved` is what the optimizer sees: tensors that hold all the parameters of a rate, the parameters
    themselves, or this process's parts of them. Parameters that need no gradient are only held, shown and kept."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], o: Optimizer, rates: Mapping[str, float]) -> None:
        """`rates` multiply the learning rate by the beginning of the name. ValueError when the optimizer cannot do what is asked."""
        kind = optimizers.KINDS[o.kind]
        self.parameters, self.o = parameters, o
        self.split = any(parallel.local(p) is not p for p in parameters.values())
        if self.split and not kind.shards:
            able = ", ".join(name for name, k in optimizers.KINDS.items() if k.shards)
            raise ValueError(f"train: {o.kind} cannot work on parameters that are split among processes; expected one of {able}")
        self.names: dict[float, list[str]] = {}
        for name in (n for n, p in parameters.items() if p.requires_grad):
            factor = next((f for start, f in rates.items() if name.startswith(start)), 1.0)
            self.names.setdefault(factor, []).append(name)
        flat = kind.flat and not self.split and sum(p.numel() for p in parameters.values()) <= SMALL
        self.flats = [Flat(parameters[n] for n in names) for names in self.names.values()] if flat else []
        self.optimizer = optimizers.made(o, self._groups())
        self.moved: list[nn.Parameter] = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.averages = [p.detach().clone() for p in self.moved] if o.average else []

    def _groups(self) -> list[dict[str, object]]:
        if self.flats:
            return [{"params": [flat.weights], "factor": f} for flat, f in zip(self.flats, self.names, strict=True)]
        found = {f: [self.parameters[n] for n in names] for f, names in self.names.items()}
        if self.split:
            found = {f: [nn.Parameter(parallel.local(p.detach())) for p in params] for f, params in found.items()}
        return [{"params": params, "factor": f} for f, params in found.items()]

    def _ordered(self) -> list[str]:
        return [n for names in self.names.values() for n in names]

    def ready(self, loss: Tensor, reduce: Reduce) -> Tensor:
        """Average loss and gradients over the processes, in place, and clip; returns the gradient's length before that."""
        if self.split:  # those of parts are averaged already, while they were computed
            found: dict[bool, list[Tensor]] = {True: [], False: []}
            for p, like in zip(self.moved, self._likes(), strict=True):
                p.grad = None if like.grad is None else parallel.local(like.grad)
                if p.grad is not None:
                    found[parallel.local(like) is like].append(p.grad)
            grads = found[True] + found[False]
            reduce([*found[True], loss])
            own, parts = (sum((g.square().sum() for g in some), torch.zeros_like(loss)) for some in found.values())
            parallel.mean([parts])
            length = (own + parts * parallel.share().world).sqrt()
        else:
            grads = [p.grad for p in self.moved if p.grad is not None]
            reduce([*grads, loss])
            length = nn.utils.get_total_norm(grads)
        if self.o.clip:
            torch._foreach_mul_(grads, (self.o.clip / (length + 1e-6)).clamp(max=1.0))
        return length

    def step(self, rate: float, done: int) -> None:
        """Move the parameters, and their average after the `done` steps before; forget the gradients."""
        for flat in self.flats:
            flat.collect()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.optimizer.step()
        if self.averages:
            keep = min(self.o.average, (1 + done) / (10 + done))
            torch._foreach_lerp_(self.averages, [p.data for p in self.moved], 1 - keep)
        for flat in self.flats:
            flat.grads.zero_()
        if not self.flats:
            for p in (*self.moved, *self.parameters.values()):
                p.grad = None

    def shown(self) -> list[Tensor]:
        """What is looked at and kept, as `moved`: the average where there is one."""
        if isinstance(self.optimizer, optimizers.ScheduleFree):
            return [self.optimizer.averaged(p) for p in self.moved]
        return self.averages or [p.detach() for p in self.moved]

    def show(self) -> list[Tensor]:
        """Put what is shown in place; returns what was there, to be `put` back."""
        shown = self.shown()
        if all(s.data_ptr() == p.data_ptr() for s, p in zip(shown, self.moved, strict=True)):
            return []
        live = [p.detach().clone() for p in self.moved]
        self.put(shown)
        return live

    def put(self, values: Sequence[Tensor]) -> None:
        """Put values in place of the parameters'; none change nothing."""
        for p, value in zip(self.moved, values, strict=False):
            p.data.copy_(value)

    def named(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Values as `moved`, by the names of the parameters, whole. All processes call this together where parameters are split."""
        if self.flats:
            values = [part for flat, value in zip(self.flats, values, strict=True) for part in flat.views(value)]
        moved = dict(zip(self._ordered(), values, strict=True))
        return {n: parallel.whole(moved.get(n, p.detach()), p) for n, p in self.parameters.items()}

    def weights(self) -> dict[str, Tensor]:
        """Copies on the CPU of what is shown."""
        named = self.named(self.shown())
        return {n: named[n].detach().to("cpu", copy=True) for n in self.parameters}

    def _likes(self) -> list[Tensor]:
        return [self.parameters[n] for n in self._ordered()] if self.split else list(self.moved)

    def tensors(self) -> dict[str, Tensor]:
        """The state. All processes call this together where parameters are split."""
        out = {f"weights/{n}": t for n, t in self.named([p.detach() for p in self.moved]).items()}
        for i, (p, like) in enumerate(zip(self.moved, self._likes(), strict=True)):
            out |= {f"state/{i}/{k}": parallel.whole(v, like) for k, v in self.optimizer.state.get(p, {}).items()}
        out |= {f"average/{i}": parallel.whole(v, like) for i, (v, like) in enumerate(zip(self.averages, self._likes(), strict=False))}
        for i, group in enumerate(self.optimizer.param_groups):
            out[f"group/{i}"] = torch.tensor([group[k] for k in _numbers(group)], dtype=torch.float64)
        return out

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """The state that `tensors` gave. KeyError when one is missing."""
        fused = self.optimizer.param_groups[0].get("fused")
        for name, p in self.parameters.items():
            parallel.local(p.data).copy_(parallel.split(tensors[f"weights/{name}"], p))
        for i, (p, like) in enumerate(zip(self.moved, self._likes(), strict=True)):
            for key in (k for k in tensors if k.startswith(f"state/{i}/")):
                kind = key.split("/", 2)[2]
                held = parallel.split(tensors[key], like)
                self.optimizer.state[p][kind] = held if kind == "step" and not fused else held.to(p.device)
            if self.averages:
                self.averages[i].copy_(parallel.split(tensors[f"average/{i}"], like))
        for i, group in enumerate(self.optimizer.param_groups):
            group |= {k: type(group[k])(v) for k, v in zip(_numbers(group), tensors[f"group/{i}"].tolist(), strict=True)}

    def finite(self) -> bool:
        """Whether all parameters are numbers."""
        return all(bool(p.isfinite().all()) for p in self.moved)


def _numbers(group: Mapping[str, object]) -> list[str]:
    """Names of what changes in a group beside its tensors."""
    return sorted(k for k, v in group.items() if type(v) in (int, float) and k != "lr")
