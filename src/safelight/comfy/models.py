"""Which models the loaders of a prompt add up to: ours is one value with all its parts, ComfyUI's are loaded apart."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safelight.comfy.check import Checked, PromptError, failed
from safelight.comfy.node import NodeClass, Places
from safelight.folders import hub_snapshot
from safelight.values import Part

KINDS = {
    "ckpt_name": "checkpoints", "unet_name": "diffusion_models", "vae_name": "vae", "clip_name": "text_encoders",
    "clip_name1": "text_encoders", "clip_name2": "text_encoders", "clip_name3": "text_encoders", "model_path": "diffusers",
    "model": "diffusers", "chatglm3_checkpoint": "LLM",
}
EMBEDDED = "mini"
"""The model that comes with Safelight, among the checkpoints."""
SOCKET = {"vae": "VAE", "text_encoder": "CLIP", "text_encoder_2": "CLIP", "text_encoder_3": "CLIP"}

Models = dict[str, tuple[str, dict[str, str]]]
"""For each loader the node that holds its model, and the inputs of our `model` op there."""


def models(found: Checked, places: Places) -> Models:
    """A loader of a part gives it to the model of the loader beside it, so that each network is held once; where that one's own part is
    used as well, there are two models. PromptError when there is no model that a part could belong to."""
    told = {i: _inputs(i, c, found.inputs[i], places) for i, c in found.classes.items() if i in found.inputs and _loads(c)}
    heads = [i for i, inputs in told.items() if "name" in inputs]
    out: Models = {i: (i, told[i]) for i in heads}
    for loader, parts in told.items():
        if loader in out:
            continue
        head = _beside(found, loader, heads)
        if head is None:
            raise PromptError([failed(loader, _class(found, loader).name, "no checkpoint beside it that it could belong to")])
        inputs = out[head][1]
        if any(part in inputs or _own_used(found, head, SOCKET[part]) for part in parts):
            out[loader] = (loader, {**inputs, **parts})
        else:
            inputs |= parts
            out[loader] = (head, inputs)
    return out


def _loads(known: Any) -> bool:
    return isinstance(known, NodeClass) and known.parts is not None


def _class(found: Checked, key: str) -> NodeClass:
    known = found.classes[key]
    assert isinstance(known, NodeClass)
    return known


def _inputs(key: str, known: Any, given: Mapping[str, Any], places: Places) -> dict[str, str]:
    try:
        return {part: _found(KINDS[name], given[name], places) for part, name in known.parts.items()}
    except ValueError as e:
        raise PromptError([failed(key, known.name, str(e))]) from e


def _found(kind: str, name: str, places: Places) -> str:
    """The path of a name; of a name on Hugging Face also by its last part, or in the cache."""
    if (kind, name) == ("checkpoints", EMBEDDED):
        return name
    if kind != "diffusers" or "/" not in name:
        return places.find(kind, name)
    for known in (name, name.rpartition("/")[2]):
        try:
            return places.find(kind, known)
        except ValueError:
            continue
    return str(hub_snapshot(name))


def _own_used(found: Checked, head: str, kind: str) -> bool:
    """Whether something takes the head's own part of this type."""
    outputs = _class(found, head).outputs
    return any(kind == outputs[slot] for _, slot in (link for link in _all(found) if link[0] == head))


def _all(found: Checked) -> list[tuple[str, int]]:
    return [given for inputs in found.inputs.values() for given in inputs.values() if isinstance(given, tuple)]


def _beside(found: Checked, loader: str, heads: list[str]) -> str | None:
    """The loader of the model whose sampler is nearest to where the part is used: before it, or else after it."""
    if len(heads) <= 1:
        return heads[0] if heads else None
    parents = {i: [g[0] for g in inputs.values() if isinstance(g, tuple)] for i, inputs in found.inputs.items()}
    children: dict[str, list[str]] = {i: [] for i in parents}
    for i, above in parents.items():
        for parent in above:
            children[parent].append(i)
    users = children[loader]
    for ways in (parents, children):
        seen, todo = {loader}, list(users)
        for key in todo:  # grows while it is walked
            head = _head(found, key, heads)
            if head is not None:
                return head
            todo += [n for n in ways[key] if n not in seen and n not in todo]
    return heads[0]


def _head(found: Checked, key: str, heads: list[str]) -> str | None:
    """The loader behind a node's MODEL input."""
    while True:
        given = found.inputs[key]
        link = given.get("model", given.get("kolors_model"))
        if not isinstance(link, tuple):
            return key if key in heads else None
        key = link[0]


OPEN_CLIP = 1024
"""Width from which a text encoder is OpenCLIP's."""


def layers_left_out(base: Mapping[str, str]) -> int:
    """How many last layers of its text encoders a model leaves out by itself, by the inputs of its `model` node: one wherever there is an
    OpenCLIP (SD 2.x, SDXL). Headers and configurations alone are read."""
    from safelight.families.sources import open_source

    parts = open_source(base["name"], [Part(p, base[p], "") for p in ("text_encoder", "text_encoder_2") if p in base])
    try:
        parts.config("text_encoder_2")
    except ValueError:
        return int(parts.config("text_encoder").get("hidden_size", 0) >= OPEN_CLIP)
    return 1
