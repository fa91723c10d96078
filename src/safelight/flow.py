"""Graphs in files: JSON, YAML, or a picture that a graph made."""
from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safelight import embed, engine
from safelight.graph import with_settings
from safelight.op import load_ops
from safelight.progress import watch
from safelight.store import current
from safelight.values import Value


def read_flow(path: str | Path, *, editors: bool = False) -> dict[str, Any]:
    """The graph in a .json or .yaml file, in the metadata of a picture, or (`-`) on standard input. ValueError when there is none, or when
    it is an editor's workflow and `editors` does not allow for one."""
    file = Path(path).expanduser()
    if str(path) == "-":
        text = sys.stdin.read()
    elif file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        text = embed.texts_of(file).get("prompt", "")
        if not text:
            raise ValueError(f"run: {path}: no graph in this picture; expected one that Safelight or ComfyUI saved with its graph")
    else:
        text = file.read_text(encoding="utf-8")
    return _graph(text, str(path), editors=editors)


def _graph(text: str, where: str, *, editors: bool) -> dict[str, Any]:
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else _yaml(text)
    except ValueError as e:
        raise ValueError(f"run: {where}: neither JSON nor YAML: {e}") from e
    if not isinstance(data, dict) or not data:
        raise ValueError(f"run: {where}: got {type(data).__name__}, expected nodes by name: `name: {{op: ..., ...}}`")
    if isinstance(data.get("nodes"), list) and "links" in data and not editors:
        raise ValueError(f"run: {where}: an editor's workflow, expected the API form; `safelight run` takes both")
    return data


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as e:
        raise ValueError(str(e)) from e


def run(flow: Mapping[str, Any] | str | Path, *, sets: Sequence[str] = (), targets: Sequence[str] | None = None) -> dict[str, Value]:
    """Run a graph, given as data or as a file, and return values by node id: the targets', or those that nothing takes a value from.

    sets: `id.knob=value` or `op.knob=value`, as on the command line. ValueError lists all that is wrong with the graph.
    """
    ops = load_ops()
    graph = read_flow(flow) if isinstance(flow, str | Path) else flow
    store = current()
    store.hold()
    return watch(engine.run(with_settings(graph, sets, ops), store, targets, ops=ops))
