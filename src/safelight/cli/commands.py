"""The commands that are no ops: `run`, `ops`, `why`, `reproduce`, `store`."""
from __future__ import annotations

import json
import os
import time
from itertools import groupby
from pathlib import Path

import click

from safelight.cli.compute import compute
from safelight.cli.show import OUT, deliver, follow, tell_files
from safelight.op import find, load_ops
from safelight.store import Store, current


def _models(_: click.Context, __: click.Parameter, given: str | None) -> None:
    if given:
        os.environ["SAFELIGHT_MODELS"] = given


@click.command("run")
@click.argument("flow")
@click.option("--set", "sets", multiple=True, metavar="NODE.KNOB=VALUE", help="Change a setting, by node or by op; may be repeated.")
@click.option("--target", "targets", multiple=True, metavar="NODE", help="Make this node's value; default: all that nothing takes.")
@click.option("--out", "-o", default=str(OUT), show_default=True, metavar="DIR", help="Save the results here.")
@click.option("--models", metavar="DIR", expose_value=False, callback=_models, is_eager=True,
              help="Folder of checkpoints/, loras/, ..., or an extra_model_paths.yaml.")
@click.option("--input", "pictures", default="input", show_default=True, metavar="DIR", help="Where a ComfyUI prompt's LoadImage looks.")
@click.option("--nodes", metavar="DIR", help="Allow the ComfyUI node classes in this folder: other people's code, which is run.")
@compute
@click.option("--events", type=click.Choice(["jsonl"]), help="Print every event as a line of JSON.")
@click.option("--check", "only_check", is_flag=True, help="Only say what is wrong with the graph.")
def run_command(
    flow: str, *, sets: tuple[str, ...], targets: tuple[str, ...], out: str, pictures: str, nodes: str | None, events: str | None,
    only_check: bool,
) -> int:
    """Run a graph: a JSON or YAML file, a picture that was made by one, or - for standard input.

    A ComfyUI prompt (API form) or workflow (as its editor saves it) runs as it is; its SaveImage writes PREFIX_00001_.png, and so on,
    into the folder for results.
    """
    from safelight import comfy, engine
    from safelight.flow import read_flow
    from safelight.folders import current as folders
    from safelight.graph import with_settings

    ops, graph = load_ops(), comfy.unwrapped(read_flow(flow, editors=True))
    places = comfy.Places(folders(), Path(pictures), Path(out), Path(nodes) if nodes else None)
    drawn = json.dumps(graph) if comfy.is_workflow(graph) else ""
    graph = comfy.convert(graph, places, ops) if drawn else graph
    prompt = bool(drawn) or comfy.is_prompt(graph)
    if not prompt:
        graph = with_settings(graph, sets, ops)
    if only_check:
        problems = comfy.problems(graph, places, sets) if prompt else engine.check(graph, ops)
        click.echo("\n".join(str(p) for p in problems) or f"{flow}: nothing is wrong with it")
        return 1 if problems else 0
    store = current()
    with store.pin():
        if prompt:
            tell_files(follow(comfy.run(graph, places, sets=sets, store=store, workflow=drawn), events), events)
        else:
            deliver(follow(engine.run(graph, store, list(targets) or None, ops=ops), events), Path(out), events)
    return 0


@click.command("ops")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="JSON Schema of the inputs, and the type of the output.")
def ops_command(name: str | None, as_json: bool) -> None:
    """List the ops; with a name, describe one."""
    ops = load_ops()
    chosen = [find(name, ops)] if name else sorted(ops.values(), key=lambda o: o.spec.group)
    if as_json:
        click.echo(json.dumps({o.spec.name: {"inputs": o.spec.schema(), "output": o.spec.output.type_name} for o in chosen}, indent=1))
        return
    if name:
        click.echo(chosen[0].spec.markdown())
        return
    for group, members in groupby(chosen, key=lambda o: o.spec.group):
        click.echo(f"{group}:")
        for o in members:
            takes = ", ".join(p.socket for p in o.spec.ports) or "nothing"
            click.echo(f"  {o.spec.command:<14} {takes} -> {o.spec.output.type_name}\n  {'':<14} {o.spec.summary}")


@click.command("why")
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="The lineage as JSON.")
@click.option("--graph", "as_graph", is_flag=True, help="Only the graph, in API form: `safelight run` takes it.")
@click.option("--verify", metavar="FOLDER", help="Whether a trained file was made from the pictures and captions there, and is unchanged.")
def why_command(file: str, *, as_json: bool, as_graph: bool, verify: str | None) -> int:
    """Say where a file comes from: every op, setting and picture, read from the file alone."""
    from safelight.files import why
    from safelight.provenance import chain

    if verify:
        from safelight.cli.push import verify as verified

        return verified(Path(file), verify)
    history = why(file)
    if as_graph:
        click.echo(json.dumps(history.graph(), indent=1, ensure_ascii=False))
    else:
        click.echo(json.dumps(history.data, indent=1, ensure_ascii=False) if as_json else "\n".join([str(history), *chain(Path(file))]))
    return 0


@click.command("reproduce")
@click.argument("file")
@click.option("--cached", is_flag=True, help="Run only the last op again; take the rest from the store. Default: everything, training too.")
def reproduce_command(file: str, cached: bool) -> int:
    """Make a file again from what it says of itself, and compare the bytes. Exit status 1 when they differ."""
    from safelight.files import reproduce

    found = reproduce(file, cached=cached)
    click.echo(str(found))
    return 0 if found else 1


@click.group("store")
def store_group() -> None:
    """Look at the kept results, and make room."""


@store_group.command("gc")
@click.option("--keep", required=True, metavar="SIZE", help="What may stay, the most recently used first: 10GB, 500MB, 0.")
def gc_command(keep: str) -> None:
    """Remove the results that were not used for longest, never one that a living process uses."""
    from safelight.sweep import parse_size, sweep

    done = sweep(current(), parse_size(keep))
    living = f"; {done.living} running, what they use was left alone" if done.living else ""
    click.echo(f"removed {done.removed} files, {_size(done.freed)}; {_size(done.kept)} kept{living}")


@store_group.command("ls")
@click.option("--op", "name", metavar="NAME", help="Only what this op made.")
def ls_command(name: str | None) -> None:
    """List the kept results, newest first."""
    store = current()
    found = sorted((r for r in store.records() if name in (None, r.made.op)), key=lambda r: -r.at)
    for r in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(r.at))
        about = ", ".join(f"{k} {v}" for k, v in r.about.items() if isinstance(v, str | int | float))
        click.echo(f"{when}  {r.made.recipe}  {r.made.op:<12} {r.seconds:8.1f} s  {r.type} {about}")
    click.echo(f"{len(found)} results, {_size(_used(store))} in {store.root}")


def _used(store: Store) -> int:
    return sum(p.stat().st_size for p in store.root.rglob("*") if p.is_file())


def _size(n: int) -> str:
    return next((f"{n / 2**p:.1f} {u}" for p, u in ((30, "GB"), (20, "MB"), (10, "kB")) if n >= 2**p), f"{n} B")
