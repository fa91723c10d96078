"""Fail when the code of a stored op has changed and nobody said what that does to its results.

`tools/op_versions.json` has each op's version and source hash (its module without the other ops, and all that it reaches by imports;
comments and docstrings do not count). After a change: raise `version=` in the declaration if results differ, so that kept ones are not
taken for new; then, or when results are the same bits, record the new hash with --accept. Ops declared `cheap` are not listed: their
source is their version.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

RECORD = Path(__file__).with_suffix(".json")
Entry = dict[str, int | str]


def now() -> dict[str, Entry]:
    """Every versioned op with its version and source hash."""
    from safelight.op import load_ops

    specs = sorted((o.spec for o in load_ops().values()), key=lambda s: s.name)
    return {s.name: {"version": s.version, "source": s.source_hash} for s in specs if s.version is not None}


def changes(old: dict[str, Entry], new: dict[str, Entry]) -> list[str]:
    """What differs, each with what to do."""
    out = [f"{name}: gone" for name in old.keys() - new.keys()]
    for name, entry in new.items():
        before = old.get(name)
        if before is None:
            out.append(f"{name}: new, version {entry['version']}")
        elif int(entry["version"]) < int(before["version"]):
            out.append(f"{name}: version went back from {before['version']} to {entry['version']}; kept results of then would count as new")
        elif entry["version"] != before["version"]:
            out.append(f"{name}: version {before['version']} is now {entry['version']}")
        elif entry["source"] != before["source"]:
            out.append(f"{name}: its code changed, its version is still {entry['version']}; raise it if results differ")
    return sorted(out)


def main() -> int:
    """Exit status: 1 when something differs and --accept was not given."""
    new = now()
    old = json.loads(RECORD.read_text()) if RECORD.is_file() else {}
    found = changes(old, new)
    if "--accept" in sys.argv[1:]:
        RECORD.write_text(json.dumps(new, indent=1) + "\n")
        print("\n".join(f"recorded: {line}" for line in found) or "op versions: nothing to record")
        return 0
    if found:
        print("\n".join(found))
        print("then run: python tools/op_versions.py --accept")
    else:
        print(f"op versions: {len(new)} ops are as recorded")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
