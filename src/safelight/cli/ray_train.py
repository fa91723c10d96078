"""A command that trains, on a Ray cluster: Ray Train starts its processes, and starts them again where one is lost."""
from __future__ import annotations

import os
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from safelight.clusters import joined
from safelight.store import current

FAILURES = 10
"""How often lost processes are started again; each time from the last checkpoint."""


def run(processes: int, address: str | None) -> None:
    """Run this process's own command line by so many workers of a cluster, one started here without an address; the result is in the store
    then. Every machine sees store, model and pictures under the same paths. ImportError without Ray, RuntimeError when it gives up."""
    with joined(address) as ray:
        train, torch = (import_module(f"ray.train{name}") for name in ("", ".torch"))
        known = {"argv": [*sys.argv[1:], "--engine", "local"], "folder": os.getcwd(), "home": str(current().root)}
        gpus = bool(ray.cluster_resources().get("GPU"))
        place, again = str(current().folder("ray")), train.FailureConfig(max_failures=FAILURES)
        trainer = torch.TorchTrainer(
            _work, train_loop_config=known, scaling_config=train.ScalingConfig(num_workers=processes, use_gpu=gpus),
            run_config=train.RunConfig(storage_path=place, failure_config=again))
        try:
            trainer.fit()
        except train.TrainingFailedError as error:
            raise RuntimeError(f"Ray gave up: {error}\nThe same command goes on from the last checkpoint.") from error


def _work(known: dict[str, Any]) -> None:
    """One of the processes, which Ray has let meet."""
    from safelight.cli import cli
    from safelight.events import Answered

    os.chdir(Path(known["folder"]))
    os.environ["SAFELIGHT_HOME"] = known["home"]
    with suppress(Answered):  # nothing failed; the process that started this one will ask, and tell
        cli(known["argv"], standalone_mode=False)
