"""Which of ComfyUI's node classes are here, and whether they say the same of themselves.

    python -m bench.parity.nodes object_info.json [--write docs/nodes.md]

`object_info.json` is what a ComfyUI server answers to GET /object_info. Exit status 1 when a class that is here says something else than
ComfyUI's of its sockets, ranges, defaults or outputs. With --write the table of docs/nodes.md is made anew.
"""
from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench.parity.absent import EXTRA, MEANT, SCOPE, WHY
from safelight.comfy import NODES, Places, object_info
from safelight.folders import Folders

Json = Mapping[str, Any]
MARK = "<!-- the table below is written by bench/parity/nodes.py -->"
FREE = ("tooltip", "placeholder", "multiselect", "image_folder", "remote", "default_input")
"""Options that only decorate."""


def options(spec: list[Any]) -> tuple[str, Any, dict[str, Any]]:
    """Type, names of a list, and the other options; ComfyUI has two forms of lists and leaves out what the editor assumes."""
    told = dict(spec[1]) if len(spec) > 1 else {}
    names = spec[0] if isinstance(spec[0], list) else told.pop("options", None)
    kind = "COMBO" if names is not None else str(spec[0])
    usual = {"step": 1, "default": 0} if kind == "INT" else {"default": "", "multiline": False} if kind == "STRING" else {}
    usual = {"default": 0.0, "step": 0.01} if kind == "FLOAT" else {"default": False} if kind == "BOOLEAN" else usual
    kept = {k: v for k, v in told.items() if k not in FREE and not (k in usual and v == usual[k])}
    return kind, names, kept


def differences(ours: Json, theirs: Json) -> Iterator[str]:
    """What two entries of /object_info say otherwise, but for words, order of modules and names of files."""
    for field in ("output", "output_is_list", "output_name", "output_node", "category"):
        if ours.get(field) != theirs.get(field):
            yield f"{field} {ours.get(field)} for {theirs.get(field)}"
    for group in ("required", "optional"):
        mine, other = ours["input"].get(group, {}), theirs["input"].get(group, {})
        if list(mine) != list(other):
            yield f"{group} {list(mine)} for {list(other)}"
        for name in mine.keys() & other.keys():
            (a, names, more), (b, known, rest) = options(mine[name]), options(other[name])
            listed = names != known and "name" not in name and name not in ("image", "model_path")
            if a != b or more != rest or listed:
                yield f"{name} {a} {more} {names if listed else ''} for {b} {rest} {known if listed else ''}"


def files(theirs: Mapping[str, Json]) -> dict[str, list[str]]:
    """Classes by the file of ComfyUI's that they are in, without those of services."""
    found = defaultdict(list)
    for name, entry in {**theirs, **{n: {"python_module": m} for n, m in EXTRA.items()}}.items():
        module = str(entry["python_module"])
        if not module.startswith(("comfy_api_nodes", "custom_nodes")):
            found[module.removeprefix("comfy_extras.")].append(name)
    return dict(sorted(found.items(), key=lambda item: (item[0] != "nodes", item[0])))


def table(theirs: Mapping[str, Json]) -> list[str]:
    """A row a file: how many classes are here, which, and why the others are not."""
    rows = ["| file | here | classes here | not here |", "|---|---|---|---|"]
    for module, names in files(theirs).items():
        here, absent = [n for n in names if n in NODES], [n for n in names if n not in NODES]
        why = defaultdict(list)
        for name in absent:
            why[WHY.get(name) or SCOPE.get(module, "no op here does it")].append(f"`{name}`")
        told = "; ".join(f"{', '.join(n)}: {reason}" for reason, n in why.items())
        rows.append(f"| {module} | {len(here)} of {len(names)} | {', '.join(f'`{n}`' for n in here)} | {told} |")
    return rows


def main() -> int:
    """Print what differs, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("server", type=Path)
    parser.add_argument("--write", type=Path)
    told = parser.parse_args()
    theirs = json.loads(told.server.read_text("utf-8"))
    places = Places(Folders({}), Path("input"), Path("output"))
    ours = object_info(places, {})
    wrong = [f"{name}: {what}" for name in ours if name in theirs for what in differences(ours[name], theirs[name])]
    wrong = [line for line in wrong if not any(line.startswith(meant) for meant in MEANT)]
    lines = table(theirs)
    core = [name for names in files(theirs).values() for name in names]
    beyond = ", ".join(f"`{n}`" for n in sorted(set(ours) - set(core)))
    here = len(set(ours) & set(core))
    count = f"{here} of the {len(core)} classes that come with ComfyUI are here, Kolors' own ({beyond}), and every op."
    print("\n".join([*wrong, count]))
    if told.write:
        head = told.write.read_text("utf-8").partition(MARK)[0]
        told.write.write_text("\n".join([head.rstrip(), "", MARK, "", count, "", *lines, ""]), encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
