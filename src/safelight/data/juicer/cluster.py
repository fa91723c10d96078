"""Recipes on Ray Data: a cluster's tasks do the parts, a lost task or machine is made good by Ray, a lost driver by running again.

Without an address a cluster is started for the run: it listens on this machine alone, asks for a token, has no dashboard and reports to
nobody. A cluster that is there is joined with the token that Ray's own settings name (RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or
~/.ray/auth_token). Every node needs the same Safelight and sees rows, pictures and result under the same paths.
"""
from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from safelight.data.juicer.parts import SHARD, Execute, run_parts
from safelight.data.juicer.recipe import Recipe, groups
from safelight.data.juicer.results import Outcome
from safelight.events import Event, Progress

STORE = 256 * 2**20
"""Bytes that a local cluster may hold in memory; what passes through it are a few numbers and paths a shard."""
BLOCKS = 1000
"""Tasks of a stage, at most; each does several shards when there are more."""



def run_on_ray(recipe: Recipe, *, address: str | None = None, shard: int = SHARD) -> Generator[Event, None, Outcome]:
    """Run a checked recipe on a cluster, one started for it when no address (`host:port`, `auto`) is given; yields Progress.

    ImportError when Ray is not installed; ValueError when there is no cluster at the address; RuntimeError when the cluster gives up.
    """
    groups(recipe)  # what is wrong with them is said before Ray starts, which takes seconds
    yield Progress(what="starting Ray" if address is None else f"joining Ray at {address}")
    model = any(s.operator.needs == "model" for s in recipe.steps)
    with joined(address, model=model) as execute:
        return (yield from run_parts(recipe, execute, shard=shard))


@contextmanager
def joined(address: str | None, *, model: bool) -> Iterator[Execute]:
    """Join the cluster at an address, or start one, for as long as the block lasts. ImportError and ValueError as above."""
    _settle(local=address is None)
    if address not in (None, "auto"):
        _knock(address or "")
    try:
        ray, data = import_module("ray"), import_module("ray.data")
    except ImportError as error:
        raise ImportError("--engine ray needs Ray: pip install 'safelight[ray]'") from error
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    alone = {"include_dashboard": False, "object_store_memory": STORE} if address is None else {}
    try:
        ray.init(address=address or "local", **quiet, **alone)
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise ValueError(f"address: no Ray cluster could be joined at {address}: {error}") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong comes as an error too
    data.DataContext.get_current().enable_progress_bars = False
    gpus = 1 if model and ray.cluster_resources().get("GPU") else 0

    def execute(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
        given = data.from_items([{"text": t} for t in texts], override_num_blocks=min(len(texts), BLOCKS))
        done = given.map_batches(_each, batch_size=1, fn_kwargs={"work": work}, num_gpus=gpus)
        try:
            for row in done.iter_rows():
                if row["missing"]:
                    raise ImportError(row["missing"])
                yield row["told"]
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray gave up: {error}\nThe same command goes on with the shards that are done.") from error

    try:
        yield execute
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError) as error:
        raise ValueError(f"address: nothing answers at {address}: {error}; give HOST:PORT of a cluster's head, or auto") from error


def _settle(*, local: bool) -> None:
    """Ray's switches, which it reads when it is imported; what the user has set is kept, but a local cluster is always closed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if local:
        os.environ["RAY_AUTH_MODE"] = "token"
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # the one switch that makes every server listen on the loopback alone


def _each(batch: dict[str, Any], work: Callable[[str], str]) -> dict[str, list[str]]:
    """Runs in a task. A module or network that is not there stops the run and is told as such."""
    told, missing = "", ""
    try:
        (told,) = [work(text) for text in batch["text"].tolist()]
    except ImportError as error:
        missing = str(error)
    return {"told": [told], "missing": [missing]}
