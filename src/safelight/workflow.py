"""A graph drawn for an editor: ComfyUI's workflow JSON, made from the API form and the ops' declarations."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safelight.op import OPS
from safelight.schema import widget_text
from safelight.spec import Setting, Spec
from safelight.values import canonical, digest

WIDE, APART, LINE, HEAD = 320, 80, 26, 60  # pixels: a node, between columns, a row of a node, its title


def workflow(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Nodes in columns by distance from the sources. Nodes whose op is not installed are drawn with what the graph says of them."""
    numbers = {key: i + 1 for i, key in enumerate(graph)}
    links: list[list[Any]] = []
    nodes = [_node(key, entry, numbers, links) for key, entry in graph.items()]
    _lay_out(nodes, links)
    for node in nodes:
        node["outputs"][0]["links"] = [link[0] for link in links if link[1] == node["id"]]
    return {
        "id": digest("workflow", canonical(graph)), "revision": 0, "last_node_id": len(nodes), "last_link_id": len(links), "nodes": nodes,
        "links": links, "groups": [], "config": {}, "extra": {}, "version": 0.4,
    }


def _node(key: str, entry: Mapping[str, Any], numbers: Mapping[str, int], links: list[list[Any]]) -> dict[str, Any]:
    name, given = entry["class_type"], entry["inputs"]
    op = OPS.get(name)
    spec = op.spec if op is not None else None
    linked = {k: v for k, v in given.items() if _sources(v, numbers)}
    sockets = [p.name for p in spec.ports] if spec else list(linked)
    inputs: list[dict[str, Any]] = []
    for socket in sockets:
        kind = spec.port[socket].socket if spec else "*"
        sources = _sources(given.get(socket), numbers)
        for i, source in enumerate(sources):  # a socket takes one link: more of a list go to `images_2` and so on
            links.append([len(links) + 1, numbers[source], 0, numbers[key], len(inputs), kind])
            inputs.append({"name": f"{socket}_{i + 1}" if i else socket, "type": kind, "link": links[-1][0]})
        if not sources:
            inputs.append({"name": socket, "type": kind, "link": None})
    kind = spec.output.type_name if spec else "*"
    size = [WIDE, HEAD + LINE * max(1, len(given))]
    return {
        "id": numbers[key], "type": name, "pos": [0, 0], "size": size, "flags": {}, "order": 0, "mode": 0, "inputs": inputs,
        "outputs": [{"name": kind, "type": kind, "links": [], "slot_index": 0}],
        "properties": {"Node name for S&R": name},
        "widgets_values": _widgets(spec, given) if spec else [v for k, v in given.items() if k not in linked],
        "widgets_values_named": {s.name: widget_text(s, given[s.name]) for s in spec.settings if s.name in given} if spec else {},
    }


def _sources(given: Any, numbers: Mapping[str, int]) -> list[str]:
    """The nodes that an input is linked to."""
    if not isinstance(given, list):
        return []
    if len(given) == 2 and isinstance(given[0], str) and given[0] in numbers:
        return [given[0]]
    return [g[0] for g in given if isinstance(g, list) and g and g[0] in numbers]


def _widgets(spec: Spec, given: Mapping[str, Any]) -> list[Any]:
    out: list[Any] = []
    ordered: list[Setting] = [*(s for s in spec.settings if not s.optional), *(s for s in spec.settings if s.optional)]
    for s in ordered:
        out.append(widget_text(s, given[s.name]) if s.name in given else None)
        if s.knob.draw and not s.many:
            out.append("fixed")  # the editor's own widget after a seed
    return out


def _lay_out(nodes: list[dict[str, Any]], links: list[list[Any]]) -> None:
    column = {node["id"]: 0 for node in nodes}
    for node in nodes:  # parents come first
        column[node["id"]] = max((column[link[1]] + 1 for link in links if link[3] == node["id"]), default=0)
    below: dict[int, int] = {}
    for order, node in enumerate(nodes):
        at = column[node["id"]]
        node["pos"], node["order"] = [at * (WIDE + APART), below.get(at, 0)], order
        below[at] = below.get(at, 0) + node["size"][1] + APART
