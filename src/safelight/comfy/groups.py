"""Group nodes, the editor's older form of subgraphs: a list of nodes under `extra.groupNodes`, told apart by their place in it."""
from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def as_subgraph(node: Json, group: Json, info: Mapping[str, Json]) -> tuple[Json, Json]:
    """The instance and its inside as those of a subgraph. The inside's nodes have their places as ids. The instance's sockets are those
    that no link inside fills, its widgets those of the nodes in turn, its outputs those that no link takes or that are marked external."""
    links = [link[:4] for link in group.get("links") or () if link[0] is not None and link[2] is not None]
    filled, taken = {(link[2], link[3]) for link in links}, {(link[0], link[1]) for link in links}
    shown = {(one[0], one[1]) for one in group.get("external") or ()}
    nodes = list(_with_values(node, group, info))
    slots = [(i, at) for i, n in enumerate(nodes) for at in range(len(n.get("inputs") or ())) if (i, at) not in filled]
    ends = [(i, at) for i, n in enumerate(nodes) for at in range(_outputs(n, info)) if (i, at) not in taken or (i, at) in shown]
    drawn = [
        *((a, b, c, d) for a, b, c, d in links),
        *((-10, k, i, at) for k, (i, at) in enumerate(slots)),
        *((i, at, -20, k) for k, (i, at) in enumerate(ends)),
    ]
    into = {link[2:]: number for number, link in enumerate(drawn)}
    for i, inner in enumerate(nodes):
        inner["inputs"] = [{**given, "link": into[i, at]} for at, given in enumerate(inner["inputs"])]
    shape = {
        "nodes": nodes, "links": [[number, *link] for number, link in enumerate(drawn)],
        "inputs": [{"name": str(k)} for k in range(len(slots))],
    }
    sockets = [{**i, "name": str(k)} for k, i in enumerate(i for i in node.get("inputs") or () if not _plain(i))]
    return {**node, "inputs": sockets, "widgets_values": []}, shape


def _plain(given: Json) -> bool:
    """Whether it is the socket of a widget that nothing is linked to: newer editors list those too."""
    return bool(given.get("widget")) and given.get("link") is None


def _outputs(node: Json, info: Mapping[str, Json]) -> int:
    known = info.get(str(node["type"]))
    return len(known["output"]) if known else len(node.get("outputs") or ())


def _with_values(node: Json, group: Json, info: Mapping[str, Json]) -> Iterator[dict[str, Any]]:
    """The group's nodes with the values that the instance's widgets hold."""
    from safelight.comfy.convert import widget_inputs

    held = list(node.get("widgets_values") or ())
    for place, inner in enumerate(group["nodes"]):
        known = info.get(str(inner["type"]))
        inputs = [i for i in inner.get("inputs") or () if not _plain(i)]
        sockets = {i["name"] for i in inputs if i.get("widget")}
        values = list(inner.get("widgets_values") or ())
        at = 0
        for name, _, extra in widget_inputs(known) if known else ():
            if name not in sockets and held:
                values[at : at + 1 + extra] = held[: 1 + extra]
                del held[: 1 + extra]
            at += 1 + extra
        yield {**inner, "id": place, "inputs": inputs, "widgets_values": values}
