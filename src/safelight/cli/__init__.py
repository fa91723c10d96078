"""The command line. Every op is a command made from its declaration; `run`, `ops`, `models`, `why`, ... stand beside them."""
from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from safelight.op import Op

OWN = {
    "develop": "develop:develop_command", "run": "commands:run_command", "ops": "commands:ops_command", "models": "models:models_command",
    "pull": "pull:pull_command", "push": "push:push_command", "export-lora": "push:export_command",
    "compat": "compat:compat_group", "dj": "dj:command", "why": "commands:why_command", "reproduce": "commands:reproduce_command",
    "store": "commands:store_group", "dataset": "dataset:dataset_group",
}
"""The commands that are no ops: module of this package and name in it. Only the one that is called is imported."""
ELSEWHERE = {"serve": "safelight.server.command"}
"""Commands that live in a module of their own, as `command`; they are there when the module is."""


class Commands(click.Group):
    """The own commands and one for every op; an op is only declared, never imported with what it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, ops by group."""
        return [*OWN, *_elsewhere(), *(o.spec.command for o in _by_group())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; underscores are hyphens."""
        if cmd_name in OWN:
            return _own(cmd_name)
        if cmd_name in _elsewhere():
            found: click.Command = import_module(ELSEWHERE[cmd_name]).command
            return found
        from safelight.cli.op_command import op_command
        from safelight.op import load_ops

        op = load_ops().get(cmd_name.replace("-", "_"))
        return None if op is None else op_command(op)

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a guess at what was meant."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            from safelight.spec import near

            guess = near(args[0], self.list_commands(ctx))
            ctx.fail(f"no command {args[0]!r}" + (f"; {guess}" if guess else "; `safelight --help` lists them"))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Ops under the names of their groups, from their declarations alone."""
        for group, members in groupby(_by_group(), key=lambda o: o.spec.group):
            with formatter.section(group.capitalize()):
                formatter.write_dl([(o.spec.command, first_sentence(o.spec.summary)) for o in members])
        with formatter.section("Commands"):
            own = [(name, c.get_short_help_str(80)) for name, c in ((n, _own(n)) for n in OWN)]
            formatter.write_dl(own + [(name, import_module(ELSEWHERE[name]).command.get_short_help_str(80)) for name in _elsewhere()])


def _own(name: str) -> click.Command:
    module, _, attribute = OWN[name].partition(":")
    found: click.Command = getattr(import_module(f"safelight.cli.{module}"), attribute)
    return found


def _by_group() -> list[Op[..., Any]]:
    from safelight.op import load_ops

    return sorted(load_ops().values(), key=lambda o: o.spec.group)


def _elsewhere() -> list[str]:
    """Names of the commands of other modules whose file is there."""
    root = Path(__file__).parents[1]
    return [name for name, module in ELSEWHERE.items() if root.joinpath(*module.split(".")[1:]).with_suffix(".py").is_file()]


def first_sentence(text: str) -> str:
    """Up to the first full stop or colon that ends a clause."""
    return text.replace(": ", ". ").partition(". ")[0].rstrip(".")


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"safelight {version('safelight')}")
        ctx.exit()


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--store", "root", metavar="DIR", help="Where results are kept. Default: $SAFELIGHT_HOME or ~/.cache/safelight.")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
def cli(root: str | None) -> None:
    """From a folder of pictures to your own text-to-image model, and the pictures it makes.

    Results are kept by content: what was made once is not made again. `safelight COMMAND --help` has the settings.
    """
    if root:
        os.environ["SAFELIGHT_HOME"] = root
    logging.basicConfig(format="%(message)s", level=logging.WARNING)


def main() -> None:
    """The entry point. Exit status 1: an error, told in one line; 2: a wrong command line; 130: stopped."""
    sys.exit(status(lambda: cli(standalone_mode=False)))


def status(work: Callable[[], object]) -> int:
    """Run a command and say how it ended. SAFELIGHT_TRACEBACK=1 shows where an error came from."""
    from safelight.events import Answered

    try:
        ended = work()
    except Answered:  # it was told
        return 0
    except click.ClickException as e:
        e.show()
        return e.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped; what was finished is kept", err=True)
        return 130
    except (ValueError, OSError, LookupError) as e:
        from safelight.store import Missing

        if os.environ.get("SAFELIGHT_TRACEBACK") or (isinstance(e, LookupError) and not isinstance(e, Missing)):
            raise
        notes = "".join(f" ({note})" for note in getattr(e, "__notes__", ()))
        click.echo(f"error: {e}{notes}", err=True)
        return 1
    return ended if isinstance(ended, int) else 0
