"""Check the house numbers that ruff does not know: file and function lengths. Prints the ninth decile of the functions.

A file over 400 lines is mentioned, over 600 fails; a function over 80 lines fails. Test files may be twice as long.
"""
from __future__ import annotations

import ast
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLACES = ("src", "pretraining", "tools", "bench", "tests")
FILE_WARN, FILE_FAIL, FUNCTION_FAIL = 400, 600, 80


def functions(tree: ast.Module) -> Iterator[tuple[str, int, int]]:
    """(name, first line, number of lines) of every function and method; decorators do not count."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1


def main() -> int:
    """Exit status: 1 when something is too long."""
    failures: list[str] = []
    lengths: list[int] = []
    for path in sorted(p for place in PLACES for p in (ROOT / place).rglob("*.py")):
        where, text = path.relative_to(ROOT), path.read_text()
        slack = 2 if where.parts[0] == "tests" else 1
        lines = text.count("\n")
        if lines > FILE_FAIL * slack:
            failures.append(f"{where}: {lines} lines, {FILE_FAIL * slack} at most: split it by noun")
        elif lines > FILE_WARN * slack:
            print(f"note: {where} has {lines} lines")
        for name, line, length in functions(ast.parse(text)):
            if where.parts[0] == "src":
                lengths.append(length)
            if length > FUNCTION_FAIL * slack:
                failures.append(f"{where}:{line}: {name} has {length} lines, {FUNCTION_FAIL * slack} at most")
    if len(lengths) > 1:
        decile = statistics.quantiles(lengths, n=10)[-1]
        print(f"sizes: {len(lengths)} functions in src, ninth decile {decile:.0f} lines (aim 35), longest {max(lengths)}")
    print("\n".join(failures), end="\n" if failures else "")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
