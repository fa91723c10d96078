"""The hash of an op's code: what makes the results of a cheap op old when its source changes."""
from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from safelight.values import digest


def source_hash(fn: Callable[..., Any]) -> str:
    """Digest of the function's module and of the modules of the same package that the function's body imports.

    Comments, formatting and docstrings do not count. A function without a source file (typed at a prompt) hashes its bytecode.
    """
    file = inspect.getsourcefile(fn)
    if file is None or not Path(file).is_file():
        code = fn.__code__
        return digest(code.co_code, repr([c for c in code.co_consts if not inspect.iscode(c)]))
    return digest(*[part for path in (Path(file), *sorted(imported(fn))) for part in (path.name, normal_form(path))])


@cache
def normal_form(path: Path) -> str:
    """The file's syntax tree as text, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def imported(fn: Callable[..., Any]) -> set[Path]:
    """Source files of the function's own top package that its body imports."""
    top = fn.__module__.partition(".")[0]
    root = getattr(sys.modules.get(top), "__path__", None)
    if root is None:
        return set()
    node = _definition(fn)
    return set() if node is None else {p for name in _names(node, top) if (p := _file(Path(root[0]), name)) is not None}


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
