"""Write the generated tables of README.md, CONTRIBUTING.md and docs/ in place, between `<!-- begin: NAME -->` and `<!-- end: NAME -->`.

Every table is read from what the code declares (ops, registries, the command line), so it cannot say something else. With --check
nothing is written, and pages that are out of date are named.
"""
from __future__ import annotations

import ast
import dataclasses
import inspect
import os
import pkgutil
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import click

from safelight.op import Op, load_ops

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"(<!-- begin: (?P<name>[a-z-]+) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
NOISE = {"none": "none", "fresh": "every step", "tree": "a Brownian path"}
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


def sentence(entry: Any) -> str:
    """The first paragraph of what an entry says of itself (its `doc`, or its docstring) as one line; all its papers as links."""
    whole = str(getattr(entry, "doc", "") or inspect.getdoc(entry) or "")
    first = whole.split("\n\n")[0].replace("\n", " ").strip()
    more = [n for n in dict.fromkeys(ARXIV.findall(whole)) if n not in first]
    return linked_papers(first + (f" ({', '.join(f'arXiv:{n}' for n in more)})" if more else ""))


def linked_papers(text: str) -> str:
    """The text with every paper's number a link to it."""
    return ARXIV.sub(r"[\g<0>](https://arxiv.org/abs/\1)", text)


def registry(entries: Mapping[str, Any], what: str) -> str:
    """A table of a registry: name, what it does."""
    return table([what, "what it does"], [[f"`{name}`", sentence(entry)] for name, entry in entries.items()])


def ops() -> str:
    """Every op by group, as its own declaration says it."""
    specs = sorted((o.spec for o in load_ops().values()), key=lambda s: s.group)
    parts = []
    for group, members in groupby(specs, key=lambda s: s.group):
        parts.append(f"\n## {group.capitalize()}\n")
        parts += ["\n" + re.sub(r"^#", "##", s.markdown().strip(), count=1) + "\n" for s in members]
    return "".join(parts) + "\n"


def op_list() -> str:
    """One line an op."""
    specs = sorted((o.spec for o in load_ops().values()), key=lambda s: s.group)
    return table(["op", "group", "gives", "what it does"], [[f"`{s.name}`", s.group, f"`{s.output.__name__}`", s.summary] for s in specs])


def samplers() -> str:
    """The sampler registry, each with the words of the function of that name."""
    from safelight.sampling import SAMPLERS, samplers

    modules = [import_module(f"{samplers.__name__}.{m.name}") for m in pkgutil.iter_modules(samplers.__path__)]
    functions = {name: thing for module in modules for name, thing in vars(module).items()}
    rows = [[f"`{s.name}`", NOISE[s.noise], sentence(functions[s.name])] for s in SAMPLERS.values()]
    return table(["sampler", "noise", "what it does"], rows)


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
    from safelight.scoring import METRICS

    return registry(METRICS, "metric")


def measures() -> str:
    """The measures of the curator."""
    from safelight.data.measures import MEASURES

    rows = [[f"`{m.name}`", m.unit, m.needs, sentence(m)] for m in MEASURES.values()]
    return table(["measure", "unit", "reads", "what it is"], rows)


def captioners() -> str:
    """The captioner registry."""
    from safelight.data.captioners import CAPTIONERS

    return registry(CAPTIONERS, "captioner")


def values() -> str:
    """The value classes with their socket types."""
    from safelight.values import VALUES

    return table(["value", "in graphs", "what it is"], [[f"`{n}`", f"`{c.type_name}`", sentence(c)] for n, c in VALUES.items()])


def events() -> str:
    """The events that leave the process, with their fields."""
    from safelight import events as module

    kinds = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, module.Event) and c not in (module.Event, module.Ask)]
    own = {c: ", ".join(f"`{f.name}`" for f in dataclasses.fields(c) if f.name != "node") for c in kinds}
    return table(["event", "fields, beside `node`", "what it says"], [[f"`{c.__name__.lower()}`", own[c], sentence(c)] for c in kinds])


def public() -> str:
    """The names of the package, without the values, which have a table of their own."""
    import safelight
    from safelight.values import VALUES

    names = [name for name in safelight.__all__ if not name.startswith("__") and name not in VALUES]
    return table(["name", "what it is"], [[f"`sl.{name}`", words(name, getattr(safelight, name))] for name in names])


def words(name: str, thing: Any) -> str:
    """What is said of a public name; of data and type aliases, the string that stands below their assignment."""
    if inspect.isclass(thing) or inspect.isroutine(thing) or isinstance(thing, Op):
        return sentence(thing)
    for path in sorted((ROOT / "src" / "safelight").glob("*.py")):
        body = ast.parse(path.read_text()).body
        for assigned, said in pairwise(body):
            if isinstance(assigned, ast.Assign | ast.AnnAssign) and isinstance(said, ast.Expr) and name in targets(assigned):
                return linked_papers(ast.literal_eval(said.value))
    return f"a {type(thing).__name__}"


def targets(assigned: ast.Assign | ast.AnnAssign) -> list[str]:
    """The plain names that a statement assigns to."""
    nodes = assigned.targets if isinstance(assigned, ast.Assign) else [assigned.target]
    return [node.id for node in nodes if isinstance(node, ast.Name)]


def decisions() -> str:
    """The decisions, by number."""
    found = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))[1:]
    titles = [(path.name, path.read_text().splitlines()[0].removeprefix("# ")) for path in found]
    return "".join(f"- [{title}]({name})\n" for name, title in titles)


def embedded_card() -> str:
    """The model card that lies beside the weights, one heading level down."""
    card = ROOT / "src" / "safelight" / "embedded" / "weights" / "README.md"
    if not card.is_file():
        return ""
    text = re.sub(r"^---\n.*?\n---\n", "", card.read_text(), flags=re.DOTALL)
    return re.sub(r"^#", "##", text.strip(), flags=re.MULTILINE) + "\n"


MAIN = ("", "data", "generate", "train", "score")
"""The groups that the README lists; the others are parts of graphs."""


def cli_main() -> str:
    """The commands that are no ops, then those ops that people call by themselves."""
    rows = cli_rows()
    shown = [[name, what] for name, group, what in (*(r for r in rows if not r[1]), *rows) if group in MAIN]
    unique = [row for i, row in enumerate(shown) if row not in shown[:i]]
    return table(["command", "what it does"], unique)


def cli_list() -> str:
    """One line a command, ops by group first, as `safelight --help` has them."""
    return table(["command", "op of group", "what it does"], cli_rows())


def cli_rows() -> list[list[str]]:
    """Command, group and what it does; ops by group first."""
    from safelight.cli import Commands, cli

    assert isinstance(cli, Commands)
    context = click.Context(cli, **cli.context_settings)
    named = [(name, cli.get_command(context, name)) for name in cli.list_commands(context)]
    groups = {o.spec.command: o.spec.group for o in load_ops().values()}
    rows = [[f"`safelight {name}`", groups.get(name, ""), command.get_short_help_str(200)] for name, command in named if command]
    return sorted(rows, key=lambda row: (not row[1], row[1]))


def cli_help() -> str:
    """The help pages of the commands that are no ops."""
    from safelight.cli import cli

    context = click.Context(cli, info_name="safelight", **cli.context_settings)
    ops = {o.spec.command for o in load_ops().values()}
    parts = []
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        if name in ops or command is None:
            continue
        inner = click.Context(command, info_name=name, parent=context)
        pages = [(inner, command)]
        if isinstance(command, click.Group):
            pages += [(click.Context(c, info_name=n, parent=inner), c) for n, c in sorted(command.commands.items())]
        for where, page in pages:
            text = "\n".join(line.rstrip() for line in page.get_help(where).splitlines())
            parts.append(f"\n## {where.command_path}\n\n```text\n{text}\n```\n")
    return "".join(parts) + "\n"


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
    "measures": measures, "captioners": captioners, "values": values, "events": events, "public": public, "decisions": decisions,
    "embedded-card": embedded_card, "make-list": make_list, "cli-list": cli_list, "cli-main": cli_main,
    "cli-help": cli_help, "demo-sheet": demo_sheet,
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
