"""Graphs as people and programs write them, checked and put in order.

API form, as ComfyUI has it:  {"3": {"class_type": "curate", "inputs": {"data": ["2", 0], "min_side": 512}}}
Friendly form, for YAML:      {good: {op: curate, data: $pics, min_side: 512}}

Both may be mixed. Text at a port (`model: mini`, `data: pictures/`) stands for the op that loads the port's type from text.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safelight.binding import settle, unknown_input, wrong_value
from safelight.literals import is_coded, parse, plain
from safelight.op import Op, find, source_of
from safelight.spec import InputError, Port, near

Ops = Mapping[str, Op[..., Any]]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a graph. `kind` as in `InputError`; `input` is empty when it is the node as a whole."""

    node: str
    op: str
    input: str
    kind: str
    message: str

    def __str__(self) -> str:
        return f"node {self.node}: {self.message}" if self.node else self.message


class GraphError(ValueError):
    """A graph that cannot run, with all its problems."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(p) for p in problems))


@dataclass(frozen=True)
class Node:
    """An op with canonical literals and the ids its ports are linked to."""

    id: str
    op: Op[..., Any]
    literals: Mapping[str, Any]
    links: Mapping[str, str | tuple[str, ...] | None]

    def parents(self) -> Iterator[str]:
        """Ids of the nodes it takes values from."""
        for link in self.links.values():
            if isinstance(link, str):
                yield link
            elif link:
                yield from link


class _Reader:
    """Reads one graph: nodes so far, nodes that text at ports stands for, and what is wrong."""

    def __init__(self, graph: Mapping[str, Any], ops: Ops) -> None:
        self.graph, self.ops = graph, ops
        self.nodes: dict[str, Node] = {}
        self.problems: list[Problem] = []

    def read(self) -> None:
        for key, entry in self.graph.items():
            self.node(str(key), entry)
        for node in list(self.nodes.values()):
            for port, link in node.links.items():
                for parent in (link,) if isinstance(link, str) else link or ():
                    self.link(node, port, parent)

    def node(self, key: str, entry: Any) -> None:
        if not isinstance(entry, Mapping) or not ("class_type" in entry or "op" in entry):
            self.wrong(key, "", InputError("", "", "no op", "`op: NAME` or `class_type: NAME`", kind="no_such_op"))
            return
        api = "class_type" in entry
        name = str(entry["class_type"] if api else entry["op"])
        try:
            op = find(name, self.ops)
        except InputError as e:
            self.wrong(key, name, e)
            return
        given = dict(entry.get("inputs", {})) if api else {k: v for k, v in entry.items() if k not in ("op", "_meta")}
        for group in op.spec.groups:
            if isinstance(given.get(group), Mapping):
                given |= given.pop(group)
        errors: list[InputError] = []
        literals_given = {k: self.literal(op, k, v, errors) for k, v in given.items()}
        unread = {e.name for e in errors}
        wrong: list[InputError] = []
        inputs, literals = settle(op.spec, literals_given, wrong)
        errors += [e for e in wrong if e.name not in unread]
        links: dict[str, str | tuple[str, ...] | None] = {}
        for port in op.spec.ports:
            try:
                links[port.name] = self.source(key, op, port, inputs[port.name])
            except InputError as e:
                errors.append(e)
        for error in errors:
            self.wrong(key, name, error)
        self.nodes[key] = Node(key, op, literals, links) if errors else self.expanded(Node(key, op, literals, links))

    def expanded(self, node: Node) -> Node:
        """The node without what its settings ask for before it, which become nodes of their own."""
        try:
            literals, steps = node.op.spec.expanded(node.literals)
        except InputError as e:
            self.wrong(node.id, node.op.spec.name, e)
            return node
        links = dict(node.links)
        for i, step in enumerate(steps):
            key = self.free(f"{node.id}.{step.port}.{i}")
            self.node(key, {"class_type": step.op, "inputs": {step.port: [links[step.port], 0], **step.inputs}})
            links[step.port] = key
        return Node(node.id, node.op, literals, links)

    def literal(self, op: Op[..., Any], name: str, given: Any, errors: list[InputError]) -> Any:
        """What a file or a form's text field says, read as the setting's kind: `"0..7"` for seeds, `"clip,style"` for a list of names."""
        setting = op.spec.setting.get(name)
        if setting is None or not isinstance(given, str) or not is_coded(setting):
            return given
        try:
            return parse(op.spec.name, setting, given)
        except InputError as e:
            errors.append(e)
            return setting.default

    def source(self, key: str, op: Op[..., Any], port: Port, given: Any) -> str | tuple[str, ...] | None:
        """The id, or ids, that a port's entry stands for."""
        if given is None:
            return None
        if isinstance(given, Mapping) and set(given) == {"__value__"}:
            given = given["__value__"]
        if not port.many or _is_link(given) or isinstance(given, str):
            one = self.one(f"{key}.{port.name}", op, port, given)
            return (one,) if port.many else one
        if not isinstance(given, Sequence):
            raise wrong_value(op.spec, port.name, given)
        return tuple(self.one(f"{key}.{port.name}.{i}", op, port, g) for i, g in enumerate(given))

    def one(self, key: str, op: Op[..., Any], port: Port, given: Any) -> str:
        if _is_link(given):
            if given[1] != 0:
                raise InputError(op.spec.name, port.name, f"slot {given[1]}", "slot 0: an op makes one value", kind="bad_link")
            return str(given[0])
        if isinstance(given, str) and given.startswith("$"):
            return given[1:]
        by = source_of(port, self.ops)
        if not isinstance(given, str) or by is None:
            raise wrong_value(op.spec, port.name, given)
        key = self.free(key)
        self.node(key, {"op": by.spec.name, by.spec.order[0]: given})
        return key

    def free(self, key: str) -> str:
        """An id that no node of the graph has."""
        return self.free(key + "_") if key in self.graph else key

    def link(self, node: Node, name: str, parent: str) -> None:
        port = node.op.spec.port[name]
        if parent not in self.nodes:
            if parent not in self.graph:
                advice = near(parent, list(self.nodes))
                error = InputError(node.op.spec.name, name, f"node {parent}", "a node of this graph", advice=advice, kind="bad_link")
                self.wrong(node.id, node.op.spec.name, error)
        elif not port.takes(self.nodes[parent].op.spec.output):
            made = self.nodes[parent].op.spec
            got = f"{made.output.type_name} (from {made.name}, node {parent})"
            error = InputError(node.op.spec.name, name, got, port.socket, kind="wrong_type")
            self.wrong(node.id, node.op.spec.name, error)

    def wrong(self, key: str, op: str, e: InputError) -> None:
        self.problems.append(Problem(key, op, e.name, e.kind, str(e)))


def _is_link(given: Any) -> bool:
    return (
        isinstance(given, Sequence) and not isinstance(given, str) and len(given) == 2
        and isinstance(given[0], str) and isinstance(given[1], int) and not isinstance(given[1], bool)
    )


def check(graph: Mapping[str, Any], ops: Ops) -> list[Problem]:
    """All that is wrong with a graph; nothing is run."""
    return _checked(graph, ops).problems


def _checked(graph: Mapping[str, Any], ops: Ops) -> _Reader:
    reader = _Reader(graph, ops)
    reader.read()
    if not reader.problems:
        _, rest = _sorted(reader.nodes, list(reader.nodes))
        for n in rest[:1]:
            name = reader.nodes[n].op.spec.name
            reader.problems.append(Problem(n, name, "", "cycle", f"{name}: its input is made from its own output; cut one link"))
    return reader


def read(graph: Mapping[str, Any], ops: Ops, targets: Sequence[str] | None = None) -> tuple[list[Node], list[str]]:
    """The nodes that the targets need, each after those it takes values from, and the targets.

    Without targets: all nodes that no other takes a value from. GraphError with all problems.
    """
    reader = _checked(graph, ops)
    unknown = [t for t in targets or () if t not in reader.nodes]
    reader.problems += [Problem("", "", t, "bad_link", f"target {t}: no such node; {near(t, list(reader.nodes))}") for t in unknown]
    if reader.problems:
        raise GraphError(reader.problems)
    used = {p for n in reader.nodes.values() for p in n.parents()}
    ends = list(targets) if targets else [n for n in reader.nodes if n not in used]
    order, _ = _sorted(reader.nodes, ends)
    return [reader.nodes[n] for n in order], ends


def _sorted(nodes: Mapping[str, Node], ends: Sequence[str]) -> tuple[list[str], list[str]]:
    """The ends' ancestors, parents first, in the order written where that is free; and what is left over because of a cycle."""
    needed: set[str] = set()
    todo = list(ends)
    while todo:
        n = todo.pop()
        if n not in needed:
            needed.add(n)
            todo += nodes[n].parents()
    waits = {n: set(nodes[n].parents()) for n in nodes if n in needed}
    children: dict[str, list[str]] = {n: [] for n in waits}
    for n, on in waits.items():
        for parent in on:
            children[parent].append(n)
    order = [n for n, on in waits.items() if not on]
    for n in order:  # grows while it is walked
        for child in children[n]:
            waits[child].discard(n)
            if not waits[child]:
                order.append(child)
    return order, [n for n, on in waits.items() if on]


def with_settings(graph: Mapping[str, Any], sets: Sequence[str], ops: Ops) -> dict[str, Any]:
    """The graph with `id.knob=value` or `op.knob=value` put in. InputError naming what there is when nothing or several fit."""
    out = {str(k): dict(v) for k, v in graph.items()}
    for text in sets:
        target, _, value = text.partition("=")
        key, _, knob = target.rpartition(".")
        if not (key and knob and "=" in text):
            raise InputError("set", "", repr(text), "NODE.KNOB=VALUE or OP.KNOB=VALUE")
        fits = [key] if key in out else [n for n, e in out.items() if _op_name(e) == key.replace("-", "_")]
        if len(fits) != 1:
            names = fits or [*out, *dict.fromkeys(_op_name(e) for e in out.values())]
            got = f"{len(fits)} nodes with the op {key}" if fits else f"no node or op {key!r}"
            raise InputError("set", text, got, "one of " + ", ".join(names), advice=near(key, names), kind="bad_link")
        entry = out[fits[0]]
        spec = find(_op_name(entry), ops).spec
        setting = spec.setting.get(knob)
        if setting is None and knob not in spec.port:
            raise unknown_input(spec, knob)
        into = entry
        if "class_type" in entry:
            into = entry["inputs"] = dict(entry.get("inputs", {}))
        into[knob] = value if setting is None else plain(parse(spec.name, setting, value))
    return out


def _op_name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("class_type", entry.get("op", "")))
