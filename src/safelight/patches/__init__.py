"""Reversible changes of a loaded model, one file each: a patch enters, the model is changed; it leaves, nothing of it is left.

A patch never writes into a tensor it found: it puts new parameters and modules in place of old ones, and `preserved` puts the old
ones back by identity. So restoring costs no copy of the weights and is exact to the bit.
"""
from __future__ import annotations

import importlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from torch import nn

    from safelight.families import Family
    from safelight.values import Patch

Apply: TypeAlias = "Callable[[Family, Patch], AbstractContextManager[None]]"

PATCHES: dict[str, Apply] = {}

CONTAINERS = (dict, OrderedDict, list, set)
"""Attributes of these very types are put back by content; subclasses may be frozen."""

log = logging.getLogger(__name__)

_told: WeakKeyDictionary[Family, list[str]] = WeakKeyDictionary()


def patch(apply: Callable[[Family, Patch], Iterator[None]]) -> Apply:
    """Register a generator that changes a family's networks, yields once and puts back what it found, under its own name."""
    made = contextmanager(apply)
    PATCHES[apply.__name__] = made
    return made


def find(kind: str) -> Apply:
    """The patch of this kind; its module is imported when it is first asked for. ValueError when there is none."""
    if kind not in PATCHES:
        try:
            importlib.import_module(f"{__name__}.{kind}")
        except ModuleNotFoundError as e:
            raise ValueError(f"patch: no kind {kind!r}") from e
    if kind not in PATCHES:  # a module of another use
        raise ValueError(f"patch: no kind {kind!r}")
    return PATCHES[kind]


def tell(family: Family, what: Patch, text: str) -> None:
    """Say how a patch fits the model it is being put on; whoever leases the model may pass it on (see `told`)."""
    said = f"{what.kind} {what.info.get('name') or what.weights.path}: {text}"
    log.info("%s", said)
    _told.setdefault(family, []).append(said)


def told(family: Family) -> list[str]:
    """What the patches now on the model said, in order; once."""
    return _told.pop(family, [])


@contextmanager
def preserved(networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """Whatever is done to the module trees inside is undone on the way out, however that happens: submodules, parameters, buffers,
    hooks, attributes, gradients and what needs them. Only a write into a tensor in place is beyond it."""
    with kept(m for network in networks.values() for m in network.modules()):
        yield


@contextmanager
def kept(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The same for single modules, without what is below them: for a patch that knows which ones it touches."""
    found = [_Found(m) for m in modules]
    try:
        yield
    finally:
        for one in found:
            one.put_back()


class _Found:
    """One module as it was: its attributes, the contents of the containers among them, its configuration, its parameters' flags."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        self.contents = {n: value.copy() if value else () for n, value in self.attributes.items() if type(value) in CONTAINERS}
        self.settings: Any = self.attributes.get("config", self.attributes.get("_internal_dict"))  # transformers', diffusers'
        self.config: dict[str, Any] | None = dict(vars(self.settings)) if self.settings is not None else None
        self.flags = [(p, p.requires_grad, p.grad) for p in module.parameters(recurse=False)]

    def put_back(self) -> None:
        for name, was in self.contents.items():
            held = self.attributes[name]
            if not held and not was:
                continue
            held.clear()
            held.extend(was) if isinstance(held, list) else held.update(was)
        now = vars(self.module)
        now.clear()
        now.update(self.attributes)
        if self.config is not None:
            settings = vars(self.settings)
            settings.clear()
            settings.update(self.config)
        for p, needed, grad in self.flags:
            if p.requires_grad != needed:
                p.requires_grad_(needed)
            p.grad = grad
