"""Where and how networks run: three options that several commands have. They hold while the command runs."""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from safelight.computing import DTYPES, computing


def _hold(ctx: click.Context, option: click.Parameter, value: str | None) -> None:
    if value:
        ctx.with_resource(computing(**{str(option.name): value}))


def options() -> list[click.Parameter]:
    """`--device`, `--dtype` and `--compile`."""
    told: dict[str, Any] = {"expose_value": False, "callback": _hold}
    return [
        click.Option(["--device"], metavar="NAME", help="cpu, cuda, cuda:1, mps; default: the best there is.", **told),
        click.Option(["--dtype"], type=click.Choice(DTYPES), help="Default: what is fast on the device.", **told),
        click.Option(["--compile"], metavar="BACKEND", help=(
            "Compile the denoiser by torch.compile, such as inductor: the first picture of a size takes minutes."), **told),
    ]


def compute(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options on a function that becomes a command."""
    command.__dict__.setdefault("__click_params__", []).extend(reversed(options()))
    return command
