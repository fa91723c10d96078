"""`dj`: Data-Juicer's recipes as they are."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from safelight.data.juicer import Outcome, Recipe


@click.command("dj", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.option("--config", required=True, metavar="YAML", help="The recipe.")
@click.option("--allow-code", is_flag=True, help="Let python_lambda_mapper and python_file_mapper run the code that the recipe names.")
@click.option("--measure-again", is_flag=True, help="Neither use nor keep what is known of pictures from earlier runs.")
@click.option("--engine", type=click.Choice(["local", "ray"]), default="local", help="ray: on a cluster. Either goes on after a stop.")
@click.option("--address", metavar="HOST:PORT", help="The Ray cluster to join; without it one is started on this machine for the run.")
@click.pass_context
def command(ctx: click.Context, config: str, *, allow_code: bool, measure_again: bool, engine: str, address: str | None) -> None:
    """Run a Data-Juicer recipe: same keys, operators and output, without its environment; --KEY VALUE replaces a global key.

    Beside result.jsonl lie result_stats.jsonl and result_dropped.jsonl, which says for every dropped row by which operator and why.
    A row whose file is missing or broken is dropped alone.
    """
    import gc

    from safelight.data.juicer import read_recipe

    if address and engine != "ray":
        raise click.UsageError("--address is for --engine ray")
    recipe = read_recipe(config, overrides=_overrides(ctx.args), allow_code=allow_code)
    gc.freeze()  # what was imported stays to the end; no collection needs to look through it, the one at the end least of all
    try:
        outcome = _run(recipe, address, ray=engine == "ray", measure_again=measure_again)
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n".join(_told(outcome)))


def _run(recipe: Recipe, address: str | None, *, ray: bool, measure_again: bool) -> Outcome:
    from safelight.data.juicer.parts import run_parts
    from safelight.index import home
    from safelight.progress import watch

    if not ray:
        return watch(run_parts(recipe, known=None if measure_again else home() / "measures.sqlite"))
    from safelight.data.juicer.cluster import run_on_ray

    try:
        return watch(run_on_ray(recipe, address=address))
    except RuntimeError as error:
        raise click.ClickException(str(error)) from error


def _overrides(words: list[str]) -> dict[str, Any]:
    """`--np 2` and `--np=2`, values as YAML."""
    import yaml

    found: dict[str, Any] = {}
    left = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    while left:
        name = left.pop(0)
        if not name.startswith("--") or not left:
            raise click.UsageError(f"{name}: expected --KEY VALUE")
        found[name[2:].replace("-", "_")] = yaml.safe_load(left.pop(0))
    return found


def _told(outcome: Outcome) -> list[str]:
    by = ", ".join(f"{n} by {name}" for name, n in outcome.dropped.most_common())
    lines = [f"{outcome.kept} of {outcome.read} rows kept" + (f"; dropped: {by}" if by else ""), str(outcome.result)]
    if outcome.stats:
        lines.append(str(outcome.stats))
    if outcome.faults:
        lines.append(f"{outcome.faults} rows could not be used; {Path(outcome.dropped_list).name} says why")
    return lines
