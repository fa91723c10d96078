"""Whether a prompt may be queued: looked at without running anything, and told as ComfyUI tells it."""
from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safelight import comfy, engine
from safelight.comfy.check import Fault, check, classes, failed, links
from safelight.comfy.node import NodeClass, Places
from safelight.op import Op, load_ops
from safelight.server.files import Shelves
from safelight.server.reading import NODES, Most

DETAILED = 100
"""Faulty nodes that are told of."""

WHOLE = ("missing_node_type", "invalid_prompt", "prompt_no_outputs", "dependency_cycle")
"""Faults of a prompt as such, not of one node's inputs."""

TYPES = {
    "missing": "required_input_missing", "wrong_type": "invalid_input_type", "too_small": "value_smaller_than_min",
    "too_big": "value_bigger_than_max", "not_in_list": "value_not_in_list", "bad_link": "bad_linked_input",
}
"""Our engine's kinds of problems in ComfyUI's words."""


@dataclass(frozen=True)
class Rooms:
    """What a prompt may use: names, folders that paths may lead into, and how much of everything."""

    places: Places
    shelves: Shelves
    data: Sequence[Path]
    most: Most


@dataclass(frozen=True)
class Ready:
    """A prompt that can be queued; `errors` tells of outputs left out."""

    ends: Sequence[str]
    errors: Mapping[str, Any]


class Refusal(ValueError):
    """A prompt that cannot be queued: ComfyUI's answer to it."""

    def __init__(self, kind: str, message: str, *, details: str = "", extra: Mapping[str, Any] | None = None, nodes: Any = None) -> None:
        super().__init__(details or message)
        error = {"type": kind, "message": message, "details": details, "extra_info": dict(extra or {})}
        self.answer = {"error": error, "node_errors": nodes or {}}


def workflow(extra: Mapping[str, Any]) -> Any:
    """The editor's graph, of what was sent beside a prompt; None without one."""
    told = extra.get("extra_pnginfo")
    return told.get("workflow") if isinstance(told, dict) else None


def examine(prompt: Any, rooms: Rooms, targets: Sequence[str] | None = None) -> Ready:
    """Refusal when nothing of it can run. Outputs with a fault above them are left out when others have none."""
    if not isinstance(prompt, dict):
        raise Refusal("no_prompt", "No prompt provided", details="expected nodes by id under the key `prompt`")
    if len(prompt) > NODES:
        raise Refusal("invalid_prompt", "The prompt has too many nodes", details=f"{len(prompt)} nodes; expected at most {NODES}")
    if not all(isinstance(e, dict) and isinstance(e.get("class_type"), str) and isinstance(e.get("inputs", {}), dict)
               for e in (prompt.values() if targets else ())):  # of those that are left out too: they are kept
        raise Refusal("invalid_prompt", "A node is none", details="expected class_type, a text, and inputs, an object, of each")
    try:
        ready = _checked(cut(prompt, targets) if targets else prompt, rooms)
    except comfy.PromptError as e:
        return _without(prompt, rooms, e)
    return ready


def _checked(prompt: Mapping[str, Any], rooms: Rooms) -> Ready:
    ops = load_ops()
    found = check(prompt, rooms.places, ops)
    faults = list(_strange(prompt, found.inputs, found.classes, rooms))
    if not any(isinstance(c, NodeClass) for c in found.classes.values()):
        graph = {k: {"class_type": prompt[k]["class_type"], "inputs": given} for k, given in found.inputs.items()}
        faults += [Fault(p.node, p.op, TYPES.get(p.kind, "custom_validation_failed"), p.message, p.input) for p in engine.check(graph, ops)]
    if wrong := rooms.most.refused({"class_type": prompt[k]["class_type"], "inputs": given} for k, given in found.inputs.items()):
        raise Refusal("invalid_prompt", "The prompt asks for more than this server allows", details=wrong)
    if faults:
        raise comfy.PromptError(faults)
    return Ready(found.ends, {})


def _strange(prompt: Mapping[str, Any], inputs: Mapping[str, Any], known: Mapping[str, Any], rooms: Rooms) -> Iterable[Fault]:
    """Pictures that are not there, and paths that lead out of the folders that prompts may use."""
    for key, given in inputs.items():
        kind = known[key]
        found = _pictures(kind, given, rooms.shelves) if isinstance(kind, NodeClass) else _paths(kind, given, rooms)
        yield from (failed(key, str(prompt[key]["class_type"]), f"{name} - {why}") for name, why in found)


def _pictures(kind: NodeClass, given: Mapping[str, Any], shelves: Shelves) -> Iterable[tuple[str, str]]:
    for i in kind.inputs:
        if i.loose and isinstance(name := given.get(i.name), str) and not _there(shelves, name, kind.name):
            yield i.name, f"Invalid image file: {name}"


def _there(shelves: Shelves, name: str, kind: str) -> bool:
    try:
        return shelves.picture(name, "output" if kind == "LoadImageOutput" else "input").is_file()
    except ValueError:
        return False


def _paths(op: Op[..., Any], given: Mapping[str, Any], rooms: Rooms) -> Iterable[tuple[str, str]]:
    for name, value in given.items():
        setting = op.spec.setting.get(name)
        sure = setting is not None and setting.kind == "path"
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and (text or sure) and not _allowed(text, sure, rooms):
                yield name, f"{text} is not in a folder that prompts may use; `safelight serve --data` adds one"


def _allowed(text: str, sure: bool, rooms: Rooms) -> bool:
    """Whether a text is no path, a name below the models folders, or a path in an allowed folder."""
    try:
        path = Path(text).expanduser()
        if not path.exists() and not (sure and (path.is_absolute() or ".." in path.parts)):
            return True
        real = path.resolve()
    except (OSError, RuntimeError, ValueError):  # too long for a name, or a user nobody knows: no path
        return not sure
    models = (place.path for places in rooms.places.models.places.values() for place in places)
    allowed = (rooms.shelves.input.path, rooms.shelves.output.path, *rooms.data, *models)
    return any(real.is_relative_to(root.resolve()) for root in allowed)


def _without(prompt: Mapping[str, Any], rooms: Rooms, e: comfy.PromptError) -> Ready:
    """What can run without the faulty outputs. Refusal when nothing can."""
    first = e.faults[0]
    if first.type in WHOLE or any(not f.node for f in e.faults):
        extra = first.extra if first.type == "missing_node_type" else {}
        raise Refusal(first.type, first.message, details=str(first), extra=extra) from e
    ends = wanted(prompt, rooms.places)
    faulty = {f.node for f in e.faults}
    spoiled = _below(prompt, faulty)
    errors = {node: _error(node, e.faults, sorted(spoiled[node] & set(ends))) for node in list(spoiled)[:DETAILED]}
    good = [end for end in ends if not any(end in below for below in spoiled.values())]
    if not good:
        details = "\n".join(str(f) for f in e.faults[:DETAILED])
        raise Refusal("prompt_outputs_failed_validation", "Prompt outputs failed validation", details=details, nodes=errors) from e
    try:
        ready = _checked(cut(prompt, good), rooms)
    except comfy.PromptError as again:  # a fault that only shows now
        raise Refusal("prompt_outputs_failed_validation", "Prompt outputs failed validation", details=str(again), nodes=errors) from again
    return Ready(ready.ends, errors)


def _error(node: str, faults: Sequence[Fault], ends: Sequence[str]) -> dict[str, Any]:
    mine = [f for f in faults if f.node == node]
    told = [f.json() | {"details": f.details + (f"; {f.advice}" if f.advice else "")} for f in mine]
    return {"errors": told, "dependent_outputs": list(ends), "class_type": mine[0].class_type}


def wanted(prompt: Mapping[str, Any], places: Places) -> list[str]:
    """What the prompt is run for: nodes that save, and ops that nothing takes a value from."""
    known = classes(places)
    taken = {link[0] for entry in prompt.values() for _, link in links(entry.get("inputs", {}))}
    return [k for k, e in prompt.items() if (known[e["class_type"]].ends if e["class_type"] in known else k not in taken)]


def _below(prompt: Mapping[str, Any], nodes: Iterable[str]) -> dict[str, set[str]]:
    """Each node with all that come after it."""
    children: dict[str, list[str]] = {}
    for key, entry in prompt.items():
        for _, (parent, _) in links(entry.get("inputs", {})):
            children.setdefault(parent, []).append(key)
    return {node: _reached([node], children) for node in nodes}


def cut(prompt: Mapping[str, Any], ends: Iterable[str]) -> dict[str, Any]:
    """The part of a prompt that these nodes need, in its order."""
    parents = {k: [p for _, (p, _) in links(e.get("inputs", {}))] for k, e in prompt.items() if isinstance(e, Mapping)}
    needed = _reached([e for e in ends if e in prompt], parents)
    return {k: e for k, e in prompt.items() if k in needed}


def _reached(start: Iterable[str], ways: Mapping[str, Sequence[str]]) -> set[str]:
    seen = set(start)
    todo = list(seen)
    while todo:
        for one in ways.get(todo.pop(), ()):
            if one not in seen:
                seen.add(one)
                todo.append(one)
    return seen


def words(prompt: Mapping[str, Any]) -> str:
    """What a prompt is found by: its classes and all its texts."""
    found: dict[str, None] = {}
    for entry in prompt.values():
        found[str(entry["class_type"])] = None
        for value in entry.get("inputs", {}).values():
            if isinstance(value, str):
                found[value[:2000]] = None
    return "\n".join(found)[:50_000]
