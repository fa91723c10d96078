"""Our graph while it is built from a prompt, and what may be behind a slot of ComfyUI's: not always a node of ours."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from safelight.comfy.data import Later
from safelight.comfy.node import Places


@dataclass(frozen=True)
class Link:
    """A node of ours by its id: what MODEL, VAE, LATENT, IMAGE, MASK and CONTROL_NET slots hold. `sampled` are settings that ComfyUI has on
    a model and we have on the sampler."""

    id: str
    sampled: tuple[tuple[str, Any], ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Clip:
    """A model for its text encoders. `last` is the layer that is read, from the end as ComfyUI counts (-1); nothing: the model's own."""

    model: Link
    last: int | None = None


@dataclass(frozen=True)
class Steer:
    """A ControlNet that a condition carries; `both` when, on the positive condition, it steers the negative one too."""

    control: Link
    image: Link
    strength: float
    start: float = 0.0
    end: float = 1.0
    both: bool = False


@dataclass(frozen=True)
class Words:
    """A condition, and what ComfyUI has on it: ControlNets, and the file of the GLIGEN that reads its boxes."""

    cond: Link
    steers: tuple[Steer, ...] = ()
    gligen: str = ""


@dataclass(frozen=True)
class Solver:
    """A sampler with its own settings, as name=number."""

    sampler: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """Where a trajectory's noise comes from; without a start it begins at the latent as it is."""

    seed: int
    start: bool = True


@dataclass(frozen=True)
class Guider:
    """A model and what guides it; without a negative condition nothing does."""

    model: Link
    positive: Words
    negative: Words | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Difference:
    """What one model has more than another, so many times: something to add to a third, and nothing else."""

    more: Link
    less: Link
    times: float


@dataclass(frozen=True)
class Change:
    """What is to be done to a latent: an op and its settings."""

    op: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """Something the prompt is run for: a node of ComfyUI's, its class, our node with the pictures, the name they are to have. `kept`
    pictures are results; others are only to be looked at."""

    node: str
    class_type: str
    value: Link
    prefix: str = ""
    kept: bool = True
    form: Mapping[str, Any] = field(default_factory=dict)
    """Of other files than ComfyUI's SaveImage writes (see `saving`)."""


@dataclass
class Building:
    """Collects nodes of ours. `node` is the ComfyUI node at work; its nodes get its id, further ones `id.part`."""

    places: Places
    models: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    against: frozenset[str] = frozenset()
    """Ids of the ComfyUI nodes whose condition says only what pictures should not be like."""
    said: Mapping[str, Any] = field(default_factory=dict)
    """What nodes of ours said that had to run first, by id."""
    node: str = ""
    class_type: str = ""
    nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    saved: list[Saved] = field(default_factory=list)

    def add(self, op: str, *, part: str = "", at: str = "", more: Mapping[str, Any] | None = None, **inputs: Any) -> Link:
        """A node of ours. Inputs are literals, links or lists of links, those of any name in `more`; what is None is left out. `at`: for
        another node of ComfyUI's."""
        id = at or (f"{self.node}.{part}" if part else self.node)
        given = {k: _input(v) for k, v in {**inputs, **(more or {})}.items() if v is not None}
        self.nodes[id] = {"class_type": op, "inputs": given}
        self.origin[id] = self.node
        return Link(id)

    def literal(self, found: Any) -> Any:
        """What is behind a link, with what a node said in place of what it will say. `Unsaid` when it has not run."""
        return found.said(self.said) if isinstance(found, Later) else found

    def model(self, loader: str = "") -> Link:
        """The model that the loader at work, or another, belongs to; made when the first of its loaders asks."""
        owner, inputs = self.models[loader or self.node]
        if owner not in self.nodes:
            self.add("model", at=owner, more=inputs)
            self.origin[owner] = owner
        return Link(owner)

    def save(self, pictures: Link, prefix: str, *, kept: bool = True, form: Mapping[str, Any] | None = None) -> None:
        """Note that the node at work wants these pictures."""
        self.saved.append(Saved(self.node, self.class_type, pictures, prefix, kept, form or {}))

    def base(self, model: Link) -> Mapping[str, Any]:
        """The inputs of the `model` node below a chain of patches."""
        found: Mapping[str, Any] = self.nodes[self.chain(model)[-1]]["inputs"]
        return found

    def chain(self, model: Link) -> list[str]:
        """The ids of a model's patches and of the `model` node below them, the last patch first."""
        ids = [model.id]
        while self.nodes[ids[-1]]["class_type"] != "model":
            ids.append(self.nodes[ids[-1]]["inputs"]["model"][0])
        return ids

    def stacked(self, model: Link, other: Link) -> Link:
        """The model with those patches of another chain on it that it does not have."""
        have = self.chain(model)
        for id in reversed([i for i in self.chain(other) if i not in have and self.nodes[i]["class_type"] != "model"]):
            entry = self.nodes[id]
            model = self.add(entry["class_type"], part=f"and.{id}", more={**entry["inputs"], "model": model})
        return model

    def rebased(self, model: Link, **changes: Any) -> Link:
        """The same chain of patches on the `model` node with some of its inputs changed."""
        entry = self.nodes[model.id]
        if entry["class_type"] == "model":
            return self.add("model", part="base", **{**entry["inputs"], **changes})
        below = self.rebased(Link(entry["inputs"]["model"][0]), **changes)
        kept = {k: v for k, v in entry["inputs"].items() if k != "model"}
        return self.add(entry["class_type"], part=model.id, model=below, **kept)

    def taught(self, base: Link, **new: Any) -> Link:
        """`rebased` on what its network was taught, all of it; what the sampler is told stays."""
        return replace(self.rebased(base, **(dict.fromkeys(("prediction", "shift", "sigma_min", "sigma_max")) | new)), sampled=base.sampled)


def _input(value: Any) -> Any:
    if isinstance(value, Link):
        return [value.id, 0]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_input(v) for v in value]
    return value


def as_socket(kind: str, found: Any) -> Any:
    """What is behind a link as a socket of this type takes it: nodes of our own ops may feed ComfyUI's and the other way round."""
    if kind == "CONDITIONING" and isinstance(found, Link):
        return Words(found)
    if kind == "CLIP" and isinstance(found, Link):
        return Clip(found)
    return found


def as_port(found: Any) -> Any:
    """What is behind a link as an op of ours takes it. ValueError for what only ComfyUI's nodes can carry."""
    if isinstance(found, Clip):
        return found.model
    if isinstance(found, Link) and found.sampled:
        told = ", ".join(name for name, _ in found.sampled)
        raise ValueError(f"this model carries settings for ComfyUI's sampler nodes ({told}); for this op leave RescaleCFG and its like out")
    if isinstance(found, Solver | Noise | Guider | Change | Difference):
        raise ValueError(f"a {type(found).__name__.lower()} goes to ComfyUI's own nodes only; the ops have settings instead")
    if not isinstance(found, Words):
        return found
    if found.steers or found.gligen:
        raise ValueError("a condition with a ControlNet or GLIGEN goes to KSampler only; for this op put it on the model (with_control)")
    return found.cond
