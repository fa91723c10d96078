"""What an op declares, as data. Python, command line, graph, HTTP schema and docs only read this; none owns behaviour."""
from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeVar

from safelight.events import Event
from safelight.values import Value

R = TypeVar("R")
Work = Generator[Event, Any, R]
"""The return annotation of an op that yields: `def generate(...) -> Work[Image]`."""

Kind = Literal["int", "float", "str", "bool", "path", "json"]


class Required:
    """The type of `REQUIRED`: a setting without a default."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Final = Required()


@dataclass(frozen=True)
class Knob:
    """Range and words for a parameter: `Annotated[int, Knob(1, 8192, help="shorter side, pixels")]`. Both ends are allowed.

    `step` is what a slider moves by; `multiline` asks for a text box; `draw` makes -1 mean "draw a seed": the drawn number, never -1,
    is what the op sees, what the key hashes and what the lineage records. Items of a list are drawn one by one.
    """

    min: float | None = None
    max: float | None = None
    step: float | None = None
    help: str = ""
    multiline: bool = False
    draw: bool = False


@dataclass(frozen=True)
class OneOf:
    """A closed list of names, asked for only when needed: `Annotated[str, OneOf(lambda: SAMPLERS)]` imports nothing at declaration."""

    names: Callable[[], Iterable[str]]
    help: str = ""


@dataclass(frozen=True)
class Port:
    """A parameter that takes a value. `types` are the value classes it accepts; `many` takes a list of values."""

    name: str
    types: tuple[type[Value], ...]
    many: bool = False
    optional: bool = False
    help: str = ""

    @property
    def socket(self) -> str:
        """The graph's socket type: `IMAGE`, `IMAGE,DATASET` or `*`."""
        return "*" if Value in self.types else ",".join(t.type_name for t in self.types)

    def takes(self, kind: type[Value]) -> bool:
        """Whether a value of this class may enter."""
        return issubclass(kind, self.types)


@dataclass(frozen=True)
class Setting:
    """A parameter that takes a literal. `path` is (parameter,) or (group parameter, field). `many`: a list; `length` fixes its size."""

    name: str
    path: tuple[str, ...]
    kind: Kind
    many: bool = False
    length: int | None = None
    optional: bool = False
    default: Any = REQUIRED
    knob: Knob = Knob()
    names: Callable[[], Iterable[Any]] | None = None
    help: str = ""

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED

    @property
    def choices(self) -> tuple[Any, ...] | None:
        """The names it may take, or None when any will do. May import what owns the names."""
        return None if self.names is None else tuple(self.names())

    @property
    def expects(self) -> str:
        """What may be given, in words, for errors and tables: `int, 1 to 8192`."""
        word = {"path": "path", "json": "JSON"}.get(self.kind, self.kind)
        if (names := self.choices) is not None:
            word = "one of " + ", ".join(str(n) for n in names)
        else:
            low, high = (f"{x:g}" if isinstance(x, float) else x for x in (self.knob.min, self.knob.max))
            word += {
                (True, True): f", {low} to {high}", (True, False): f", at least {low}", (False, True): f", at most {high}",
            }.get((low is not None, high is not None), "")
        if self.many:
            word = f"a list of {self.length} ({word})" if self.length else f"a list ({word})"
        return word + (" or nothing" if self.optional else "")


@dataclass(frozen=True)
class Signature:
    """What a function's signature says.

    `order` are the Python parameters in order, of which the first `positional` may be given by position. `settings` is flat: fields of
    a `Knobs` group stand beside plain parameters.
    """

    order: tuple[str, ...]
    positional: int
    ports: tuple[Port, ...]
    settings: tuple[Setting, ...]
    groups: Mapping[str, type]
    output: type[Value]


@dataclass(frozen=True)
class Step:
    """An op that stands before another one: what goes in at `port` passes through it first, by its own port of that name. `inputs` are the
    op's others, as in a graph."""

    port: str
    op: str
    inputs: Mapping[str, Any]


Expand = Callable[[Mapping[str, Any]], tuple[Mapping[str, Any], Sequence[Step]]]


@dataclass(frozen=True, kw_only=True)
class Spec(Signature):
    """Everything the surfaces know of an op. `exact`, `loads`, `fingerprint` and `version`: see `safelight.op.op`;
    `expand`: see `Op.expands`."""

    name: str
    group: str
    doc: str
    body: Callable[..., Any] = field(repr=False, compare=False)
    version: int | None = 1
    store: bool = True
    exact: bool = False
    loads: bool = False
    fingerprint: Callable[[Mapping[str, Any]], str] | None = field(default=None, repr=False, compare=False)
    expand: Expand | None = field(default=None, repr=False, compare=False)

    def expanded(self, literals: Mapping[str, Any]) -> tuple[Mapping[str, Any], Sequence[Step]]:
        """The literals that the op itself is given, and the ops before it. InputError when they cannot be."""
        return (literals, ()) if self.expand is None else self.expand(literals)

    @property
    def summary(self) -> str:
        """The docstring's first sentence or line."""
        return self.doc.split("\n\n")[0].replace("\n", " ").strip()

    @property
    def command(self) -> str:
        """Its name on the command line."""
        return self.name.replace("_", "-")

    @cached_property
    def port(self) -> Mapping[str, Port]:
        """Ports by name."""
        return {p.name: p for p in self.ports}

    @cached_property
    def setting(self) -> Mapping[str, Setting]:
        """Settings by flat name."""
        return {s.name: s for s in self.settings}

    @cached_property
    def source_hash(self) -> str:
        """Hash of the code of the op's module and of what the body imports from its own package; comments and docstrings do not count."""
        from safelight.source import source_hash

        return source_hash(self.body)

    @property
    def tag(self) -> str:
        """What of the code enters the recipe key: `v3`, or `s` and the source hash of a cheap op."""
        return f"v{self.version}" if self.version is not None else f"s{self.source_hash}"

    def schema(self) -> dict[str, Any]:
        """JSON Schema (2020-12) of the inputs."""
        from safelight import schema

        return schema.json_schema(self)

    def object_info(self) -> dict[str, Any]:
        """The node's entry in ComfyUI's `/object_info`."""
        from safelight import schema

        return schema.object_info(self)

    def markdown(self) -> str:
        """The op's section of the docs."""
        from safelight import schema

        return schema.markdown(self)


class InputError(ValueError):
    """Something given to an op is wrong. `kind` is one of: unknown_input, missing, wrong_type, too_small, too_big, not_in_list, no_such_op,
    bad_link, cycle, unreadable."""

    def __init__(self, op: str, name: str, got: str, expected: str, *, advice: str = "", kind: str = "wrong_type") -> None:
        self.op, self.name, self.got, self.expected, self.advice, self.kind = op, name, got, expected, advice, kind
        where = ": ".join(p for p in (op, name) if p)
        super().__init__(f"{where}: got {got}, expected {expected}" + (f"; {advice}" if advice else ""))


def near(word: str, names: Sequence[str]) -> str:
    """`did you mean 'euler'?`, or the empty string when nothing is near."""
    from difflib import get_close_matches

    found = get_close_matches(str(word), [str(n) for n in names], n=1, cutoff=0.6)
    return f"did you mean {found[0]!r}?" if found else ""
