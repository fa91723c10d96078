"""ComfyUI's prompts (API form) as graphs of ours: checked as ComfyUI checks them, run by our engine."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import safelight.comfy.nodes  # noqa: F401  fills NODES
from safelight.comfy.building import Building, Clip, Difference, Link, Saved, as_port, as_socket
from safelight.comfy.check import Checked, Ops, PromptError, check, failed, links, op_outputs
from safelight.comfy.data import Unsaid
from safelight.comfy.models import models
from safelight.comfy.node import NODES, NodeClass, Places
from safelight.op import load_ops
from safelight.spec import InputError, near


@dataclass(frozen=True)
class Translation:
    """A graph of ours in API form, and for each of its nodes the ComfyUI node it was made for. `saved`: what the prompt is run for, in its
    order."""

    graph: Mapping[str, Any]
    origin: Mapping[str, str]
    saved: Sequence[Saved]
    first: str = ""
    """A node that has to run before the rest of the prompt can be translated: what it says is an input of others."""

    @property
    def targets(self) -> list[str]:
        """Our nodes whose values are wanted."""
        return [self.first] if self.first else list(dict.fromkeys(s.value.id for s in self.saved))


def unwrapped(graph: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes: of a file that holds the body of a POST /prompt, what is under `prompt`."""
    inner = graph.get("prompt")
    return dict(inner if isinstance(inner, Mapping) and is_prompt(inner) else graph)


def is_prompt(graph: Mapping[str, Any]) -> bool:
    """Whether it has a node class of ComfyUI's: then it is a prompt, however many ops of ours are among its nodes."""
    return any(isinstance(e, Mapping) and e.get("class_type") in NODES for e in graph.values())


def translate(
    prompt: Mapping[str, Any], places: Places, ops: Ops | None = None, said: Mapping[str, Any] | None = None
) -> Translation:
    """PromptError with all its faults when it cannot run. Nothing is loaded; files are looked for by name, some headers are read. `said` is
    what those nodes said, by id, that had to run first."""
    known = load_ops() if ops is None else ops
    found = check(prompt, places, known)
    b = Building(places, models(found, places), against(found), said=said or {})
    made: dict[str, tuple[Any, ...]] = {}
    for key, given in found.inputs.items():
        b.node = key
        try:
            made[key] = _made(b, key, found, given, made)
        except Unsaid as e:
            return Translation(b.nodes, b.origin, (), e.args[0])
    return Translation(b.nodes, b.origin, tuple(b.saved))


def _made(b: Building, key: str, found: Checked, given: Mapping[str, Any], made: Mapping[str, tuple[Any, ...]]) -> tuple[Any, ...]:
    known = found.classes[key]
    if not isinstance(known, NodeClass):
        made_here = _op(b, key, found, given, made)
        return tuple(Clip(made_here) if kind == "CLIP" else made_here for kind in op_outputs(known.spec))
    b.class_type = known.name
    kinds = {i.name: i.type for i in known.inputs}
    try:
        opened = {name: as_socket(kinds[name], b.literal(made[v[0]][v[1]])) if isinstance(v, tuple) else v for name, v in given.items()}
        if any(isinstance(v, Difference) for v in opened.values()) and not known.name.endswith(("MergeAdd", "LoraSave")):
            raise ValueError("got the difference of two models, which can only be added to a third; link a MergeAdd node in between")
        out = known.make(b, opened)
    except ValueError as e:
        raise PromptError([failed(key, known.name, str(e))]) from e
    slots = out if isinstance(out, tuple) else (out,)
    sampled = next((v.sampled for v in opened.values() if isinstance(v, Link) and v.sampled), ())
    models = [isinstance(o, Link) and kind == "MODEL" for o, kind in zip(slots, known.outputs, strict=False)]
    return tuple(replace(o, sampled=o.sampled or sampled) if is_model else o for o, is_model in zip(slots, models, strict=False))


def _op(b: Building, key: str, found: Checked, given: Mapping[str, Any], made: Mapping[str, tuple[Any, ...]]) -> Link:
    """A node of our own among ComfyUI's: it stays, its links lead to what its parents became."""
    known = found.classes[key]
    assert not isinstance(known, NodeClass)
    b.class_type = known.spec.name
    linked = dict(given)
    try:
        for name, (parent, slot) in links(given):
            linked[name] = _replaced(linked[name], [parent, slot], as_port(b.literal(made[parent][slot])))
    except (ValueError, IndexError) as e:
        raise PromptError([failed(key, b.class_type, str(e))]) from e
    link = b.add(known.spec.name, **linked)
    if key in found.ends:
        b.save(link, key)
    return link


def _replaced(given: Any, link: list[Any], what: Any) -> Any:
    return what if given == link else [what if item == link else item for item in given]


def against(found: Checked) -> frozenset[str]:
    """The nodes whose conditions only ever reach inputs named `negative`: an SDXL refiner is told of them."""
    wanted, unwanted = set[str](), set[str]()
    for key in reversed(list(found.inputs)):  # children first
        for name, given in found.inputs[key].items():
            if not isinstance(given, tuple):
                continue
            if name == "negative":
                unwanted.add(given[0])
            elif name == "positive" or key in wanted:
                wanted.add(given[0])
            elif key in unwanted:
                unwanted.add(given[0])
    return frozenset(unwanted - wanted)


def with_settings(prompt: Mapping[str, Any], sets: Sequence[str]) -> dict[str, Any]:
    """The prompt with `id.input=value` or `class.input=value` put in. InputError naming what there is when nothing or several fit."""
    out = {str(k): {**e, "inputs": dict(e.get("inputs", {}))} for k, e in prompt.items()}
    for told in sets:
        target, equals, value = told.partition("=")
        key, _, name = target.rpartition(".")
        if not (key and name and equals):
            raise InputError("set", "", repr(told), "NODE.INPUT=VALUE or CLASS.INPUT=VALUE")
        fits = [key] if key in out else [k for k, e in out.items() if e.get("class_type") == key]
        if len(fits) != 1:
            names = fits or [*out, *dict.fromkeys(str(e.get("class_type")) for e in out.values())]
            got = f"{len(fits)} nodes of the class {key}" if fits else f"no node or class {key!r}"
            raise InputError("set", told, got, "one of " + ", ".join(names), advice=near(key, names), kind="bad_link")
        out[fits[0]]["inputs"][name] = value
    return out
