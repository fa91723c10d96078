"""Check that no recipe is a copy of another: at most 60 % of the shorter one's lines may be in the longer one.

Recipes share the training loop and differ in what is trained, the batches and the loss; a copied recipe is a missing function.
Blank lines, comments, imports and docstrings do not count.
"""
from __future__ import annotations

import ast
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMIT = 0.6
SHORTEST = 15


def lines(text: str) -> Counter[str]:
    """The lines of code as `ast` writes them, so that layout and comments do not matter, with how often each occurs."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [s for s in node.body if not is_quiet(s)] or [ast.Pass()]
    return Counter(line.strip() for line in ast.unparse(tree).splitlines() if line.strip())


def is_quiet(statement: ast.stmt) -> bool:
    """Whether a statement is an import or a docstring."""
    return isinstance(statement, ast.Import | ast.ImportFrom) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant) and isinstance(statement.value.value, str)
    )


def main() -> int:
    """Exit status: 1 when two recipes are too much alike."""
    recipes = {p.name: lines(p.read_text()) for p in sorted((ROOT / "src/safelight/recipes").glob("*.py")) if p.name != "__init__.py"}
    recipes = {name: code for name, code in recipes.items() if code.total() >= SHORTEST}
    failed = False
    for (a, code_a), (b, code_b) in combinations(recipes.items(), 2):
        share = (code_a & code_b).total() / min(code_a.total(), code_b.total())
        if share > LIMIT:
            failed = True
            shorter, longer = sorted((a, b), key=lambda name: recipes[name].total())
            print(f"recipes: {share:.0%} of {shorter} is also in {longer}, {LIMIT:.0%} at most: move what they share into safelight.train")
    return failed


if __name__ == "__main__":
    sys.exit(main())
