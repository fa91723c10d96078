"""Write the generated tables of README.md, CONTRIBUTING.md and docs/ in place, between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.

Every table is read from what the code declares (ops, registries, the command line), so it cannot say something else. With --check
nothing is written, and pages that are out of date are named.
"""
from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- begin: (?P<name>[a-z-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
# The help pages are as wide as a page of docs and have no colours, wherever this runs.
os.environ |= {"COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1", "TERM": "dumb"}


def pages() -> list[Path]:
    """The files that may hold generated blocks."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table; bars inside cells are escaped."""
    lines = [list(head), *([str(c).replace("|", "\\|").replace("\n", " ") for c in row] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def sentence(thing: object) -> str:
    """The first paragraph of the docstring as one line, without paper numbers; those have a column of their own."""
    text = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ").strip()
    return re.sub(r"[,;]? ?\(?arXiv:\d{4}\.\d{4,5}\)?", "", text).replace(" ()", "").strip()


def papers(thing: object) -> str:
    """Links to the papers that the docstring names."""
    return ", ".join(f"[{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(ARXIV.findall(inspect.getdoc(thing) or "")))


def registry(entries: Mapping[str, Any], what: str) -> str:
    """A table of a registry: name, what it does, papers."""
    rows = [[f"`{name}`", sentence(entry), papers(entry)] for name, entry in entries.items()]
    if any(row[2] for row in rows):
        return table([what, "what it does", "paper"], rows)
    return table([what, "what it does"], [row[:2] for row in rows])


def ops() -> str:
    """Every op by group, as its own declaration says it."""
    from safelight.op import load_ops

    specs = sorted((o.spec for o in load_ops().values()), key=lambda s: s.group)
    parts = []
    for group, members in groupby(specs, key=lambda s: s.group):
        parts.append(f"\n## {group.capitalize()}\n")
        parts += ["\n" + re.sub(r"^#", "##", s.markdown().strip(), count=1) + "\n" for s in members]
    return "".join(parts) + "\n"


def op_list() -> str:
    """One line an op."""
    from safelight.op import load_ops

    specs = sorted((o.spec for o in load_ops().values()), key=lambda s: s.group)
    return table(["op", "group", "gives", "what it does"], [[f"`{s.name}`", s.group, f"`{s.output.__name__}`", s.summary] for s in specs])


def samplers() -> str:
    """The sampler registry."""
    from safelight.sampling import SAMPLERS

    return registry(SAMPLERS, "sampler")


def schedules() -> str:
    """The schedule registry."""
    from safelight.sampling import SCHEDULES

    return registry(SCHEDULES, "schedule")


def guidances() -> str:
    """The guidance registry."""
    from safelight.sampling import GUIDANCES

    return registry(GUIDANCES, "guidance")


def metrics() -> str:
    """The metric registry."""
    from safelight.score import METRICS

    return registry(METRICS, "metric")


def helped(args: list[str]) -> str:
    """What `safelight ARGS --help` prints."""
    from safelight.cli import main

    out, argv = io.StringIO(), sys.argv
    sys.argv = ["safelight", *args, "--help"]
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main()
    finally:
        sys.argv = argv
    return "\n".join(line.rstrip() for line in out.getvalue().strip().splitlines())


def demo_sheet() -> str:
    """The demo's picture, once there is one."""
    picture = ROOT / "docs" / "assets" / "demo-sheet.png"
    return f"![Before and after training, from `make demo`]({picture.relative_to(ROOT)})\n" if picture.is_file() else ""


def make_list() -> str:
    """The Makefile's targets with their own words."""
    targets = re.findall(r"^([a-z-]+):.*?## (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return table(["command", "what it does"], [[f"`make {name}`", words] for name, words in targets])


TABLES: dict[str, Callable[[], str]] = {
    "ops": ops, "op-list": op_list, "samplers": samplers, "schedules": schedules, "guidances": guidances, "metrics": metrics,
    "make-list": make_list, "demo-sheet": demo_sheet,
}


def rewritten(text: str, where: str) -> str:
    """The page with every block made anew. SystemExit when a block's name is unknown."""

    def fill(block: re.Match[str]) -> str:
        if block["name"] not in TABLES:
            sys.exit(f"{where}: no generated table {block['name']!r}; there are {', '.join(sorted(TABLES))}")
        return f"{block[1]}{TABLES[block['name']]()}{block[3]}"

    return BLOCK.sub(fill, text)


def main() -> int:
    """Exit status: 1 when --check finds a page out of date."""
    stale = []
    for page in pages():
        where, old = str(page.relative_to(ROOT)), page.read_text()
        new = rewritten(old, where)
        if new == old:
            continue
        stale.append(where)
        if "--check" not in sys.argv[1:]:
            page.write_text(new)
    if stale and "--check" in sys.argv[1:]:
        print(f"out of date: {', '.join(stale)}; run `make docs-tables`")
        return 1
    print(f"docs: {', '.join(stale) + ' rewritten' if stale else 'generated tables are current'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
