"""The pages must be true: names, keywords and values in the examples exist, links lead somewhere, everything public is mentioned."""
from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import safelight
from safelight import engine, literals
from safelight.op import Op, load_ops

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, code) of every fenced block of that language."""
    for page in PAGES:
        for block in FENCE.finditer(page.read_text()):
            if block[2] == language:
                yield str(page.relative_to(ROOT)), block[3]


PYTHON = list(blocks("python"))
SHELL = list(blocks("sh"))


def name_of(code: tuple[str, str]) -> str:
    """A test id: the page and the block's first words."""
    return f"{code[0]}: {code[1].strip().splitlines()[0][:40]}"


def calls(tree: ast.Module) -> Iterator[tuple[ast.Call, Op[..., object]]]:
    """Every `sl.OP(...)` in the code with its op."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") == "sl":
            op = load_ops().get(node.func.attr)
            if op is not None:
                yield node, op


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_python_names_exist(block: tuple[str, str]) -> None:
    for node in ast.walk(ast.parse(block[1])):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "sl":
            assert node.attr in safelight.__all__, f"sl.{node.attr} is not public"


@pytest.mark.parametrize("block", PYTHON, ids=name_of)
def test_python_calls_fit_the_ops(block: tuple[str, str]) -> None:
    for node, op in calls(ast.parse(block[1])):
        spec = op.spec
        assert len(node.args) <= spec.positional, f"{spec.name} takes {spec.positional} positional arguments"
        for word in node.keywords:
            assert word.arg in {*spec.order, *spec.setting}, f"{spec.name} has no {word.arg}"
            if word.arg in spec.setting and (given := constant(word.value)) is not None:
                literals.check(spec.name, spec.setting[word.arg], given)


def constant(node: ast.expr) -> object:
    """The literal that an expression is, or None."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def commands(text: str) -> Iterator[list[str]]:
    """The words of every `safelight ...` line; a backslash at the end continues it."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line.removeprefix("$ "), comments=True)
        if words[:1] == ["safelight"]:
            yield words[1:]


@pytest.mark.parametrize("block", SHELL, ids=name_of)
def test_commands_and_their_options_exist(block: tuple[str, str]) -> None:
    for words in commands(block[1]):
        plain = [w for w in words if not w.startswith("-")]
        if not plain:
            continue
        known = help_of(plain[:2]) or help_of(plain[:1])
        assert known, f"safelight {plain[0]} is no command"
        for option in (w.partition("=")[0] for w in words if re.match(r"--[a-z]", w)):
            assert re.search(rf"{option}\b", known), f"safelight {plain[0]} has no {option}"


@pytest.mark.parametrize("block", [*blocks("yaml"), *blocks("json")], ids=name_of)
def test_graphs_in_the_pages_have_no_problem(block: tuple[str, str]) -> None:
    assert [str(p) for p in engine.check(yaml.safe_load(block[1]))] == []


def help_of(words: list[str]) -> str:
    """The help page of a command, or nothing when there is no such command."""
    if len(words) == 2 and words[0] not in ("store", "dataset", "compat"):
        return ""
    code = "import sys; from safelight.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, *words, "--help"], capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(FENCE.sub("", page.read_text())):
        path = target.partition("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            assert (page.parent / path).exists(), f"{page.name} points at {target}"


def test_every_op_is_described() -> None:
    text = (ROOT / "docs" / "ops.md").read_text()
    missing = [name for name in load_ops() if f"`{name}`" not in text and f"# {name}" not in text]
    assert load_ops() and not missing


def test_every_public_name_is_described() -> None:
    text = (ROOT / "docs" / "python.md").read_text()
    assert [n for n in safelight.__all__ if f"`{n}`" not in text and f"sl.{n}" not in text] == []


def test_every_decision_is_listed() -> None:
    listed = (ROOT / "docs" / "decisions" / "index.md").read_text()
    assert [p.name for p in (ROOT / "docs" / "decisions").glob("[0-9]*.md") if f"({p.name})" not in listed] == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "index.html").is_file()
