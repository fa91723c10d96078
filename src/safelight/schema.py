"""A Spec as JSON Schema, as a ComfyUI node description and as a page of the docs."""
from __future__ import annotations

import json
from typing import Any

from safelight.literals import plain
from safelight.spec import Port, Setting, Spec

JSON_TYPES = {"int": "integer", "float": "number", "str": "string", "bool": "boolean", "path": "string"}
WIDGETS = {"int": "INT", "float": "FLOAT", "str": "STRING", "bool": "BOOLEAN", "path": "STRING", "json": "STRING"}
WIDEST = 2**64 - 1  # the largest number the web page's seed widget is given


def json_schema(spec: Spec) -> dict[str, Any]:
    """JSON Schema (2020-12) of an op's inputs by flat name. A port is `{"value": "IMAGE"}` under `x-safelight-port`."""
    required = [p.name for p in spec.ports if not p.optional] + [s.name for s in spec.settings if s.required]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": spec.name,
        "description": spec.summary,
        "type": "object",
        "properties": {p.name: _port_schema(p) for p in spec.ports} | {s.name: _setting_schema(s) for s in spec.settings},
        "required": required,
        "additionalProperties": False,
    }


def _port_schema(port: Port) -> dict[str, Any]:
    out: dict[str, Any] = {"x-safelight-port": port.socket}
    if port.many:
        out["type"] = "array"
    return out | ({"description": port.help} if port.help else {})


def _setting_schema(s: Setting) -> dict[str, Any]:
    item: dict[str, Any] = {} if s.kind == "json" else {"type": JSON_TYPES[s.kind]}
    if (names := s.choices) is not None:
        item["enum"] = list(names)
    bounds = {"minimum": -1 if s.knob.draw else s.knob.min, "maximum": s.knob.max}  # a step is what a slider moves by, not a rule
    item |= {k: v for k, v in bounds.items() if v is not None}
    if s.many:
        item = {"type": "array", "items": item} | ({"minItems": s.length, "maxItems": s.length} if s.length else {})
    if s.optional:
        item = {"anyOf": [item, {"type": "null"}]}
    if s.help:
        item["description"] = s.help
    if not s.required:
        item["default"] = plain(s.default)
    return item


def object_info(spec: Spec) -> dict[str, Any]:
    """The entry of `/object_info`: a file written by `safelight run` and a graph drawn in the browser name the same inputs."""
    required: dict[str, Any] = {}
    optional: dict[str, Any] = {}
    for p in spec.ports:
        (optional if p.optional else required)[p.name] = [p.socket, {"tooltip": p.help}] if p.help else [p.socket]
    for s in spec.settings:
        (optional if s.optional else required)[s.name] = _widget(s)
    return {
        "input": {"required": required, "optional": optional},
        "input_order": {"required": list(required), "optional": list(optional)},
        "is_input_list": any(p.many for p in spec.ports),
        "output": [spec.output.type_name],
        "output_is_list": [False],
        "output_name": [spec.output.type_name],
        "name": spec.name,
        "display_name": spec.name.replace("_", " ").capitalize().replace("lora", "LoRA"),
        "description": spec.summary,
        "python_module": spec.body.__module__,
        "category": f"safelight/{spec.group}",
        "output_node": False,
    }


def _widget(s: Setting) -> list[Any]:
    options: dict[str, Any] = {}
    if not s.required and s.default is not None:
        options["default"] = widget_text(s, plain(s.default))
    if s.help:
        options["tooltip"] = s.help
    if s.many or s.kind == "json":
        return ["STRING", options | {"multiline": s.kind == "str" and s.names is None}]
    if (names := s.choices) is not None:
        return ["COMBO", options | {"options": list(names)}]
    if s.kind in ("int", "float"):
        low, high = (-(2**53), 2**53) if s.kind == "int" else (-1e9, 1e9)
        options["min"] = -1 if s.knob.draw else low if s.knob.min is None else s.knob.min
        options["max"] = min(s.knob.max, WIDEST) if s.knob.max is not None else high
        options["step"] = s.knob.step or (1 if s.kind == "int" else 0.01)
        if s.knob.draw:
            options["control_after_generate"] = True
    if s.kind == "str" and s.knob.multiline:
        options["multiline"] = True
    return [WIDGETS[s.kind], options]


def widget_text(s: Setting, value: Any) -> Any:
    """What the setting's widget holds for a literal (JSON data): lists and JSON as the text that `literals.parse` reads back."""
    if value is None or not (s.many or s.kind == "json"):
        return value
    if s.many and (s.kind in ("int", "float") or s.names is not None):
        return ",".join(str(x) for x in value)
    return str(value[0]) if s.many and len(value) == 1 else json.dumps(value, ensure_ascii=False)


def markdown(spec: Spec) -> str:
    """A section of the docs: what it does, its ports, its settings with defaults and ranges, the command."""
    lines = [f"## {spec.name}", "", spec.doc.split("\nArgs:")[0].strip(), ""]
    lines += ["| input | takes | default | |", "|---|---|---|---|"]
    for p in spec.ports:
        takes = f"a list of {p.socket}" if p.many else p.socket
        lines.append(_row(p.name, takes, "none" if p.optional else "", p.help))
    for s in spec.settings:
        default = "" if s.required else "none" if s.default is None else f"`{widget_text(s, plain(s.default))}`"
        lines.append(_row(s.name, s.expects, default, s.help))
    version = "the source" if spec.version is None else str(spec.version)
    lines += ["", f"Makes {spec.output.type_name}. Version: {version}. Command: `safelight {spec.command}`.", ""]
    return "\n".join(lines)


def _row(*cells: str) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"
