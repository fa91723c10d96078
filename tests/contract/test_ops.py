"""What holds for every op there is: its words, its limits, and that all surfaces say the same thing with it."""
from __future__ import annotations

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import yaml

from safelight import engine
from safelight.binding import by_name, settle
from safelight.cli.op_command import _arguments, _given, op_command
from safelight.graph import read
from safelight.literals import plain
from safelight.op import InputError, Op, load_ops
from safelight.schema import widget_text
from safelight.spec import Setting, Spec
from safelight.store import Input
from safelight.values import VALUES, Dataset

OPS = sorted(load_ops().items())


@pytest.fixture(params=[o for _, o in OPS], ids=[n for n, _ in OPS])
def op(request: pytest.FixtureRequest) -> Op[..., Any]:
    found: Op[..., Any] = request.param
    return found


def test_it_has_words(op: Op[..., Any]) -> None:
    assert op.spec.summary.endswith(".") and len(op.spec.summary) < 160
    assert [s.name for s in op.spec.settings if not s.help] == [], "every setting says what it is"
    known = {*op.spec.port, *op.spec.setting, *op.spec.groups}
    assert set(op.spec.doc.partition("Args:")[2] and _documented(op)) <= known, "only parameters are described"


def _documented(op: Op[..., Any]) -> set[str]:
    from safelight.signature import argument_helps

    return set(argument_helps(op.spec.doc))


def test_it_has_eight_parameters_at_most(op: Op[..., Any]) -> None:
    parameters = inspect.signature(op.spec.body).parameters.values()
    assert len(parameters) <= 8
    assert sum(p.kind is not p.KEYWORD_ONLY for p in parameters) <= 2, "keyword-only after the second"


def test_it_has_a_version(op: Op[..., Any]) -> None:
    assert op.spec.tag.startswith("s") if op.spec.version is None else op.spec.version >= 1


def test_its_types_are_registered(op: Op[..., Any]) -> None:
    assert op.spec.output in VALUES.values()
    assert all(t in VALUES.values() for p in op.spec.ports for t in p.types)


def test_its_name_is_no_module(op: Op[..., Any]) -> None:
    """`safelight.NAME` is the op; a module of that name would take its place once imported."""
    assert importlib.util.find_spec(f"safelight.{op.spec.name}") is None


def test_what_carries_rows_along_is_keyed_by_them(op: Op[..., Any]) -> None:
    """What was dropped is no part of a dataset's key, so an op from dataset to dataset must ask for more than the key."""
    takes = [t for p in op.spec.ports for t in p.types]
    assert op.spec.exact or not (op.spec.output is Dataset and Dataset in takes)


def test_a_loader_takes_text_first(op: Op[..., Any]) -> None:
    if not op.spec.loads:
        return
    first = op.spec.setting[op.spec.order[0]]
    assert first.kind in ("str", "path") and not first.many and not op.spec.ports
    assert [s.name for s in op.spec.settings if s.required and s is not first] == []
    assert [n for n, o in OPS if o.spec.loads and o.spec.output is op.spec.output] == [op.spec.name], "one loader a type"


def test_its_schema_is_one(op: Op[..., Any]) -> None:
    schema = op.spec.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    given = {p.name: ["1", 0] for p in op.spec.ports} | {s.name: plain(sample(s)) for s in op.spec.settings}
    jsonschema.validate(given, schema)
    jsonschema.validate({k: v for k, v in given.items() if k in schema["required"]}, schema)
    defaults = {s.name: plain(s.default) for s in op.spec.settings if not s.required}
    jsonschema.validate(given | defaults, schema)


def test_its_node_is_one(op: Op[..., Any]) -> None:
    info = json.loads(json.dumps(op.spec.object_info()))
    inputs = info["input"]["required"] | info["input"]["optional"]
    assert set(inputs) == {*op.spec.port, *op.spec.setting}
    for name, (kind, *options) in inputs.items():
        if name in op.spec.setting:
            assert kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO") and isinstance(options[0], dict)
            if kind == "COMBO":
                assert options[0].get("default", options[0]["options"][0]) in options[0]["options"]
    assert info["name"] == op.spec.name and info["output"] == [op.spec.output.type_name]


def test_its_page_has_every_input(op: Op[..., Any]) -> None:
    page = op.spec.markdown()
    assert all(f"| {name} |" in page for name in (*op.spec.port, *op.spec.setting))


def test_its_command_has_every_input(op: Op[..., Any]) -> None:
    command = op_command(op)
    page = command.get_help(click.Context(command, info_name=op.spec.command, terminal_width=120))
    assert all(f"--{name.replace('_', '-')}" in page for name in (*op.spec.port, *op.spec.setting))
    names = [n for p in command.params if isinstance(p, click.Option) for n in (*p.opts, *p.secondary_opts)]
    assert len(names) == len(set(names)), "no option twice"


# The same settings give the same key, whoever says them.


def sample(s: Setting, shift: int = 0) -> Any:
    """A value that the setting takes and that is not its default, where there is one."""
    if s.many:
        return tuple(_one(s, i) for i in range(s.length or 2))
    return _one(s, shift)


def _one(s: Setting, shift: int) -> Any:
    if (names := s.choices) is not None:
        return [n for n in names if n != s.default][shift - 1] if len(names) > 1 else names[0]
    low = 0 if s.knob.min is None else s.knob.min
    high = low + 100 if s.knob.max is None else s.knob.max
    match s.kind:
        case "bool":
            return not s.default
        case "int":
            return int(low + min(7 + shift, high - low))
        case "float":
            return float(low + (high - low) * (0.25 + shift / 10))
        case "path":
            return Path(f"some/where {shift}.x")
        case "json":
            return {"a": [1, 2.5, "雨"], "b": None}
    return f"a, b: (雨 {shift})"


def key(op: Op[..., Any], given: dict[str, Any]) -> str:
    """The recipe key of settings by flat name, with made-up inputs."""
    wrong: list[InputError] = []
    _, literals = settle(op.spec, given | {p.name: "x" for p in op.spec.ports}, wrong)
    assert not wrong, wrong[0]
    inputs = {p.name: Input(p.types[0].__name__, "v", "e") for p in op.spec.ports}
    return engine.recipe(op, literals, inputs, "").recipe


def grouped(spec: Spec, given: dict[str, Any]) -> dict[str, Any]:
    """The same with whole groups."""
    out = {s.name: given[s.name] for s in spec.settings if len(s.path) == 1}
    for name, cls in spec.groups.items():
        out[name] = cls(**{s.path[1]: given[s.name] for s in spec.settings if s.path[0] == name and len(s.path) == 2})
    return out


def command_line(op: Op[..., Any], given: dict[str, Any]) -> list[str]:
    """The words one would type."""
    words = [f"--{p.name.replace('_', '-')}=x" for p in op.spec.ports]
    for s in op.spec.settings:
        flag, value = s.name.replace("_", "-"), given[s.name]
        if s.kind == "bool" and not s.many:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif s.many and s.kind in ("str", "path") and s.names is None:
            words += [f"--{flag}={v}" for v in value]
        else:
            words.append(f"--{flag}={widget_text(s, plain(value))}")
    return words


def typed(op: Op[..., Any], words: list[str]) -> dict[str, Any]:
    """What the command understands."""
    command = op_command(op)
    options = command.make_context(op.spec.command, words).params
    found = _given(op.spec, options, _arguments(op.spec))
    return {k: v for k, v in found.items() if k in op.spec.setting}


def from_graph(op: Op[..., Any], entry: dict[str, Any]) -> dict[str, Any]:
    """The literals of a node, after the graph went through a file; its inputs come from nodes of the right type."""
    graph: dict[str, Any] = {"n": entry}
    makers: dict[str, Op[..., Any]] = {}
    for port in op.spec.ports:
        maker = _maker(port.types[0])
        makers[maker.spec.name] = maker
        graph[port.name] = {"class_type": maker.spec.name, "inputs": {}}
    nodes, _ = read(yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(graph)))), {op.spec.name: op, **makers}, ["n"])
    return dict(nodes[-1].literals)


def _maker(kind: type) -> Op[..., Any]:
    """An op without inputs that says it makes such a value."""
    from safelight.op import op as declare

    registry: dict[str, Op[..., Any]] = {}

    def maker() -> Any:
        """Nothing."""

    maker.__name__ = f"make_{kind.__name__.lower()}"
    maker.__annotations__ = {"return": kind}
    return declare("test", registry=registry)(maker)


@pytest.mark.parametrize("shift", [0, 1])
def test_all_surfaces_give_the_same_key(op: Op[..., Any], shift: int) -> None:
    spec = op.spec
    given = {s.name: sample(s, shift) for s in spec.settings}
    links = {p.name: [p.name, 0] if not p.many else [[p.name, 0]] for p in spec.ports}
    dollars = {p.name: f"${p.name}" for p in spec.ports}
    plainly = {k: plain(v) for k, v in given.items()}
    texts = {s.name: widget_text(s, plain(given[s.name])) for s in spec.settings}
    try:
        python = key(op, by_name(spec, (), grouped(spec, given)))
    except ValueError:
        pytest.skip("the group refuses this combination")
    assert key(op, by_name(spec, (), given)) == python
    assert key(op, typed(op, command_line(op, given))) == python
    assert key(op, from_graph(op, {"class_type": spec.name, "inputs": links | plainly})) == python
    assert key(op, from_graph(op, {"op": spec.name, **dollars, **plainly})) == python
    assert key(op, from_graph(op, {"class_type": spec.name, "inputs": links | texts})) == python, "as the web page's widgets say it"


def test_defaults_left_out_and_said_are_the_same(op: Op[..., Any]) -> None:
    drawn = {s.name: sample(s) for s in op.spec.settings if s.required or s.knob.draw}
    said = {s.name: s.default for s in op.spec.settings} | drawn
    assert key(op, drawn) == key(op, said)
