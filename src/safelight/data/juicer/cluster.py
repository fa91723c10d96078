"""Recipes on Ray Data: a cluster's tasks do the parts, a lost task or machine is made good by Ray, a lost driver by running again.

Without an address a cluster is started for the run (see `clusters`).
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from safelight import clusters
from safelight.data.juicer.parts import SHARD, Execute, run_parts
from safelight.data.juicer.recipe import Recipe, groups
from safelight.data.juicer.results import Outcome
from safelight.events import Event, Progress

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
    with clusters.joined(address) as ray:
        data = import_module("ray.data")
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what goes wrong comes as an error too
        data.DataContext.get_current().enable_progress_bars = False
        gpus = 1 if model and ray.cluster_resources().get("GPU") else 0

        def execute(work: Callable[[str], str], texts: Sequence[str]) -> Iterator[str]:
            given = data.from_items([{"text": t} for t in texts], override_num_blocks=min(len(texts), BLOCKS))
            done = given.map_batches(_each, batch_size=1, fn_kwargs={"work": work}, num_gpus=gpus)
            try:
                yield from _told(done.iter_rows())
            except ray.exceptions.RayError as error:
                raise RuntimeError(f"Ray gave up: {error}\nThe same command goes on with the shards that are done.") from error

        yield execute


def _told(rows: Iterable[dict[str, str]]) -> Iterator[str]:
    for row in rows:
        if row["missing"]:
            raise ImportError(row["missing"])
        yield row["told"]


def _each(batch: dict[str, Any], work: Callable[[str], str]) -> dict[str, list[str]]:
    """Runs in a task. A module or network that is not there stops the run and is told as such."""
    told, missing = "", ""
    try:
        (told,) = [work(text) for text in batch["text"].tolist()]
    except ImportError as error:
        missing = str(error)
    return {"told": [told], "missing": [missing]}
