"""A ComfyUI node class: its declaration in ComfyUI's own terms, and the function that says which of our ops' nodes it becomes.

Names, types, ranges and defaults are those of ComfyUI 0.3.64.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
    """Where names lead: the models folders, the folder of input pictures, the folder for results."""

    models: Folders
    input: Path
    output: Path

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
    others may stand there too, the node itself looks for them."""

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

    @property
    def widget(self) -> bool:
        """Whether it holds a literal when nothing is linked to it."""
        return self.type in WIDGETS


@dataclass(frozen=True)
class NodeClass:
    """A node class. `ends` marks those that a prompt is run for (they save or show). `parts` says of a loader which inputs of our `model`
    op its names are: {"vae": "vae_name"}."""

    name: str
    category: str
    title: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    make: Make
    ends: bool = False
    parts: Mapping[str, str] | None = None

    def object_info(self, places: Places) -> dict[str, Any]:
        """The class's entry of ComfyUI's `/object_info`."""
        required = {i.name: _info(i, places) for i in self.inputs if not i.optional}
        optional = {i.name: _info(i, places) for i in self.inputs if i.optional}
        groups = {"required": required} | ({"optional": optional} if optional else {})
        return {
            "input": groups, "input_order": {group: list(members) for group, members in groups.items()},
            "output": list(self.outputs), "output_is_list": [False] * len(self.outputs), "output_name": list(self.outputs),
            "name": self.name, "display_name": self.title, "description": "", "python_module": "nodes", "category": self.category,
            "output_node": self.ends,
        }


def _info(i: Input, places: Places) -> list[Any]:
    told: dict[str, Any] = {"min": i.low, "max": i.high, "step": i.step, "default": i.default, "multiline": i.many_lines or None}
    told["control_after_generate"] = (i.name in ("seed", "noise_seed")) or None
    told["image_upload"] = i.loose or None
    found = {k: v for k, v in told.items() if v is not None}
    kind: Any = i.type if i.options is None else list(i.options(places))
    return [kind, found] if found else [kind]


NODES: dict[str, NodeClass] = {}


def node(
    name: str, category: str, inputs: Sequence[Input], *outputs: str, title: str = "", ends: bool = False,
    parts: Mapping[str, str] | None = None,
) -> Callable[[Make], Make]:
    """Declare a node class; the decorated function makes it: it adds nodes of ours and returns what is behind each output slot."""

    def register(make: Make) -> Make:
        NODES[name] = NodeClass(name, category, title or name, tuple(inputs), outputs, make, ends, parts)
        return make

    return register


def socket(kind: str, *names: str, optional: bool = False) -> list[Input]:
    """Sockets of one type; named like the type when no name is given."""
    return [Input(n, kind, optional=optional) for n in names or (kind.lower(),)]


def integer(name: str, default: int, low: int, high: int, step: int = 1) -> Input:
    """A whole number."""
    return Input(name, "INT", default, low, high, step)


def real(name: str, default: float, low: float, high: float, step: float = 0.01) -> Input:
    """A number."""
    return Input(name, "FLOAT", default, low, high, step)


def text(name: str, default: str = "", *, many_lines: bool = False) -> Input:
    """A text."""
    return Input(name, "STRING", default, many_lines=many_lines)


def switch(name: str, default: bool) -> Input:
    """Yes or no."""
    return Input(name, "BOOLEAN", default)


def choice(name: str, options: Options | Sequence[str], default: str | None = None, *, optional: bool = False) -> Input:
    """One of a list of names."""
    fixed = None if callable(options) else tuple(options)
    return Input(name, "COMBO", default, options=options if callable(options) else lambda _: fixed or (), optional=optional)


def files(kind: str) -> Options:
    """The names in a models folder."""
    return lambda places: places.models.names(kind)


def seed(name: str = "seed") -> Input:
    """A seed."""
    return Input(name, "INT", 0, 0, LARGEST_SEED)


def pixels(name: str, default: int = 512, low: int = 16, step: int = 8, high: int = 16384) -> Input:
    """A length in pixels."""
    return integer(name, default, low, high, step)
