"""Where a value comes from: every op, setting and input on the way to it, as JSON data that needs no store to be read."""
from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from safelight import embed
from safelight.codec import ORIGIN, exact_key
from safelight.op import OPS
from safelight.store import Input, Made, Record, Store, current, making
from safelight.values import Dataset, Image, Latent, Model, Page, Patch, Scores, Value

FORMAT = 1
PACKAGES = ("safelight", "torch", "diffusers", "transformers", "peft", "numpy", "pillow")


@cache
def versions() -> Mapping[str, str]:
    """Versions of Python and of the packages that numbers may depend on."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def about(value: Value) -> dict[str, Any]:
    """What a lineage says of a value in a few words: hashes, counts, sizes."""
    match value:
        case Dataset():
            return {"kept": len(value), "dropped": len(value.rows) - len(value)}
        case Image():
            return {"pictures": len(value), "width": value.pixels.shape[2], "height": value.pixels.shape[1]}
        case Latent():
            return {"width": 8 * value.samples.shape[-1], "height": 8 * value.samples.shape[-2]}
        case Patch():
            return {"kind": value.kind, "sha256": value.weights.sha256, "strength": value.strength}
        case Model():
            base: dict[str, Any] = {"family": value.family, "source": Path(value.source).name, "fingerprint": value.fingerprint}
            if value.parts:
                base["parts"] = [{"part": p.name, "source": Path(p.source).name, "fingerprint": p.fingerprint} for p in value.parts]
            return base | {"patches": [about(p) for p in value.patches]}
        case Scores():
            means = {name: round(sum(given) / max(len(given), 1), 4) for name, given in value.values.items()}
            return {"metrics": list(value.values), "pictures": len(value.image), "means": means}
        case Page():
            return {"media": value.media, "sha256": value.file.sha256}
    return {}


def outcome(about: Mapping[str, Any]) -> str:
    """What `about` says of a dataset or of scores, in a line; nothing for other values."""
    if "kept" in about:
        return f"{about['kept']} pictures" + (f", {about['dropped']} left out" if about["dropped"] else "")
    return ", ".join(f"{name} {mean:.3g}" for name, mean in about.get("means", {}).items())


def history(value: Value) -> dict[str, Any]:
    """What a file that was loaded says of itself: the lineage in a patch's weights, under `history`; nothing when it has none."""
    if not isinstance(value, Patch) or not value.weights.path.endswith(".safetensors"):
        return {}
    try:
        told = json.loads(embed.safetensors_texts(Path(value.weights.path)).get(embed.LINEAGE, "{}"))
    except ValueError:
        return {}
    return {"history": told} if told else {}


def rows(data: Dataset) -> list[list[str]]:
    """[sha256, name, caption in use] of the kept rows."""
    return [[r.picture.sha256, r.name, r.caption] for r in data]


def as_input(store: Store, value: Value) -> Input:
    """A value that Python holds, as an op's input: with the recipe that made it when the store knows one."""
    record = store.get(value.recipe) if value.recipe else None
    if record is not None and record.value == value.key:
        return record.as_input()
    exact = exact_key(value)
    record = store.producer(exact)
    if record is not None:
        return record.as_input()
    known = about(value) | ({"rows": rows(value)} if isinstance(value, Dataset) else {})
    if isinstance(value, Image) and value.info and all(ORIGIN in row for row in value.info):  # a choice of pictures that ops made
        known["origins"] = [list(row[ORIGIN]) for row in value.info]
    return Input(type(value).__name__, value.key, exact, "", known)


@dataclass
class _Trace:
    """A walk from a value back to its sources: nodes in the order they were made, their ids by recipe or by key."""

    store: Store
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    pictures: dict[str, Any] = field(default_factory=dict)

    def add(self, key: str, node: dict[str, Any]) -> None:
        self.ids[key] = str(len(self.nodes) + 1)
        self.nodes[self.ids[key]] = node

    def walk(self, start: Input) -> str:
        """Add a value and everything it comes from; its id. Depth first, parents before children, without recursion."""
        stack = [start]
        while stack:
            given = stack[-1]
            if name(given) in self.ids:
                stack.pop()
                continue
            record = self.store.get(given.recipe) if given.recipe else None
            waiting = [p for p in _parents(given, record) if name(p) not in self.ids]
            if waiting:
                stack += reversed(waiting)
                continue
            self.add(name(given), self.chosen(given) if record is None else self.made(record.made, about=record.about, value=record.value))
            stack.pop()
        return self.ids[name(start)]

    def made(self, made: Made, **more: Any) -> dict[str, Any]:
        """A node that an op made."""
        inputs = {
            port: [self.ids[name(g)] for g in given] if isinstance(given, tuple) else given and self.ids[name(given)]
            for port, given in made.inputs.items()
        }
        for parent in made.parents():
            if "rows" in parent.about:
                self.pictures[parent.value] = parent.about["rows"]
        node = {"op": made.op, "version": made.tag, "settings": made.settings, "inputs": inputs, "fingerprint": made.fingerprint, **more}
        return node | {"versions": dict(made.versions)}

    def chosen(self, given: Input) -> dict[str, Any]:
        """A node without a record: pictures that Python chose from one batch, as the op `pick` does; or a value of unknown origin."""
        about = {k: v for k, v in given.about.items() if k not in ("rows", "origins")}
        batches = given.recipes()
        if len(batches) == 1 and "origins" in given.about and "pick" in OPS:
            told = Made("", "pick", OPS["pick"].spec.tag, {"indices": [o[1] for o in given.about["origins"]]}, {})
            return self.made(told, about=about, value=given.value) | {"inputs": {"image": self.ids[batches.pop()]}}
        return {"op": "", "type": given.type, "value": given.value, "about": about}


def name(given: Input) -> str:
    """What tells one value of a lineage from another: its recipe, or its exact key when no recipe is known."""
    return given.recipe or given.exact


def _parents(given: Input, record: Record | None) -> list[Input]:
    if record is not None:
        return list(record.made.parents())
    return [Input("Image", "", "", r) for r in sorted(given.recipes()) if r != given.recipe] if not given.recipe else []


@dataclass(frozen=True)
class Lineage:
    """Where a value comes from, as JSON data that says everything without a store.

    `data`: `nodes` by id, parents first: op, version, settings, inputs (ids), the value's key and what is said about it. `target` is the
    value's node, `index` the picture's place in it. `pictures` has the rows [sha256, name, caption] of the datasets that something was
    made from, by the dataset's key. Nothing in it depends on when it was made, so that the same run gives the same bytes.
    """

    data: Mapping[str, Any]

    @property
    def target(self) -> str:
        """The id of the node that made it."""
        return str(self.data["target"])

    @property
    def index(self) -> int:
        """Which picture of the node's batch it is."""
        return int(self.data.get("index", 0))

    @property
    def has_gaps(self) -> bool:
        """Whether no op is known for some value on the way, so that the graph cannot run again."""
        return any(not node["op"] for node in self.data["nodes"].values())

    def of_picture(self, index: int) -> Lineage:
        """The same for one picture of the batch."""
        return Lineage({**self.data, "index": index})

    def graph(self) -> dict[str, Any]:
        """The graph that makes it, in API form. ValueError when it cannot run again."""
        return graph(self.data)

    def __str__(self) -> str:
        return text(self.data)


def trace(store: Store, value: Value | str) -> Lineage:
    """The lineage of a value, or of what a recipe makes."""
    start = Input("", "", "", value) if isinstance(value, str) else as_input(store, value)
    walk = _Trace(store)
    return _lineage(walk, walk.walk(start))


def here() -> Lineage:
    """The lineage of what the running op is making, for files it writes itself. ValueError outside of an op."""
    made = making()
    if made is None:
        raise ValueError("lineage.here: no op is running; it is for the bodies of ops")
    walk = _Trace(current())
    for parent in made.parents():
        walk.walk(parent)
    walk.add(made.recipe, walk.made(made))
    return _lineage(walk, walk.ids[made.recipe])


def _lineage(walk: _Trace, target: str) -> Lineage:
    used: Mapping[str, str] = next((n["versions"] for n in reversed(walk.nodes.values()) if "versions" in n), {})
    for node in walk.nodes.values():  # the versions once, and per node only where they were others
        if node.get("versions") in (used, {}):
            del node["versions"]
    return Lineage({"format": FORMAT, "target": target, "versions": used, "nodes": walk.nodes, "pictures": walk.pictures})


def graph(lineage: Mapping[str, Any]) -> dict[str, Any]:
    """The graph that makes it, in API form. ValueError when a value on the way was given by hand and cannot be made again."""
    out: dict[str, Any] = {}
    for key, node in lineage["nodes"].items():
        if not node["op"]:
            raise ValueError(f"no op is known that made the {node['type']} {node['value']}, so the graph cannot run again")
        links = {
            port: None if given is None else [given, 0] if isinstance(given, str) else [[g, 0] for g in given]
            for port, given in node["inputs"].items()
        }
        out[key] = {"class_type": node["op"], "inputs": {p: link for p, link in links.items() if link is not None} | node["settings"]}
    return out


def text(lineage: Mapping[str, Any]) -> str:
    """The lineage for people: every op in order, its settings, then the pictures and the versions."""
    lines = [line for key, node in lineage["nodes"].items() for line in _node_lines(key, node)]
    for key, found in lineage["pictures"].items():
        lines.append(f"pictures of {key} ({len(found)}):")
        lines += [f"   {sha}  {file}  {json.dumps(caption, ensure_ascii=False)}" for sha, file, caption in found]
    if "index" in lineage:
        lines.insert(0, f"picture {lineage['index']} of {lineage['target']}. {lineage['nodes'][lineage['target']]['op']}")
    return "\n".join([*lines, "made with " + _pairs(lineage["versions"], " ")])


def _node_lines(key: str, node: Mapping[str, Any]) -> list[str]:
    inputs = {port: given for port, given in node.get("inputs", {}).items() if given}
    links = {port: " ".join(f"${g}" for g in ([given] if isinstance(given, str) else given)) for port, given in inputs.items()}
    told = _pairs(links, "=") + (", " if links and node.get("settings") else "") + _pairs(node.get("settings", {}), "=", quoted=True)
    head = f"{key}. {node['op'] or 'given: ' + node['type']} {node.get('version', '')}".rstrip()
    lines = [head, *textwrap.wrap(told, 120, initial_indent="   ", subsequent_indent="   ", break_long_words=False)]
    if node.get("fingerprint"):
        lines.append(f"   read: {node['fingerprint']}")
    if "value" in node:
        about = {k: v for k, v in node.get("about", {}).items() if k != "history"}
        lines.append(f"   -> {node['value']}  {_pairs(about, ' ')}".rstrip())
    if "history" in node.get("about", {}):
        lines += ["   the file says of itself:", *textwrap.indent(text(node["about"]["history"]), "     | ").splitlines()]
    if "versions" in node:
        lines.append("   with " + _pairs(node["versions"], " "))
    return lines


def _pairs(data: Mapping[str, Any], sign: str, quoted: bool = False) -> str:
    plain = str | int | float
    return ", ".join(f"{k}{sign}{v if isinstance(v, plain) and not quoted else json.dumps(v, ensure_ascii=False)}" for k, v in data.items())
