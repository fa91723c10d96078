"""A ComfyUI node class: its declaration in ComfyUI's own terms, and the function that says which of our ops' nodes it becomes.

Names, types, ranges and defaults are those of ComfyUI 0.3.64.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from safelight.comfy.building import Building
    from safelight.folders import Folders

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
"""Types of inputs that hold a literal; any other type is a socket."""

LARGEST_SEED = 2**64 - 1


@dataclass(frozen=True)
class Places:
    """Where names lead: the models folders, the folder of input pictures, the folder for results, and the folder of other people's node
    classes, if any are allowed (`plugins`)."""

    models: Folders
    input: Path
    output: Path
    nodes: Path | None = None

    def find(self, kind: str, name: str) -> str:
        """The absolute path of a name in the models folders. ValueError when it is not there."""
        return str(self.models.find(kind, name).absolute())


Options = Callable[[Places], Sequence[str]]
Given = Mapping[str, Any]
"""A node's inputs by name: literals, and what is behind the links (see `building`)."""

Make = Callable[["Building", Given], Any]


@dataclass(frozen=True)
class Input:
    """An input. `low` and `high` are allowed themselves; `options` are the names a COMBO may hold, asked for when they are needed; `loose`:
    others may stand there too, the node itself looks for them; `told`: what else the editor is told of it. Files of older editors: there it
    was called `old` and took another type, or, if `newer`, it was not there, and its default stands."""

    name: str
    type: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    step: float | None = None
    options: Options | None = None
    optional: bool = False
    many_lines: bool = False
    loose: bool = False
    told: Mapping[str, Any] = field(default_factory=dict)
    old: str = ""
    newer: bool = False

    @property
    def widget(self) -> bool:
        """Whether it holds a literal when nothing is linked to it."""
        return self.type in WIDGETS


@dataclass(frozen=True)
class NodeClass:
    """A node class. `names` are its outputs' names. `ends` marks those that a prompt is run for (they save or show). `parts` says of a
    loader which inputs of our `model` op its names are: {"vae": "vae_name"}. `flags` is of "deprecated", "experimental" and "lists";
    `module` is where the editor is told that it comes from."""

    name: str
    category: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    make: Make
    names: tuple[str, ...] = ()
    ends: bool = False
    parts: Mapping[str, str] | None = None
    flags: tuple[str, ...] = ()
    module: str = "nodes"

    def object_info(self, places: Places) -> dict[str, Any]:
        """The class's entry of ComfyUI's `/object_info`."""
        groups: dict[str, dict[str, Any]] = {"required": {i.name: _info(i, places) for i in self.inputs if not i.optional}}
        if optional := {i.name: _info(i, places) for i in self.inputs if i.optional}:
            groups["optional"] = optional
        if self.ends:
            groups["hidden"] = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
        return {
            "input": groups, "input_order": {group: list(members) for group, members in groups.items()},
            "output": list(self.outputs), "output_is_list": ["lists" in self.flags] * len(self.outputs),
            "output_name": list(self.names or self.outputs), "name": self.name, "display_name": self.title,
            "description": (self.make.__doc__ or "").strip(), "python_module": self.module, "category": self.category,
            "output_node": self.ends, **{flag: True for flag in self.flags if flag != "lists"},
        }


def _info(i: Input, places: Places) -> list[Any]:
    told: dict[str, Any] = {"min": i.low, "max": i.high, "step": i.step, "default": i.default, "multiline": i.many_lines or None}
    told["control_after_generate"] = (i.name in ("seed", "noise_seed")) or None
    found = {**{k: v for k, v in told.items() if v is not None}, **i.told}
    kind: Any = i.type if i.options is None else list(i.options(places))
    return [kind, found] if found else [kind]


NODES: dict[str, NodeClass] = {}


def node(
    name: str, category: str, inputs: Sequence[Input], *outputs: str, title: str = "", ends: bool = False,
    parts: Mapping[str, str] | None = None, flags: Sequence[str] = (),
) -> Callable[[Make], Make]:
    """Declare a node class; the decorated function makes it: it adds nodes of ours and returns what is behind each output slot, which is
    written as its type or as `name:TYPE`."""
    split = [o.rpartition(":") for o in outputs]

    def register(make: Make) -> Make:
        kinds, names = tuple(s[2] for s in split), tuple(s[0] or s[2] for s in split)
        NODES[name] = NodeClass(name, category, title or name, tuple(inputs), kinds, make, names, ends, parts, tuple(flags))
        return make

    return register


def socket(kind: str, *names: str, optional: bool = False) -> list[Input]:
    """Sockets of one type; named like the type when no name is given."""
    return [Input(n, kind, optional=optional) for n in names or (kind.lower(),)]


def integer(name: str, default: int, low: int, high: int, step: int = 1) -> Input:
    """A whole number."""
    return Input(name, "INT", default, low, high, step)


def real(
    name: str, default: float, low: float, high: float, step: float = 0.01, *, digits: float | bool | None = None, optional: bool = False
) -> Input:
    """A number. `digits`: what the editor rounds it to; False: not at all; nothing: to the step."""
    return Input(name, "FLOAT", default, low, high, step, optional=optional, told={} if digits is None else {"round": digits})


def text(name: str, default: str = "", *, many_lines: bool = False, prompt: bool = False) -> Input:
    """A text. `prompt`: the editor opens `{a|b}` in it."""
    return Input(name, "STRING", default, many_lines=many_lines or prompt, told={"dynamicPrompts": True} if prompt else {})


def switch(name: str, default: bool) -> Input:
    """Yes or no."""
    return Input(name, "BOOLEAN", default)


def choice(
    name: str, options: Options | Sequence[str], default: str | None = None, *, optional: bool = False, newer: bool = False
) -> Input:
    """One of a list of names."""
    fixed = None if callable(options) else tuple(options)
    asked = options if callable(options) else lambda _: fixed or ()
    return Input(name, "COMBO", default, options=asked, optional=optional, newer=newer)


def files(kind: str) -> Options:
    """The names in a models folder."""
    return lambda places: places.models.names(kind)


def seed(name: str = "seed") -> Input:
    """A seed."""
    return Input(name, "INT", 0, 0, LARGEST_SEED)


def pixels(name: str, default: int = 512, low: int = 16, step: int = 8, high: int = 16384) -> Input:
    """A length in pixels."""
    return integer(name, default, low, high, step)
