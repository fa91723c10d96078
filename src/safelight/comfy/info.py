"""`/object_info`: every node class that a prompt may have, ComfyUI's and our ops, in ComfyUI's own shape."""
from __future__ import annotations

import math
from typing import Any

from safelight.comfy.check import Ops, classes, op_outputs
from safelight.comfy.node import Places
from safelight.op import load_ops
from safelight.spec import Setting, Spec

MORE = 4
"""How many sockets a port of many values has: the first has its name, the others `name_2` and so on."""
LOOKED_AT = ("PAGE", "SCORES")
MANY = 12
"""Settings of a node from which on the editor folds away those that are not for every day."""
EVERYDAY = frozenset({
    "by", "template", "trigger", "place", "language", "prompt", "negative", "seed", "seeds", "width", "height", "sampler", "steps", "scale",
    "rank", "method", "lr", "batch", "size", "held_out", "every", "samples",
})


def object_info(places: Places, ops: Ops | None = None) -> dict[str, Any]:
    """The answer of GET /object_info. Names of files are those that lie there now."""
    known = load_ops() if ops is None else ops
    named = {name: c.object_info(places) for name, c in classes(places).items()}
    return named | {name: op_info(op.spec) for name, op in known.items()}


def class_info(name: str, places: Places, ops: Ops | None = None) -> dict[str, Any]:
    """The answer of GET /object_info/{name}: one entry, or none for a class that is not known."""
    known = load_ops() if ops is None else ops
    if found := classes(places).get(name):
        return {name: found.object_info(places)}
    return {name: op_info(known[name].spec)} if name in known else {}


def op_info(spec: Spec) -> dict[str, Any]:
    """An op as a node: its ports are sockets, its settings widgets with groups opened. A number that may be nothing is a text here, because
    the editor always sends a number."""
    info = spec.object_info()
    required, optional = info["input"]["required"], info["input"]["optional"]
    for port in spec.ports:
        if port.many:
            optional.update({f"{port.name}_{i}": [port.socket, {}] for i in range(2, MORE + 1)})
    for s in spec.settings:
        group = optional if s.optional else required
        if group[s.name][0] == "FLOAT":
            group[s.name][1] |= {"round": False} | _finer(s)
        if s.optional and s.kind in ("int", "float") and not s.many:
            words = s.expects.removesuffix(" or nothing")
            group[s.name] = ["STRING", {"default": "" if s.default is None else str(s.default), "placeholder": words, "tooltip": s.help}]
        if len(spec.settings) > MANY and s.name not in EVERYDAY:
            group[s.name][1]["advanced"] = True
    info["input_order"] = {"required": list(required), "optional": list(optional)}
    kinds = op_outputs(spec)
    info |= {"output": list(kinds), "output_name": list(kinds), "output_is_list": [False] * len(kinds), "is_input_list": False}
    return info | {"output_node": spec.group == "train" or spec.output.type_name in LOOKED_AT}



def _finer(s: Setting) -> dict[str, float]:
    """A step that shows a small default, such as a learning rate's: the editor has no more digits than its step."""
    small = isinstance(s.default, float) and 0 < s.default < 0.01 and s.knob.step is None
    return {"step": float(f"1e{math.floor(math.log10(s.default)) - 1}")} if small else {}
