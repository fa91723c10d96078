"""The house itself: what may be imported where, what the pages must say, and that everything public is documented."""
from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import safelight
from safelight.op import Op

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "safelight"
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "peft", "accelerate", "scipy"}
LEFT = ("values", "events", "spec", "op", "engine", "store", "files", "cli", "ops", "comfy", "server")
"""Packages and modules that must be importable without a network library; those that do not exist yet are passed over."""

RUN = """
import sys
sys.argv = ["safelight", *{args}]
from safelight.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def loaded(code: str) -> set[str]:
    """Top-level packages in sys.modules after the code ran in an interpreter of its own."""
    tail = "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + tail], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def modules() -> Iterator[str]:
    """Every module of the package by its full name."""
    return (m.name for m in pkgutil.walk_packages([str(SOURCE)], "safelight."))


def exists(name: str) -> bool:
    """Whether the package has this part, as a module or as a package with an __init__."""
    spec = importlib.util.find_spec(f"safelight.{name}")
    return spec is not None and spec.origin is not None


def test_import_is_light() -> None:
    assert not HEAVY & loaded("import safelight")


@pytest.mark.parametrize("args", [["--help"], ["ops"], ["generate", "--help"], ["--version"]], ids=" ".join)
def test_the_command_line_is_light(args: list[str]) -> None:
    assert not HEAVY & loaded(RUN.format(args=args))


def test_the_help_page_needs_no_arrays() -> None:
    assert not (HEAVY | {"numpy", "PIL", "yaml"}) & loaded(RUN.format(args=["--help"]))


@pytest.mark.parametrize("name", [n for n in LEFT if exists(n)])
def test_the_left_tower_is_light(name: str) -> None:
    below = [m for m in modules() if m == f"safelight.{name}" or m.startswith(f"safelight.{name}.")]
    assert below
    assert not HEAVY & loaded("\n".join(f"import {m}" for m in below))


def test_torchvision_is_never_imported() -> None:
    everything = [m for m in modules() if m != "safelight.__main__"]
    assert "torchvision" not in loaded("\n".join(f"import {m}" for m in everything))


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name not in ("dev", "docs", "peers") for line in lines]
    lines = [*project["dependencies"], *extras]
    declared = {re.split(r"[<>=~!\[; ]", line)[0].lower() for line in lines}
    owners = packages_distributions()
    for path in SOURCE.rglob("*.py"):
        for name in imported(ast.parse(path.read_text())) - sys.stdlib_module_names - {"safelight"}:
            here = {dist.lower().replace("_", "-") for dist in owners.get(name, [])}
            assert declared & (here or {name, f"{name}-cpu"}), f"{path.name} imports {name}"  # an extra may not be installed


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of all that a module imports, inside functions too."""
    names = [a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names]
    names += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module]
    return {name.partition(".")[0] for name in names}


def test_the_two_commands_stand_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    assert "make demo" in readme and "make test" in readme


def public(node: ast.Module | ast.ClassDef, where: str) -> Iterator[tuple[str, Documented]]:
    """The module or class itself and everything in it whose name does not begin with an underscore."""
    yield where, node
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not child.name.startswith("_"):
            yield f"{where}.{child.name}", child
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public(child, f"{where}.{child.name}")


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE)))
def test_everything_public_says_what_it_is(path: Path) -> None:
    silent = [where for where, node in public(ast.parse(path.read_text()), path.stem) if not ast.get_docstring(node) and not overload(node)]
    assert not silent


def overload(node: ast.AST) -> bool:
    """Whether a function is only an overload of the documented one."""
    return isinstance(node, ast.FunctionDef) and any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


def test_every_public_name_exists_and_is_described() -> None:
    assert safelight.__all__
    things = {name: getattr(safelight, name) for name in safelight.__all__}
    assert not [n for n, thing in things.items() if inspect.ismodule(thing)], "hidden by a module of the same name"
    described = [n for n, thing in things.items() if inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, Op)]
    assert len(described) > len(things) / 2
    assert [n for n in described if not (things[n].__doc__ or "").strip()] == []


def test_the_version_is_the_packages() -> None:
    from importlib.metadata import version

    assert safelight.__version__ == version("safelight")
