"""Where, how and by how many processes networks run: options that several commands have. They hold while the command runs."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


def sharing() -> list[click.Parameter]:
    """The options of commands that train, for `shared`."""
    return [
        click.Option(["--processes", "processes_"], type=click.IntRange(1), default=1, help="Train by so many processes, one a GPU."),
        click.Option(["--shard", "shard_"], is_flag=True, help="Split what is trained among the processes (FSDP2)."),
        click.Option(["--engine", "engine_"], type=click.Choice(["local", "ray"]), default="local", help="ray: on a cluster."),
        click.Option(["--address", "address_"], metavar="HOST:PORT", help="The Ray cluster to join; default: one on this machine."),
    ]


@contextmanager
def shared(given: dict[str, Any]) -> Iterator[bool]:
    """Take the options of `sharing` out of what was given and do as they say; yields whether there is something left to do here. Under
    torchrun, accelerate launch and Ray the first process runs the command, and the others serve it."""
    processes, shard, engine, address = (given.pop(f"{n}_", None) for n in ("processes", "shard", "engine", "address"))
    alone = processes == 1 and os.environ.get("WORLD_SIZE", "1") == "1"
    if alone and shard:
        raise click.UsageError("--shard splits among processes, and there is one; give --processes 2, or start it by torchrun")
    if not processes or (alone and engine == "local"):
        yield True
        return
    from safelight.train import parallel

    if parallel.launched() and os.environ["RANK"] != "0":
        os.environ[parallel.SHARD] = str(int(shard))
        parallel.serve()
        yield False
    elif engine == "ray":
        from safelight.cli.ray_train import run

        run(processes, address)
        yield True  # what the cluster made is in the store
    else:
        with parallel.crew(processes, shard=shard):
            yield True
