"""The editor's workflow (UI JSON, versions 0.4 and 1.0) as a prompt (API JSON): what the editor does when one presses Run.

Links go through reroutes, bypassed nodes, primitive nodes, group nodes and subgraphs; what is muted is left out.
"""
from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safelight.comfy.check import Ops
from safelight.comfy.info import object_info
from safelight.comfy.node import WIDGETS, Places

MUTED, BYPASSED = 2, 4
ENTRY, EXIT = -10, -20
"""The nodes of a subgraph that stand for its inputs and its outputs."""
DEEPEST, MOST, LONGEST = 64, 10_000, 20_000
"""How deep subgraphs may lie in each other, how many nodes a prompt may have, and how long a text may be in which choices are made."""
UNSEEN = ("Note", "MarkdownNote", "Reroute", "PrimitiveNode")
"""Types that the editor never sends."""
BUTTONS = ("image_upload", "video_upload", "animated_image_upload")
COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)
INNERMOST = re.compile(r"(?<!\\)\{((?:\\.|[^{}\\])*)(?<!\\)\}", re.DOTALL)

Info = Mapping[str, Mapping[str, Any]]
Json = Mapping[str, Any]
Choose = Callable[[Sequence[str]], str]


def is_workflow(graph: Mapping[str, Any]) -> bool:
    """Whether it is an editor's workflow and no prompt."""
    return isinstance(graph.get("nodes"), list) and "links" in graph


def convert(workflow: Mapping[str, Any], places: Places, ops: Ops | None = None, *, choose: Choose = random.choice) -> dict[str, Any]:
    """The prompt of a workflow, with titles under `_meta`. `choose` picks one of `{a|b}` in a text, as the editor does by chance.

    ValueError naming the node when a link, a subgraph or a group leads nowhere. Classes that are not here are kept as they are.
    """
    return converted(workflow, object_info(places, ops), choose)


def converted(workflow: Mapping[str, Any], info: Info, choose: Choose = random.choice) -> dict[str, Any]:
    """The same by what `/object_info` says."""
    if not is_workflow(workflow):
        raise ValueError("convert: got no workflow of the editor's, expected `nodes` and `links`; a prompt (API form) needs no conversion")
    out: dict[str, Any] = {}
    try:
        subgraphs = {str(s["id"]): s for s in (workflow.get("definitions") or {}).get("subgraphs") or ()}
        groups = (workflow.get("extra") or {}).get("groupNodes") or {}
        for level, node in _walk(_Level.of(workflow, subgraphs, groups, info)):
            out[level.prefix + _id(node)] = _entry(level, node, info, choose)
            if len(out) > MOST:
                raise ValueError(f"convert: got more than {MOST} nodes, subgraphs opened; expected fewer")
        for entry in out.values():
            entry["inputs"] = {k: v for k, v in entry["inputs"].items() if not _is_link(v) or v[0] in out}
    except (KeyError, IndexError, TypeError, AttributeError) as e:
        raise ValueError(f"convert: no workflow as the editor saves it: {type(e).__name__}: {e}") from e
    return out


@dataclass(frozen=True)
class _Link:
    origin: str
    slot: int
    target: str
    at: int


@dataclass
class _Level:
    """The graph itself, or the inside of a subgraph's or group's instance: `outer` and `instance` say where it stands."""

    nodes: Mapping[str, Json]
    links: Mapping[Any, _Link]
    known: tuple[Mapping[str, Json], Mapping[str, Json], Info]
    prefix: str = ""
    outer: _Level | None = None
    instance: Json = field(default_factory=dict)
    shape: Json = field(default_factory=dict)
    depth: int = 0
    inner: dict[str, _Level | None] = field(default_factory=dict)

    @staticmethod
    def of(graph: Json, subgraphs: Mapping[str, Json], groups: Mapping[str, Json], info: Info) -> _Level:
        return _Level({_id(n): n for n in graph["nodes"]}, _links(graph["links"]), (subgraphs, groups, info))

    def inside(self, node: Json) -> _Level | None:
        """The level in a node that is an instance, or None."""
        if _id(node) not in self.inner:
            self.inner[_id(node)] = self._opened(node)
        return self.inner[_id(node)]

    def _opened(self, node: Json) -> _Level | None:
        subgraphs, groups, info = self.known
        kind = str(node["type"])
        shape = subgraphs.get(kind)
        group = next((groups[kind[len(mark):]] for mark in ("workflow>", "workflow/") if kind[len(mark):] in groups), None)
        if shape is None and group is None:
            return None
        if self.depth >= DEEPEST:
            raise ValueError(f"convert: node {self.prefix}{node['id']}: subgraphs more than {DEEPEST} deep, or one inside itself")
        if shape is None:
            from safelight.comfy.groups import as_subgraph

            node, shape = as_subgraph(node, group or {}, info)
        made = _Level.of(shape, *self.known)
        made.prefix, made.outer, made.instance, made.shape = f"{self.prefix}{node['id']}:", self, node, shape
        made.depth = self.depth + 1
        return made


def _id(node: Json) -> str:
    return str(node["id"])


def _links(given: Any) -> dict[Any, _Link]:
    out = {}
    for link in given or ():
        if link is None:
            continue
        if isinstance(link, Mapping):
            parts = [link[k] for k in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
        else:
            parts = link[:5]
        out[parts[0]] = _Link(str(parts[1]), int(parts[2]), str(parts[3]), int(parts[4]))
    return out


def _walk(level: _Level) -> Iterator[tuple[_Level, Json]]:
    """Every node that is sent, with its level."""
    for node in level.nodes.values():
        if node.get("mode") in (MUTED, BYPASSED) or node["type"] in UNSEEN:
            continue
        inner = level.inside(node)
        if inner is None:
            yield level, node
        else:
            yield from _walk(inner)


def _entry(level: _Level, node: Json, info: Info, choose: Choose) -> dict[str, Any]:
    kind = str(node["type"])
    known = info.get(kind)
    inputs = {name: _serial(value, spec, choose) for name, value, spec in _values(node, known)}
    for given in node.get("inputs") or ():
        found = _source(level, given.get("link"), f"{level.prefix}{node['id']}")
        if isinstance(found, _At):
            inputs[given["name"]] = [found.node, found.slot]
        elif found is not None:
            inputs[given["name"]] = _serial(found[0], {}, choose)
    title = node.get("title") or (known or {}).get("display_name") or kind
    return {"inputs": inputs, "class_type": kind, "_meta": {"title": title}}


@dataclass(frozen=True)
class _At:
    """A slot of a node that is sent."""

    node: str
    slot: int


_Found = _At | tuple[Any] | None
"""Where a link comes from: a slot; a value, as a tuple of one; or nothing."""


def _source(level: _Level, link: Any, asker: str) -> _Found:
    seen = set()
    while link is not None:
        if (id(level.instance), link) in seen:
            raise ValueError(f"convert: node {asker}: a link that leads round in a circle")
        seen.add((id(level.instance), link))
        found = level.links.get(link)
        if found is None:
            raise ValueError(f"convert: node {asker}: link {link} is not among the workflow's links")
        step = _entered(level, found) if found.origin == str(ENTRY) else _through(level, found)
        if not isinstance(step, _Step):
            return step
        level, link = step.level, step.link
    return None


@dataclass(frozen=True)
class _Step:
    """The link to look at next."""

    level: _Level
    link: Any


def _entered(level: _Level, link: _Link) -> _Step | _Found:
    """From a subgraph's input out to its instance: to what is linked there, or to the instance's own widget."""
    assert level.outer is not None
    name = level.shape["inputs"][link.slot]["name"]
    given = next((i for i in level.instance.get("inputs") or () if i["name"] == name), None)
    if given is not None and given.get("link") is not None:
        return _Step(level.outer, given["link"])
    values = dict(_promoted(level.shape, level.instance))
    return (values[name],) if name in values else None


def _promoted(shape: Json, instance: Json) -> Iterator[tuple[str, Any]]:
    """The widgets that an instance of a subgraph has: its inputs that lead to widgets, in order."""
    links, values = _links(shape["links"]), instance.get("widgets_values")
    if isinstance(values, Mapping):
        yield from values.items()
        return
    nodes = {_id(n): n for n in shape["nodes"]}
    named = [i["name"] for i in shape.get("inputs") or () if any(_is_widget(nodes, links[k]) for k in i.get("linkIds") or () if k in links)]
    yield from zip(named, values or (), strict=False)


def _is_widget(nodes: Mapping[str, Json], link: _Link) -> bool:
    inputs = nodes.get(link.target, {}).get("inputs") or ()
    return link.at < len(inputs) and bool(inputs[link.at].get("widget"))


def _through(level: _Level, link: _Link) -> _Step | _Found:
    """What a node at the other end of a link hands on."""
    node = level.nodes.get(link.origin)
    if node is None or node.get("mode") == MUTED:
        return None
    inputs = node.get("inputs") or ()
    if node.get("mode") == BYPASSED:
        at = _bypass(node, link.slot)
        return None if at is None else _Step(level, inputs[at].get("link"))
    if node["type"] == "Reroute":
        return _Step(level, inputs[0].get("link") if inputs else None)
    if node["type"] == "PrimitiveNode":
        values = node.get("widgets_values")
        return (values[0],) if values else None
    inner = level.inside(node)
    if inner is None:
        return _At(level.prefix + link.origin, link.slot)
    key = next((k for k, v in inner.links.items() if v.target == str(EXIT) and v.at == link.slot), None)
    return None if key is None else _Step(inner, key)


def _bypass(node: Json, slot: int) -> int | None:
    """The input that takes an output's place: the one at its own place, or the first of its type."""
    kinds = [str(i.get("type")) for i in node.get("inputs") or ()]
    outputs = node.get("outputs") or ()
    kind = str(outputs[slot].get("type")) if slot < len(outputs) else "*"
    if kind == "*":
        return slot if slot < len(kinds) else 0 if kinds else None
    if slot < len(kinds) and kinds[slot] == kind:
        return slot
    return next((i for i, k in enumerate(kinds) if k == kind), next((i for i, k in enumerate(kinds) if k == "*"), None))


def _values(node: Json, known: Json | None) -> Iterator[tuple[str, Any, Json]]:
    """Widgets with their values, by `/object_info`; those of an unknown class as its inputs name them."""
    given = node.get("widgets_values")
    if isinstance(given, Mapping):
        for name, value in given.items():
            if known is None or name in dict(_inputs(known)):
                yield name, value, {}
        return
    at, said = list(given or ()), node.get("widgets_values_named")  # names hold when a class has got more widgets since
    if known is None:
        named = [i["widget"]["name"] for i in node.get("inputs") or () if i.get("widget")]
        yield from ((name, value, {}) for name, value in zip(named, at, strict=False))
        return
    kept = list(_kept(known))
    if len(at) == len(kept):  # files of older editors have values for sockets too
        at = [value for value, keep in zip(at, kept, strict=True) if keep]
    for name, spec, extra in widget_inputs(known):
        options = spec[1] if len(spec) > 1 else {}
        value = at.pop(0) if at else _default(spec)
        yield name, said.get(name, value) if isinstance(said, Mapping) else value, options
        del at[:extra]


def _kept(known: Json) -> Iterator[bool]:
    """For each place of an older file's `widgets_values`, whether it is a widget's still."""
    for name, spec in _inputs(known):
        if is_widget(spec) or forced(spec):
            yield not forced(spec)
            yield from [True] * _followed(name, spec)


def _inputs(known: Json) -> Iterator[tuple[str, Sequence[Any]]]:
    for group in ("required", "optional"):
        members = known["input"].get(group) or {}
        order = (known.get("input_order") or {}).get(group) or members
        yield from ((name, members[name]) for name in order)


def widget_inputs(known: Json) -> list[tuple[str, Sequence[Any], int]]:
    """A class's widgets: name, what `/object_info` says, and how many further places in `widgets_values` come after it."""
    return [(name, spec, _followed(name, spec)) for name, spec in _inputs(known) if is_widget(spec)]


def is_widget(spec: Sequence[Any]) -> bool:
    """Whether an input is a widget in the editor."""
    return (isinstance(spec[0], list) or spec[0] in WIDGETS) and not forced(spec)


def forced(spec: Sequence[Any]) -> bool:
    """Whether an input is a socket although its type could be a widget."""
    return bool(len(spec) > 1 and spec[1].get("forceInput")) and (isinstance(spec[0], list) or spec[0] in WIDGETS)


def _followed(name: str, spec: Sequence[Any]) -> int:
    """A seed has the widget that changes it after a run; a list with that one more, a filter; a picture's name its upload button."""
    options = spec[1] if len(spec) > 1 else {}
    listed = isinstance(spec[0], list) or spec[0] == "COMBO"
    if options.get("control_after_generate", name in ("seed", "noise_seed") and spec[0] == "INT"):
        return 2 if listed else 1
    return int(listed and any(options.get(b) for b in BUTTONS))


def _default(spec: Sequence[Any]) -> Any:
    options = spec[1] if len(spec) > 1 else {}
    if "default" in options:
        return options["default"]
    names = spec[0] if isinstance(spec[0], list) else options.get("options")
    if names:
        return names[0]
    return {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False}.get(str(spec[0]))


def _serial(value: Any, options: Json, choose: Choose) -> Any:
    """A widget's value as a prompt has it: lists wrapped, so that they are not taken for links; a choice in a text made."""
    if isinstance(value, list):
        return {"__value__": value}
    if isinstance(value, str) and options.get("dynamicPrompts") and len(value) <= LONGEST:
        return opened(value, choose)
    return value


def opened(text: str, choose: Choose = random.choice) -> str:
    """A prompt without its comments and with one of each `{a|b}`; a backslash before a brace or bar keeps it. What is not closed ends with
    the text."""
    text = COMMENT.sub("", text)
    while True:
        while found := INNERMOST.search(text):
            chosen = choose(re.split(r"(?<!\\)\|", found[1]))
            text = text[: found.start()] + chosen.replace("\\|", "|") + text[found.end() :]
        if not re.search(r"(?<!\\)\{", text):
            return re.sub(r"\\([{}])", r"\1", text)
        text += "}"


def _is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
