"""The hash of an op's code: what makes the results of a cheap op old when its source changes."""
from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safelight.values import digest


def source_hash(fn: Callable[..., Any]) -> str:
    """Digest of the function's module, without the other ops in it, and of the modules of the same package that the body imports.

    Comments, formatting and docstrings do not count. A function without a source file (typed at a prompt) hashes its bytecode.
    """
    file = inspect.getsourcefile(fn)
    if file is None or not Path(file).is_file():
        code = fn.__code__
        return digest(code.co_code, repr([c for c in code.co_consts if not inspect.iscode(c)]))
    others = [normal_form(path) for path in sorted(imported(fn))]
    return digest(normal_form(Path(file), only=fn.__name__), *others)


def normal_form(path: Path, only: str = "") -> str:
    """The file's code as text, without docstrings and comments; with `only`, without the ops of other names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if only:
        tree.body = [n for n in tree.body if not (isinstance(n, ast.FunctionDef) and n.name != only and _is_op(n))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def _is_op(node: ast.FunctionDef) -> bool:
    called = [d.func for d in node.decorator_list if isinstance(d, ast.Call)]
    return any((isinstance(f, ast.Name) and f.id == "op") or (isinstance(f, ast.Attribute) and f.attr == "op") for f in called)


def imported(fn: Callable[..., Any]) -> set[Path]:
    """Source files of the function's own top package that its body imports."""
    top = fn.__module__.partition(".")[0]
    root = getattr(sys.modules.get(top), "__path__", None)
    node = _definition(fn)
    if root is None or node is None:
        return set()
    return {path for name in _names(node, top) if (path := _file(Path(root[0]), name)) is not None}


def _definition(fn: Callable[..., Any]) -> ast.AST | None:
    tree = ast.parse(Path(inspect.getsourcefile(fn) or "").read_text(encoding="utf-8"))
    found = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == fn.__name__]
    return found[0] if found else None


def _names(node: ast.AST, top: str) -> Iterator[str]:
    for n in ast.walk(node):
        if isinstance(n, ast.ImportFrom) and n.module and n.module.partition(".")[0] == top:
            yield n.module
            yield from (f"{n.module}.{a.name}" for a in n.names)
        elif isinstance(n, ast.Import):
            yield from (a.name for a in n.names if a.name.partition(".")[0] == top)


def _file(root: Path, module: str) -> Path | None:
    stem = root.joinpath(*module.split(".")[1:])
    for path in (stem.with_suffix(".py"), stem / "__init__.py"):
        if path.is_file() and path != root / "__init__.py":
            return path
    return None
