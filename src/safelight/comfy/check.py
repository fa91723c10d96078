"""Whether a prompt can run, told in ComfyUI's terms: the same types of error, messages and order of looking."""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safelight.comfy.node import NODES, Input, NodeClass, Places
from safelight.op import Op
from safelight.spec import Spec, near

SHOWN = 20
"""A longer list of names is not shown in an error."""

NO_LINK = "Bad linked input, must be a length-2 list of [node_id, slot_index]"

WHOLE = ("MODEL", "CLIP", "VAE")
"""The slots of an op that makes a model: all are the model, which has all its parts."""

Ops = Mapping[str, Op[..., Any]]
Known = NodeClass | Op[..., Any]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a node: ComfyUI's `type`, `message` and `details`, and what it adds in `extra`."""

    node: str
    class_type: str
    type: str
    message: str
    details: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    advice: str = ""

    def __str__(self) -> str:
        where = f"node {self.node} ({self.class_type}): " if self.node else ""
        return where + ": ".join(w for w in (self.message, self.details) if w) + (f"; {self.advice}" if self.advice else "")

    def json(self) -> dict[str, Any]:
        """As in the answer of POST /prompt."""
        return {"type": self.type, "message": self.message, "details": self.details, "extra_info": dict(self.extra)}


class PromptError(ValueError):
    """A prompt that cannot run, with all its faults."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(f) for f in faults))


@dataclass(frozen=True)
class Checked:
    """A prompt that can run: for each node that its ends need, in an order in which parents come first, the inputs as they are taken (links
    as (id, slot)); and the ends."""

    classes: Mapping[str, Known]
    inputs: Mapping[str, Mapping[str, Any]]
    ends: tuple[str, ...]


def check(prompt: Mapping[str, Any], places: Places, ops: Ops) -> Checked:
    """PromptError when it cannot run. Nodes that no end needs are not looked at, but their classes must be known."""
    classes = _classes(prompt, places, ops)
    ends = tuple(i for i, c in classes.items() if _ends(i, c, prompt))
    if not ends:
        raise PromptError([Fault("", "", "prompt_no_outputs", "Prompt has no outputs", "", advice="add a SaveImage")])
    order = _order(prompt, classes, ends)
    faults: list[Fault] = []
    taken = {i: _taken(i, prompt[i].get("inputs", {}), classes, places, faults) for i in order}
    if faults:
        raise PromptError(faults)
    return Checked(classes, taken, ends)


def classes(places: Places) -> Mapping[str, NodeClass]:
    """ComfyUI's node classes that there are here, and those of other people that `places` allows. ValueError when one is refused."""
    if places.nodes is None:
        return NODES
    from safelight.comfy.plugins import plugin_classes

    return {**plugin_classes(places.nodes), **NODES}


def _classes(prompt: Mapping[str, Any], places: Places, ops: Ops) -> dict[str, Known]:
    found: dict[str, Known] = {}
    faults = []
    nodes = classes(places)
    for key, entry in prompt.items():
        name = entry.get("class_type") if isinstance(entry, Mapping) else None
        known = nodes.get(str(name)) or ops.get(str(name))
        if name is None or not isinstance(entry.get("inputs", {}), Mapping):
            faults.append(Fault(key, "", "invalid_prompt", "Cannot execute because a node is missing the class_type property."))
        elif known is None:
            title = (entry.get("_meta") or {}).get("title", name)
            extra = {"node_id": key, "class_type": name, "node_title": title}
            advice = near(str(name), [*nodes, *ops]) or "docs/nodes.md lists what there is"
            faults.append(Fault(key, str(name), "missing_node_type", f"Node {name!r} not found", "no such node class here", extra, advice))
        else:
            found[str(key)] = known
    if faults:
        raise PromptError(faults)
    return found


def _ends(key: str, known: Known, prompt: Mapping[str, Any]) -> bool:
    """Whether a prompt is run for the node: it saves, or it is an op of ours that nothing takes a value from."""
    if isinstance(known, NodeClass):
        return known.ends
    return not any(link[0] == key for entry in prompt.values() for _, link in links(entry.get("inputs", {})))


def op_outputs(spec: Spec) -> tuple[str, ...]:
    """The types of the slots of an op's node."""
    return WHOLE if spec.output.type_name == "MODEL" else (spec.output.type_name,)


def links(inputs: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, int]]]:
    """The links among a node's inputs, by name; lists of links opened (our own ops take such)."""
    for name, given in inputs.items():
        for one in [given] if is_link(given) else given if isinstance(given, list) else ():
            if is_link(one):
                yield name, (str(one[0]), one[1])


def is_link(given: Any) -> bool:
    """Whether it is [id, slot]."""
    if not isinstance(given, list) or len(given) != 2:
        return False
    return isinstance(given[0], str) and isinstance(given[1], int) and not isinstance(given[1], bool)


def _order(prompt: Mapping[str, Any], classes: Mapping[str, Any], ends: Sequence[str]) -> list[str]:
    """The ends' ancestors, parents first. PromptError for a link to nowhere or a cycle."""
    done: list[str] = []
    state: dict[str, bool] = {}  # False: its parents are under way
    stack = list(reversed(ends))
    while stack:
        key = stack[-1]
        if key in state:
            stack.pop()
            if not state[key]:
                state[key] = True
                done.append(key)
            continue
        state[key] = False
        for name, (parent, _) in links(prompt[key].get("inputs", {})):
            if parent not in classes:
                kind, message = "bad_linked_input", "Link to a node that is not there"
            elif state.get(parent) is False:
                kind, message = "dependency_cycle", "Dependency cycle detected"
            else:
                stack += [parent] if parent not in state else []
                continue
            raise PromptError([Fault(key, _name(classes[key]), kind, message, f"{name}, {parent!r}", {"input_name": name})])
    return done


def _name(known: Known) -> str:
    return known.name if isinstance(known, NodeClass) else known.spec.name


def failed(key: str, class_type: str, why: str) -> Fault:
    """The fault of a node that refuses its inputs."""
    return Fault(key, class_type, "custom_validation_failed", "Custom validation failed for node", why)


def _taken(key: str, given: Mapping[str, Any], classes: Mapping[str, Known], places: Places, faults: list[Fault]) -> Mapping[str, Any]:
    """The inputs of one node, coerced as ComfyUI does; what is wrong goes to `faults`. Inputs that it does not have are left out."""
    known = classes[key]
    if not isinstance(known, NodeClass):
        return _of_op(known.spec, given)
    out: dict[str, Any] = {}
    for i in known.inputs:
        try:
            if i.name in given:
                out[i.name] = _value(i, given[i.name], classes, places)
            elif is_link(given.get(i.old)):
                out[i.name] = tuple(given[i.old])
            elif i.newer:
                out[i.name] = i.default
            elif not i.optional:
                raise _Wrong("required_input_missing", "Required input is missing", i.name)
        except _Wrong as e:
            extra = {"input_name": i.name} | e.extra
            faults.append(Fault(key, known.name, e.type, e.message, e.details, extra, e.advice))
    return out


def _of_op(spec: Spec, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of an op, as the editor or a file has them; the engine checks the rest. An empty text means nothing where nothing may be
    given; `images`, `images_2` and so on are one list."""
    out = {k: None if v == "" and k in spec.setting and spec.setting[k].optional else v for k, v in given.items()}
    for port in (p for p in spec.ports if p.many):
        more = [k for k in out if k.startswith(f"{port.name}_") and k.removeprefix(f"{port.name}_").isdecimal()]
        if more:
            every = [out.pop(k) for k in [port.name, *sorted(more)] if k in out]
            out[port.name] = [link for one in every for link in ([one] if is_link(one) else one or [])]
    return out


class _Wrong(Exception):
    """What is wrong with an input."""

    def __init__(self, type: str, message: str, details: str, *, advice: str = "", **extra: Any) -> None:
        super().__init__(message)
        self.type, self.message, self.details, self.advice, self.extra = type, message, details, advice, extra


def _value(i: Input, given: Any, classes: Mapping[str, Known], places: Places) -> Any:
    """A literal, or a link as (id, slot)."""
    if isinstance(given, list):
        return _link(i, given, classes)
    if not i.widget:
        raise _Wrong("bad_linked_input", NO_LINK, i.name, received_value=given)
    try:
        value = _literal(i, given)
    except (ValueError, TypeError) as e:
        raise _Wrong("invalid_input_type", f"Failed to convert an input value to a {i.type} value", f"{i.name}, {given}, {e}") from e
    _ranged(i, value, places)
    return value


def _literal(i: Input, given: Any) -> Any:
    if isinstance(given, Mapping) and set(given) == {"__value__"}:
        given = given["__value__"]
    kinds: Mapping[str, Any] = {"INT": int, "FLOAT": float, "STRING": str, "BOOLEAN": bool}
    return kinds[i.type](given) if i.type in kinds else given


def _link(i: Input, link: list[Any], classes: Mapping[str, Known]) -> tuple[str, int]:
    if not is_link(link):
        raise _Wrong("bad_linked_input", NO_LINK, i.name, received_value=link)
    parent = classes[link[0]]
    made = parent.outputs if isinstance(parent, NodeClass) else op_outputs(parent.spec)
    got = made[link[1]] if 0 <= link[1] < len(made) else f"no slot {link[1]}"
    ours = not isinstance(parent, NodeClass) and got == "MODEL" and i.type in ("CLIP", "VAE")  # our models have all their parts
    if not _fits(i.type, got) and not ours:
        details = f"{i.name}, received_type({got}) mismatch input_type({i.type})"
        raise _Wrong("return_type_mismatch", "Return type mismatch between linked nodes", details, received_type=got, linked_node=link)
    return link[0], link[1]


def _fits(wanted: str, got: str) -> bool:
    """Types match when they are equal or share one of several; `*` is any."""
    a, b = set(wanted.split(",")), set(got.split(","))
    return bool(a & b) or "*" in a | b or (wanted, got) == ("COMBO", "STRING")


def _ranged(i: Input, value: Any, places: Places) -> None:
    if i.loose:
        return
    if i.low is not None and value < i.low:
        raise _Wrong("value_smaller_than_min", f"Value {value} smaller than min of {i.low}", i.name, received_value=value)
    if i.high is not None and value > i.high:
        raise _Wrong("value_bigger_than_max", f"Value {value} bigger than max of {i.high}", i.name, received_value=value)
    if i.options is None:
        return
    names = list(i.options(places))
    if value not in names:
        shown = f"{i.name}: {value!r} not in " + (str(names) if len(names) <= SHOWN else f"(list of length {len(names)})")
        raise _Wrong("value_not_in_list", "Value not in list", shown, advice=near(str(value), names), received_value=value)
