"""What other people's node files may say: read as code, before anything of them runs.

A fence, no wall: it keeps out what reaches for files, processes or the network by habit. Who may write into the folder is trusted.
"""
from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = frozenset({"torch", "numpy", "PIL"})
HARMLESS = frozenset({
    "__future__", "abc", "base64", "bisect", "cmath", "collections", "colorsys", "contextlib", "copy", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "hashlib", "heapq", "itertools", "json", "logging", "math", "numbers", "operator", "random", "re",
    "statistics", "string", "struct", "textwrap", "time", "typing", "unicodedata", "uuid", "warnings", "zlib",
})
BUILTINS = frozenset({
    "__import__", "__builtins__", "__loader__", "__spec__", "breakpoint", "compile", "delattr", "eval", "exec", "exit", "getattr",
    "globals", "input", "locals", "memoryview", "open", "quit", "setattr", "vars",
})
REACHING = frozenset({
    "cpp_extension", "hub", "load_library", "load_inline", "from_file", "fromfile", "tofile", "memmap", "loadtxt", "savetxt", "genfromtxt",
    "DataSource", "ctypeslib", "f2py", "distutils", "multiprocessing", "distributed", "sys", "os", "subprocess", "importlib", "attrgetter",
    "methodcaller", "FileHandler", "open", "load", "save", "savez", "savez_compressed", "ImageShow", "ImageGrab", "show", "system", "popen",
})
"""Names below libraries that lead to files, processes or anywhere."""
DUNDERS = frozenset({"__init__", "__name__", "__doc__", "__len__", "__call__", "__file__", "__version__", "__all__", "__class__"})


def refused(source: str, name: str) -> str:
    """Why a file is not run, with its line; the empty string when nothing is against it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as e:
        return f"{name}: it is no Python: {e}"
    return next((f"{name}, line {line}: {why}" for line, why in _faults(tree)), "")


def _faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for at in ast.walk(tree):
        match at:
            case ast.Import(names=names):
                yield from ((at.lineno, why) for n in names if (why := _module(n.name)))
            case ast.ImportFrom(module=module, names=names, level=0):
                whys = [_module(str(module)), *(f"it takes {n.name} of {module}" for n in names if n.name in REACHING)]
                yield from ((at.lineno, why) for why in whys if why)
            case ast.ImportFrom(level=level) if level > 1:
                yield at.lineno, "it imports from above its own folder"
            case ast.Name(id=named) if named in BUILTINS:
                yield at.lineno, f"it uses {named}"
            case ast.Attribute(attr=named) if named in REACHING or (named.startswith("__") and named not in DUNDERS):
                yield at.lineno, f"it uses .{named}"


def _module(name: str) -> str:
    top, *below = name.split(".")
    if top not in LIBRARIES | HARMLESS:
        return f"it imports {name}; expected only torch, numpy, PIL and the harmless part of the standard library"
    return f"it imports {name}" if REACHING & set(below) else ""


def packages(folder: Path) -> dict[str, list[Path]]:
    """What the folder offers, by name: a file, or a package with all its files. ValueError when there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"nodes: there is no folder {folder}; expected one with the node classes that are allowed")
    files = {p.stem: [p] for p in sorted(folder.glob("*.py"))}
    return files | {p.parent.name: sorted(p.parent.rglob("*.py")) for p in sorted(folder.glob("*/__init__.py"))}
