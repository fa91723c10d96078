"""Write requirements/lock.txt: the exact version of everything that the project needs, as installed in this interpreter.

The walk starts at pyproject.toml (build system, dependencies, and the extras named below) and follows each installed package's own
requirements, so what else lies in the environment does not reach the lock. Local version labels (`2.13.0+cpu`) are dropped: the same
lock serves CPU and CUDA machines, and for that reason carries no hashes. `make lock` runs this in a fresh environment.
"""
from __future__ import annotations

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
EXTRAS = ("dev", "docs", "onnx", "parquet", "render", "serve")
HEADER = "# Exact versions of everything, made by `make lock` with Python {}.{}; torch from any source of that version will do.\n"


def wanted() -> list[Requirement]:
    """What pyproject.toml asks for."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = data["project"]["optional-dependencies"]
    lines = [*data["build-system"]["requires"], *data["project"]["dependencies"], *(line for name in EXTRAS for line in extras[name])]
    return [Requirement(line) for line in lines]


def closure(roots: list[Requirement]) -> dict[str, str]:
    """Package name -> installed public version, for the roots and all they need. SystemExit names what is missing."""
    found: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(roots)
    while todo:
        need = todo.pop()
        name, extras = canonicalize_name(need.name), frozenset(need.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            dist = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"lock: {name} is needed but not installed; run `make lock`, which installs it in a fresh environment first")
        if not need.specifier.contains(dist.version, prereleases=True):
            sys.exit(f"lock: {name} {dist.version} is installed, but {need} is needed")
        found[name] = dist.version.partition("+")[0]
        todo += [r for r in map(Requirement, dist.requires or []) if applies(r, extras)]
    return found


def applies(need: Requirement, extras: frozenset[str]) -> bool:
    """Whether a requirement's marker holds here, for the package itself or one of its extras."""
    return need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *extras))


def main() -> None:
    """Write the lock and say how many packages it holds; with --check, only say whether it is what this environment would give."""
    lines = [f"{name}=={version}\n" for name, version in sorted(closure(wanted()).items())]
    if "--check" in sys.argv[1:]:
        known = LOCK.read_text().splitlines(keepends=True)[1:]
        strange = sorted(set(known) ^ set(lines))
        if strange:
            sys.exit(f"lock: requirements/lock.txt and this environment differ: {', '.join(s.strip() for s in strange)}; run `make lock`")
        return
    LOCK.write_text(HEADER.format(*sys.version_info[:2]) + "".join(lines))
    print(f"{LOCK.relative_to(ROOT)}: {len(lines)} packages")


if __name__ == "__main__":
    main()
