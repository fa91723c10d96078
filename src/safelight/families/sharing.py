"""Networks that several loaded models have in common, and networks that take turns on a device where they do not fit together."""
from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from accelerate.utils import send_to_device
from torch import nn

from safelight.families.sources import Parts
from safelight.values import canonical, digest

HEADROOM = 2 * 2**30
"""Bytes that should be left on a device for working: what SDXL takes for two rows of 1024 pixels a side in 16 bits, and some more."""

_built: WeakValueDictionary[str, nn.Module] = WeakValueDictionary()
_by_turns: WeakSet[nn.Module] = WeakSet()


class Shared:
    """A model's parts, of which those that another loaded model has already are not built again.

    `taken` are the ids of networks that must be left to others; with `aside`, networks are built in the machine's memory instead of on
    the device they are for.
    """

    def __init__(self, parts: Parts, taken: Container[int] = (), *, aside: bool = False) -> None:
        self.parts, self.taken, self.aside = parts, taken, aside
        self.source, self.family = parts.source, parts.family
        self.fingerprint, self.config = parts.fingerprint, parts.config

    def folder(self, part: str) -> Path:
        """The part's folder."""
        return self.parts.folder(part)

    def build(self, part: str, cls: Any, *, device: torch.device, dtype: torch.dtype) -> Any:
        """The network that was built of the same files, with the same configuration and for the same place, or a new one."""
        what = (part, canonical(self.config(part)), self.fingerprint(part), cls.__name__, str(device), str(dtype))
        found = _built.get(digest(*what))
        if found is None or id(found) in self.taken:
            found = self.parts.build(part, cls, device=torch.device("cpu") if self.aside else device, dtype=dtype)
            _built[digest(*what)] = found
        return found


class Turn(ModelHook):  # type: ignore[misc]
    """Brings a network to a device when it is used, after moving the others that take turns back to the machine's memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def init_hook(self, module: nn.Module) -> nn.Module:
        """Begins in the machine's memory."""
        _by_turns.add(module)
        return module.to("cpu")

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Every parameter is asked where it is: a patch may have put some of them back that never moved."""
        for other in _by_turns:
            if other is not module:
                other.to("cpu")
        module.to(self.device)
        return send_to_device(args, self.device), send_to_device(kwargs, self.device)


def by_turns(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Let the networks take turns on the device, by accelerate's hooks: one of them is there at a time."""
    for network in networks:
        add_hook_to_module(network, Turn(device))


def crowded(sizes: Iterable[int], free: int | None) -> bool:
    """Whether networks of these bytes, all on a device with `free` bytes left, should take turns: too little is left for working, and
    turns would at least double it."""
    held = list(sizes)
    return free is not None and free < HEADROOM and sum(held) - max(held, default=0) > free


def size(network: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
