"""Runs ops: one by one or as a graph, with events on the way and results by key.

A recipe key hashes the op, its version, all literals, the keys of the inputs and the fingerprint of what is read from outside. What lies in
the store under that key is not made again.
"""
from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

from safelight.binding import arguments, by_name, settle, wrong_value
from safelight.codec import ORIGIN
from safelight.computing import chosen
from safelight.events import Cached, Done, Event, Progress, Started
from safelight.graph import Node, Ops, Problem, read
from safelight.graph import check as check_graph
from safelight.lineage import about, as_input, history, rows, versions
from safelight.literals import plain
from safelight.op import Op, load_ops, source_of
from safelight.spec import InputError, Port, Work
from safelight.store import Input, Made, Missing, Record, Store, current, making, using
from safelight.values import Dataset, Image, Value, canonical, digest

WAIT = 0.05  # seconds between looks at what another process is making

R = TypeVar("R")
Inputs = Mapping[str, Input | tuple[Input, ...] | None]


def check(graph: Mapping[str, Any], ops: Ops | None = None) -> list[Problem]:
    """All that is wrong with a graph; nothing is run."""
    return check_graph(graph, load_ops() if ops is None else ops)


def call(op: Op[..., Any], given: Mapping[str, Any], store: Store) -> Work[Any]:
    """Run one op on values and literals by flat name; text at a port is loaded. The one path of Python calls and of the command line.

    What it uses is pinned while it runs; a caller that goes on using the value holds a pin of its own.
    """
    wrong: list[InputError] = []
    ports, literals = settle(op.spec, given, wrong)
    if wrong:
        raise wrong[0]
    with store.pin():
        return (yield from _called(op, ports, literals, store))


def _called(op: Op[..., Any], ports: Mapping[str, Any], literals: Mapping[str, Any], store: Store) -> Work[Any]:
    values: dict[str, Any] = {}
    literals, steps = op.spec.expanded(literals)
    for port in op.spec.ports:
        values[port.name] = yield from _taken(op, port, ports[port.name], store)
    for step in steps:
        values[step.port] = yield from call(op.registry[step.op], {step.port: values[step.port], **step.inputs}, store)
    made = recipe(op, literals, {name: _each(value, lambda v: as_input(store, v)) for name, value in values.items()}, mark(op, literals))
    record = store.get(made.recipe)
    if record is not None:
        try:
            value = store.load(record)
        except Missing:
            pass
        else:
            yield Cached(op=op.spec.name, key=made.recipe)
            return stamped(value, made.recipe)
    record = yield from _make(op, made, values, literals, store)
    return stamped(store.load(record), made.recipe)


def _each(given: Any, fn: Callable[[Any], Any]) -> Any:
    """The function of what a port has: of the one thing, of each of a tuple, or None."""
    if given is None:
        return None
    return tuple(fn(g) for g in given) if isinstance(given, tuple) else fn(given)


def _taken(op: Op[..., Any], port: Port, given: Any, store: Store) -> Work[Any]:
    """What was given at a port as a value, a tuple of values or None."""
    if given is None:
        return None
    items: Iterable[Any] = given if port.many and not isinstance(given, str | Value) else (given,)
    out: list[Value] = []
    for item in items:
        taken = item
        if isinstance(item, str):
            by = source_of(port, op.registry)
            if by is None:
                raise wrong_value(op.spec, port.name, item)
            taken = yield from call(by, {by.spec.order[0]: item}, store)
        if not isinstance(taken, port.types):
            raise wrong_value(op.spec, port.name, taken)
        out.append(taken)
    return tuple(out) if port.many else out[0]


def mark(op: Op[..., Any], literals: Mapping[str, Any]) -> str:
    """The fingerprint of what the op will read from outside; empty for most ops."""
    return "" if op.spec.fingerprint is None else op.spec.fingerprint(arguments(op.spec, {}, literals))


def recipe(op: Op[..., Any], literals: Mapping[str, Any], inputs: Inputs, outside: str) -> Made:
    """What is to be made, with its recipe key."""
    spec = op.spec
    keys = {name: _each(given, lambda i: i.exact if spec.exact else i.value) for name, given in inputs.items()}
    settings = plain(literals)
    said = str(chosen())  # a result in another precision is another result
    key = digest("recipe", spec.name, spec.tag, canonical(settings), canonical(keys), outside, *([said] if said else []))
    return Made(key, spec.name, spec.tag, settings, inputs, outside, {**versions(), **({"computing": said} if said else {})})


def _make(op: Op[..., Any], made: Made, values: Mapping[str, Any], literals: Mapping[str, Any], store: Store) -> Work[Record]:
    """Run the op, keep its value, return the record. While another process makes the same thing, wait for it and take its result."""
    waited = False
    while True:
        with store.claim(made.recipe) as mine:
            found = store.get(made.recipe) if waited else None
            if found is not None:
                yield Cached(op=op.spec.name, key=made.recipe)
                return found
            if mine:
                told = dataclasses.replace(made, inputs=_told(op, made.inputs, values))
                return (yield from _run(op, arguments(op.spec, values, literals), told, store))
        waited = True
        yield Progress(what=f"{op.spec.name}: another process is making this")
        time.sleep(WAIT)


def _run(op: Op[..., Any], given: Mapping[str, Any], made: Made, store: Store) -> Work[Record]:
    name = op.spec.name
    yield Started(op=name, key=made.recipe)
    start = time.perf_counter()
    value = yield from _driven(op, given, made, store)
    if not isinstance(value, op.spec.output):
        raise TypeError(f"{name}: its body returned a {type(value).__name__}, its signature says {op.spec.output.__name__}")
    seconds = time.perf_counter() - start
    told = about(value) | ({} if op.spec.ports else history(value))
    record = store.put(value, made, seconds=seconds, about=told, disk=op.spec.store)
    yield Done(op=name, key=made.recipe, value=record.value, seconds=seconds)
    return record


def _driven(op: Op[..., Any], given: Mapping[str, Any], made: Made, store: Store) -> Work[Any]:
    """The body's events, with the store in use while the body runs and not while its events are looked at."""
    work = op.work(given)
    answer: Any = None
    try:
        while True:
            with using(store, made):
                event, value = _step(work, answer)
            if event is None:
                return value
            answer = yield event
    except Exception as e:
        e.add_note(f"in op {op.spec.name}")
        raise
    finally:
        work.close()


def _step(work: Work[Any], answer: Any) -> tuple[Event | None, Any]:
    """The next event; or None and what the work returned."""
    try:
        return work.send(answer), None
    except StopIteration as stop:
        return None, stop.value


def _told(op: Op[..., Any], inputs: Inputs, values: Mapping[str, Any]) -> Inputs:
    """The inputs with the rows of datasets, where they leave the world of datasets: a lineage needs them once."""
    if issubclass(op.spec.output, Dataset):
        return inputs
    told: dict[str, Any] = dict(inputs)
    for name, value in values.items():
        if isinstance(value, Dataset):
            told[name] = dataclasses.replace(told[name], about=dict(told[name].about) | {"rows": rows(value)})
    return told


def stamped(value: Value, made: str) -> Value:
    """The value, as an object of its own, with the recipe that made it. In a batch of pictures each picture's `info` says so too, and
    where in the batch it lay: a choice of them still knows."""
    out = copy(value)
    if isinstance(value, Image):
        info = value.info or ({},) * len(value)
        out = dataclasses.replace(value, info=tuple({**row, ORIGIN: [made, i]} for i, row in enumerate(info)))
    object.__setattr__(out, "recipe", made)
    return out


class _Run:
    """One run of a graph: records by node, and the values that are in memory because something still needs them."""

    def __init__(self, nodes: Sequence[Node], targets: Sequence[str], store: Store, again: Collection[str]) -> None:
        self.nodes = {n.id: n for n in nodes}
        self.targets, self.store, self.again = targets, store, again
        self.records: dict[str, Record] = {}
        self.values: dict[str, Value] = {}
        self.marks = {n.id: mark(n.op, n.literals) for n in nodes}

    def work(self) -> Work[dict[str, Value]]:
        last = {p: n.id for n in self.nodes.values() for p in n.parents()}
        over: dict[str, list[str]] = {}  # what nobody takes any more after a node
        for parent, node_id in last.items():
            over.setdefault(node_id, []).append(parent)
        for node in self.nodes.values():
            found = None if node.id in self.again else self.store.get(self.made(node).recipe)
            if found is None:
                yield from self.value(node.id)
            else:
                self.records[node.id] = found
                yield Cached(node.id, node.op.spec.name, found.made.recipe)
            for parent in over.get(node.id, ()):
                if parent not in self.targets:
                    self.values.pop(parent, None)
        for target in self.targets:
            yield from self.value(target)
        return {t: self.stamped(t) for t in self.targets}

    def made(self, node: Node) -> Made:
        inputs = {port: _each(link, lambda p: self.records[p].as_input()) for port, link in node.links.items()}
        return recipe(node.op, node.literals, inputs, self.marks[node.id])

    def value(self, wanted: str) -> Work[None]:
        """Have a node's value in memory: from the store, or made now; and before it what it is made from, however deep."""
        stack = [wanted]
        while stack:
            node = self.nodes[stack[-1]]
            if self.loaded(node.id):
                stack.pop()
            elif missing := [p for p in node.parents() if not self.loaded(p)]:
                stack += missing
            else:
                yield from self.make(node)
                stack.pop()

    def loaded(self, node: str) -> bool:
        if node not in self.values and node in self.records:
            try:
                self.values[node] = self.store.load(self.records[node])
            except Missing:
                return False
        return node in self.values

    def make(self, node: Node) -> Work[None]:
        values = {port: _each(link, self.stamped) for port, link in node.links.items()}
        work = _make(node.op, self.made(node), values, node.literals, self.store)
        self.records[node.id] = yield from _labelled(work, node.id)
        self.values[node.id] = self.store.load(self.records[node.id])

    def stamped(self, node: str) -> Value:
        return stamped(self.values[node], self.records[node].made.recipe)


def _labelled(work: Work[Any], node: str) -> Work[Any]:
    """The same work with events that say which node they are from."""
    answer: Any = None
    try:
        while True:
            event, value = _step(work, answer)
            if event is None:
                return value
            answer = yield event if event.node else dataclasses.replace(event, node=node)
    except Exception as e:
        e.add_note(f"in node {node}")
        raise
    finally:
        work.close()


def run(
    graph: Mapping[str, Any], store: Store | None = None, targets: Sequence[str] | None = None, *, ops: Ops | None = None,
    again: Collection[str] = (),
) -> Work[dict[str, Value]]:
    """Run a graph and return the targets' values by node id; without targets, those of all nodes that nothing takes a value from.

    The nodes in `again` run even when their result is in the store. GraphError with all problems before anything runs. What finished stays
    in the store, whatever happens to the rest.
    """
    nodes, ends = read(graph, load_ops() if ops is None else ops, targets)
    at = current() if store is None else store
    with at.pin():
        return (yield from _Run(nodes, ends, at, again).work())


def call_now(op: Op[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """A Python call: runs to the end, shows progress on a terminal, returns the value."""
    store = current()
    work = call(op, by_name(op.spec, args, kwargs), store)
    if making() is not None:  # an op inside an op: the outer one is what is shown
        return finish(work)
    from safelight.progress import watch

    store.hold()
    return watch(work)


def finish(work: Work[R]) -> R:
    """Run to the end without looking at the events."""
    while True:
        event, value = _step(work, None)
        if event is None:
            result: R = value
            return result
