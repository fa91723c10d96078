"""Other people's node classes in ComfyUI's plain style (`NODE_CLASS_MAPPINGS`), from a folder that its owner allows.

Each slot of such a node is an op of ours, whose key hashes the node's files. Pictures, masks, latents (in our units), texts and numbers go
in and out; a class with any other socket is refused, and so is a file that `fence` stops.
"""
from __future__ import annotations

import importlib.util
import inspect
import logging
import math
import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from safelight.comfy.building import Building, Link
from safelight.comfy.data import Data, Later
from safelight.comfy.fence import packages, refused
from safelight.comfy.node import WIDGETS, Given, Input, NodeClass, Places
from safelight.comfy.sockets import LITERALS, VALUES, given_as, taken_as
from safelight.folders import Folders
from safelight.op import Op, Spec
from safelight.spec import REQUIRED, Kind, Port, Setting
from safelight.values import Value, canonical, digest

log = logging.getLogger(__name__)
KINDS: Mapping[str, Kind] = {"INT": "int", "FLOAT": "float", "STRING": "str", "BOOLEAN": "bool"}
HIDDEN = ("UNIQUE_ID",)
RECENT = 4
"""Calls whose results are kept for the other slots of the same node."""
_NOWHERE = Places(Folders({}), Path(), Path())
_calls: OrderedDict[str, tuple[Any, ...]] = OrderedDict()


@dataclass(frozen=True)
class Plugin:
    """A class with what it declares, read once. `hidden` are its hidden inputs by name."""

    name: str
    cls: Any
    files: str
    inputs: tuple[Input, ...]
    hidden: Mapping[str, str]
    outputs: tuple[str, ...]

    @property
    def ends(self) -> bool:
        """Whether a prompt is run for it."""
        return bool(getattr(self.cls, "OUTPUT_NODE", False))

    def op_name(self, slot: int) -> str:
        """Of the op that is a slot; -1 is what the node shows."""
        return f"{self.name}/{'ui' if slot < 0 else slot}"


def plugin_classes(folder: Path) -> dict[str, NodeClass]:
    """The node classes of a folder by name; what is refused is told in the log. ValueError when there is no such folder."""
    return {p.name: _node_class(p) for p in _plugins(folder)}


def plugin_ops(folder: Path) -> dict[str, Op[..., Any]]:
    """The ops that those classes become."""
    ops: dict[str, Op[..., Any]] = {}
    for p in _plugins(folder):
        for slot in range(-1 if p.ends else 0, len(p.outputs)):
            ops[p.op_name(slot)] = Op(_spec(p, slot), ops)
    return ops


def refusals(folder: Path) -> list[str]:
    """Why files and classes of a folder are not here."""
    return list(_read(folder.absolute(), _stamp(folder))[1])


def _plugins(folder: Path) -> tuple[Plugin, ...]:
    return _read(folder.absolute(), _stamp(folder))[0]


def _stamp(folder: Path) -> str:
    return canonical([[name, [[str(f), f.stat().st_mtime_ns] for f in files]] for name, files in packages(folder).items()])


@cache
def _read(folder: Path, stamp: str) -> tuple[tuple[Plugin, ...], tuple[str, ...]]:
    found: dict[str, Plugin] = {}
    against: list[str] = []
    for name, files in packages(folder).items():
        sources = [f.read_bytes() for f in files]
        whys = [refused(s.decode("utf-8", "replace"), str(f.relative_to(folder))) for s, f in zip(sources, files, strict=True)]
        if why := next((w for w in whys if w), ""):
            against.append(why)
            continue
        try:
            classes = _imported(name, files, digest(*sources))
        except Exception as e:  # noqa: BLE001  other people's code may raise anything; the rest of the folder goes on
            against.append(f"{name}: importing it: {type(e).__name__}: {e}")
            continue
        for key, cls in classes.items():
            try:
                found[key] = _plugin(key, cls, digest(*sources))
            except Exception as e:  # noqa: BLE001  its INPUT_TYPES is code of theirs too
                against.append(f"{name}: {key}: {e}")
    for why in against:
        log.warning("nodes: %s", why)
    return tuple(found.values()), tuple(against)


def _imported(name: str, files: Sequence[Path], hashed: str) -> Mapping[str, Any]:
    first = next((f for f in files if f.name == "__init__.py"), files[0])
    inside = [str(first.parent)] if first.name == "__init__.py" else None
    known = f"safelight_nodes_{hashed[:12]}_{name}"
    spec = importlib.util.spec_from_file_location(known, first, submodule_search_locations=inside)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[known] = module
    spec.loader.exec_module(module)
    classes = getattr(module, "NODE_CLASS_MAPPINGS", None)
    if not isinstance(classes, Mapping):
        raise ValueError("it has no NODE_CLASS_MAPPINGS")
    return classes


def _plugin(name: str, cls: Any, files: str) -> Plugin:
    """ValueError for what this class has and is not here."""
    told = cls.INPUT_TYPES()
    inputs = [_input(n, s, optional=group == "optional") for group in ("required", "optional") for n, s in (told.get(group) or {}).items()]
    outputs = tuple(str(t) if isinstance(t, str) else "COMBO" for t in cls.RETURN_TYPES)
    unknown = [t for t in (*(i.type for i in inputs), *outputs) if t not in VALUES and t not in (*LITERALS, "COMBO")]
    if unknown:
        raise ValueError(f"it has a socket {unknown[0]}; expected {', '.join([*VALUES, *LITERALS])} and lists of names")
    if not callable(getattr(cls, str(cls.FUNCTION), None)):
        raise ValueError(f"it has no function {cls.FUNCTION}")
    free = _checked_by_itself(cls)
    checked = tuple(_unchecked(i) if free(i.name) else i for i in inputs)
    return Plugin(name, cls, files, checked, dict(told.get("hidden") or {}), outputs)


def _checked_by_itself(cls: Any) -> Callable[[str], bool]:
    """Which inputs VALIDATE_INPUTS looks at: their ranges and lists are its own matter."""
    if not callable(getattr(cls, "VALIDATE_INPUTS", None)):
        return lambda name: False
    parameters = inspect.signature(cls.VALIDATE_INPUTS).parameters
    every = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return lambda name: every or name in parameters


def _input(name: str, spec: Sequence[Any], *, optional: bool) -> Input:
    kind, told = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    names = list(told.get("options", ())) if kind == "COMBO" else kind if isinstance(kind, list | tuple) else None
    low, high, step = (told.pop(k, None) for k in ("min", "max", "step"))
    many, default = bool(told.pop("multiline", False)), told.pop("default", names[0] if names else None)
    fixed = None if names is None else tuple(names)
    return Input(
        name, str(kind) if fixed is None else "COMBO", default, low, high, step, None if fixed is None else lambda _: fixed or (), optional,
        many_lines=many, told={k: v for k, v in told.items() if k != "options"},
    )


def _unchecked(i: Input) -> Input:
    """The same to the editor; what may be given is not looked at here."""
    names = {"options": list(i.options(_NOWHERE))} if i.options else {}
    told = {k: v for k, v in {"min": i.low, "max": i.high, **names}.items() if v is not None}
    return replace(i, low=None, high=None, options=None, told={**i.told, **told})


def _node_class(p: Plugin) -> NodeClass:
    names = tuple(str(n) for n in getattr(p.cls, "RETURN_NAMES", p.outputs))
    title, category = str(getattr(p.cls, "TITLE", p.name)), str(getattr(p.cls, "CATEGORY", "other"))
    flags = tuple(f for f in ("deprecated", "experimental") if getattr(p.cls, f.upper(), False))
    made = partial(_make, p)
    made.__doc__ = str(getattr(p.cls, "DESCRIPTION", "") or inspect.getdoc(p.cls) or "")
    return NodeClass(p.name, category, title, p.inputs, p.outputs, made, names, p.ends, None, flags, f"custom_nodes.{p.cls.__module__}")


def _make(p: Plugin, b: Building, n: Given) -> Any:
    """The ops of its slots, all with the same inputs."""
    if callable(getattr(p.cls, "VALIDATE_INPUTS", None)):
        asked = inspect.signature(p.cls.VALIDATE_INPUTS).parameters
        every = any(v.kind is v.VAR_KEYWORD for v in asked.values())
        said = p.cls.VALIDATE_INPUTS(**{k: v for k, v in n.items() if (every or k in asked) and not isinstance(v, Link)})
        if said is not True:
            raise ValueError(str(said))
    given = dict(n) | {name: b.node for name, kind in p.hidden.items() if kind in HIDDEN}
    out: list[Any] = []
    for slot, kind in enumerate(p.outputs):
        made = b.add(p.op_name(slot), part=str(slot) if slot else "", more=given)
        out.append(made if kind in VALUES else Later(made.id))
    if p.ends:
        b.save(b.add(p.op_name(-1), part="ui", more=given), f"{p.name}_ui", kept=False)
    return tuple(out)


def _spec(p: Plugin, slot: int) -> Spec:
    """An op's declaration, made of the class's."""
    ports = tuple(Port(i.name, (VALUES[i.type],), optional=i.optional) for i in p.inputs if i.type in VALUES)
    settings = [
        Setting(i.name, (i.name,), _kind(i), optional=i.optional, default=None if i.optional else REQUIRED)
        for i in p.inputs if i.type in WIDGETS
    ]
    settings += [Setting(n, (n,), "str", optional=True, default=None) for n, kind in p.hidden.items() if kind in HIDDEN]
    order = (*(q.name for q in ports), *(s.name for s in settings))
    output: type[Value] = Data if slot < 0 else VALUES.get(p.outputs[slot], Data)
    return Spec(
        order=order, positional=0, ports=ports, settings=tuple(settings), groups={}, output=output, name=p.op_name(slot), group="plugin",
        doc=inspect.getdoc(p.cls) or "", body=partial(_run, p, slot), store=slot >= 0 and p.outputs[slot] in VALUES,
        fingerprint=partial(_changed, p),
    )


def _kind(i: Input) -> Kind:
    """Names in a list may be numbers too."""
    return KINDS.get(i.type, "str" if isinstance(i.default, str) else "json")


def _changed(p: Plugin, settings: Mapping[str, Any]) -> str:
    """The hash of its files, and what IS_CHANGED says of its settings; NaN means that it is to run again each time."""
    if not callable(getattr(p.cls, "IS_CHANGED", None)):
        return p.files
    asked = {i.name: settings.get(i.name) for i in p.inputs if i.name in settings or not i.optional}
    said = p.cls.IS_CHANGED(**asked)
    fresh = secrets.token_hex() if isinstance(said, float) and math.isnan(said) else repr(said)
    return digest(p.files, fresh)


def _run(p: Plugin, slot: int, **given: Any) -> Value:
    """One slot of the node's result; the node itself runs once for all of them."""
    key = digest(p.name, p.files, canonical({k: v.key if isinstance(v, Value) else v for k, v in given.items()}))
    if slot <= 0 or key not in _calls:
        _calls[key] = _called(p, given)
        while len(_calls) > RECENT:
            _calls.popitem(last=False)
    ui, results = _calls[key]
    if slot < 0:
        return Data(ui)
    kind, each = p.outputs[slot], getattr(p.cls, "OUTPUT_IS_LIST", ())
    return taken_as(kind, results[slot], p.name, many=slot < len(each) and bool(each[slot]))


def _called(p: Plugin, given: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """What the node shows, and its results."""
    kinds = {i.name: i.type for i in p.inputs}
    told = {k: given_as(kinds.get(k, "STRING"), v) for k, v in given.items() if v is not None}
    told |= {name: None for name, kind in p.hidden.items() if kind not in HIDDEN}
    if getattr(p.cls, "INPUT_IS_LIST", False):
        told = {k: [v] for k, v in told.items()}
    out = getattr(p.cls(), p.cls.FUNCTION)(**told)
    ui = out.get("ui", {}) if isinstance(out, Mapping) else {}
    results = tuple(out.get("result", ()) if isinstance(out, Mapping) else out or ())
    if len(results) != len(p.outputs):
        raise ValueError(f"{p.name}: it returned {len(results)} results, its RETURN_TYPES are {len(p.outputs)}")
    return ui, results
