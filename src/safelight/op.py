"""`@op` makes an op of a typed function; `OPS` holds them by name. Modules that declare ops need this, `values` and nothing heavy."""
from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, MutableMapping
from dataclasses import replace
from functools import cache, update_wrapper
from importlib import import_module
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, overload

from safelight.events import Event
from safelight.signature import read
from safelight.spec import Expand, InputError, Knob, OneOf, Port, Setting, Spec, Step, Work, near

__all__ = ["op", "Op", "OPS", "Knob", "OneOf", "Work", "Spec", "Port", "Setting", "Step", "InputError", "load_ops", "find"]

P = ParamSpec("P")
R = TypeVar("R")


class Op(Generic[P, R]):
    """A declared op. Calling it runs it eagerly through the engine with the store in use, and returns the value.

    Fields of a `Knobs` group may be given flat: `train_lora(model, data, rank=16)`.
    """

    __name__: str
    __doc__: str

    def __init__(self, spec: Spec, registry: Mapping[str, Op[..., Any]]) -> None:
        self.spec = spec
        self.registry = registry
        update_wrapper(self, spec.body)

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...
    @overload
    def __call__(self, *args: Any, **kwargs: Any) -> R: ...

    def __call__(self, *args: Any, **kwargs: Any) -> R:
        """Run it now."""
        engine = import_module("safelight.engine")  # the engine lies above ops; this call is the one way up
        value: R = engine.call_now(self, args, kwargs)
        return value

    def __repr__(self) -> str:
        return f"<op {self.spec.name}>"

    def expands(self, expand: Expand) -> Expand:
        """Say which ops the settings ask for before this one, as a prompt does that names a LoRA: the decorated function gets the literals
        by flat name and returns those that are left and the steps. Keys and lineage are those of the graph with these ops written out."""
        self.spec = replace(self.spec, expand=expand)
        return expand

    def work(self, arguments: Mapping[str, Any]) -> Generator[Event, Any, R]:
        """The body as a generator of events, whether it yields or not. `arguments` are the Python parameters."""
        out = self.spec.body(**arguments)
        if not inspect.isgenerator(out):
            value: R = out
            return value
        result: R = yield from out
        return result


OPS: dict[str, Op[..., Any]] = {}


class _Declare(Protocol):
    @overload
    def __call__(self, fn: Callable[P, Generator[Event, Any, R]]) -> Op[P, R]: ...
    @overload
    def __call__(self, fn: Callable[P, R]) -> Op[P, R]: ...


def op(
    group: str, *, version: int = 1, store: bool = True, cheap: bool = False, exact: bool = False, loads: bool = False,
    fingerprint: Callable[[Mapping[str, Any]], str] | None = None, registry: MutableMapping[str, Op[..., Any]] | None = None,
) -> _Declare:
    """Declare an op.

    The function has one or two positional parameters and keyword-only ones after them, eight at most. A parameter annotated with a value
    class is a port; int, float, str, bool, Path, Literal, a sequence of these or a `Knobs` dataclass is a setting. A body may be a
    generator: it yields events and returns the value (`-> Work[Image]`).

    Args:
        group: where surfaces list it: data, generate, image, train, score, ...
        version: raise it when results change. It is part of the recipe key, so stored results of the old version are not used.
        store: keep the value on disk. False: only the record of it (keys and lineage); the value is made again when something needs it.
        cheap: take the hash of the source as version; any change of code makes results old. For ops that run in moments.
        exact: key the inputs by everything they hold, `info` and dropped rows included, not by content only. An op must be exact when its
            result carries along something that content keys leave out: what a dataset dropped, what a picture was made of, a trainer's
            record. What runs again because of it has the same content key as before, so nothing costly after it does.
        loads: this op makes a value of its output type from the text that is its first parameter; every surface then takes that text
            (`--data pictures/`, `"model": "mini"`) wherever the type is wanted. One op a type; at a port `x` an op `load_x` comes first.
        fingerprint: for ops that read what is not an input (a folder, a model's files): gets the settings by parameter name, returns a
            hash of what is there. It enters the recipe key. ValueError when nothing is there.
        registry: where to put it; `OPS` when not given.
    """
    into = OPS if registry is None else registry

    def declare(fn: Callable[..., Any]) -> Any:
        spec = Spec(
            **vars(read(fn)), name=fn.__name__, group=group, doc=inspect.getdoc(fn) or "", body=fn,
            version=None if cheap else version, store=store, exact=exact, loads=loads, fingerprint=fingerprint,
        )
        into[spec.name] = Op(spec, into)
        return into[spec.name]

    return declare


@cache
def load_ops() -> Mapping[str, Op[..., Any]]:
    """Import every module of `safelight.ops` and return `OPS`."""
    import pkgutil

    package = import_module("safelight.ops")  # by name: the declarations lie above this layer
    for module in pkgutil.iter_modules(package.__path__):
        import_module(f"safelight.ops.{module.name}")
    return OPS


def find(name: str, ops: Mapping[str, Op[..., Any]]) -> Op[..., Any]:
    """The op of that name; hyphens are underscores. InputError naming near ones."""
    found = ops.get(name) or ops.get(name.replace("-", "_"))
    if found is None:
        raise InputError("", name, "an unknown op", "one of " + ", ".join(sorted(ops)), advice=near(name, list(ops)), kind="no_such_op")
    return found


def source_of(port: Port, ops: Mapping[str, Op[..., Any]]) -> Op[..., Any] | None:
    """The op that makes what a port takes from text, or None."""
    named = ops.get(f"load_{port.name}")
    if named is not None and issubclass(named.spec.output, port.types):
        return named
    return next((o for t in port.types for o in ops.values() if o.spec.loads and issubclass(o.spec.output, t)), None)
