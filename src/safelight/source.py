"""The hash of an op's code: what makes the results of a cheap op old when its source changes."""
from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

from safelight.values import digest

PLUMBING = frozenset({
    "values", "events", "spec", "op", "literals", "schema", "signature", "binding", "codec", "disk", "locks", "store", "sweep", "lineage",
    "graph", "workflow", "engine", "progress", "files", "flow", "source", "cli",
})
"""Modules that carry values and results about and have no part in what an op computes."""


def source_hash(fn: Callable[..., Any]) -> str:
    """Digest of the function's module, without the other ops in it, and of every module of its package that the body reaches by imports.

    Comments, formatting and docstrings do not count; neither do the modules in `PLUMBING`. A function without a source file (typed at a
    prompt) hashes its bytecode.
    """
    file = inspect.getsourcefile(fn)
    if file is None or not Path(file).is_file():
        code = fn.__code__
        return digest(code.co_code, repr([c for c in code.co_consts if not inspect.iscode(c)]))
    return digest(normal_form(Path(file), only=fn.__name__), *[normal_form(path) for path in sorted(reached(fn))])


def normal_form(path: Path, only: str = "") -> str:
    """The file's code as text, without docstrings and comments; with `only`, without the ops of other names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))  # a tree of its own: it is cut up below
    if only:
        tree.body = [n for n in tree.body if not (_is_op(n) and n.name != only)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _is_op(node: ast.AST) -> TypeGuard[ast.FunctionDef]:
    if not isinstance(node, ast.FunctionDef):
        return False
    called = [d.func for d in node.decorator_list if isinstance(d, ast.Call)]
    return any((isinstance(f, ast.Name) and f.id == "op") or (isinstance(f, ast.Attribute) and f.attr == "op") for f in called)


def reached(fn: Callable[..., Any]) -> set[Path]:
    """Source files of the function's own top package that its module and its body import, and those import, and so on.

    A package that is imported counts with all its modules: it may be a registry that finds them by itself.
    """
    top = fn.__module__.partition(".")[0]
    root = getattr(sys.modules.get(top), "__path__", None)
    node = _definition(fn)
    if root is None or node is None:
        return set()
    own = Path(inspect.getsourcefile(fn) or "")
    found: set[Path] = set()
    names = {*_names(node, top), *_names(ast.Module(body=[n for n in _tree(own).body if not _is_op(n)], type_ignores=[]), top)}
    while names:
        fresh = {path for name in names for path in _files(Path(root[0]), name)} - found - {own}
        found |= fresh
        names = {name for path in fresh for name in _names(_tree(path), top)}
    return found


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _definition(fn: Callable[..., Any]) -> ast.AST | None:
    found = [n for n in ast.walk(_tree(Path(inspect.getsourcefile(fn) or ""))) if isinstance(n, ast.FunctionDef) and n.name == fn.__name__]
    return found[0] if found else None


def _names(node: ast.AST, top: str) -> Iterator[str]:
    """Modules of the package that the code imports, wherever in it; what only type checkers import is left out."""
    todo = [node]
    while todo:
        n = todo.pop()
        if isinstance(n, ast.If) and isinstance(n.test, ast.Name) and n.test.id == "TYPE_CHECKING":
            continue
        if isinstance(n, ast.ImportFrom) and n.module and n.module.partition(".")[0] == top:
            yield n.module
            yield from (f"{n.module}.{a.name}" for a in n.names)
        elif isinstance(n, ast.Import):
            yield from (a.name for a in n.names if a.name.partition(".")[0] == top)
        todo += ast.iter_child_nodes(n)


def _files(root: Path, module: str) -> Iterator[Path]:
    parts = module.split(".")[1:]
    stem = root.joinpath(*parts)
    if not parts or parts[0] in PLUMBING:
        return
    if stem.with_suffix(".py").is_file():
        yield stem.with_suffix(".py")
    elif (stem / "__init__.py").is_file():
        yield from stem.glob("*.py")
