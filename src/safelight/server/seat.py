"""A worker on a Ray cluster: an actor runs the prompts as a worker process does, and a process on the server's machine, which the server
starts and watches as its worker, passes its lines on. When either ends, so does the other, and the server starts both anew."""
from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from io import StringIO
from typing import Any

from safelight.clusters import joined
from safelight.computing import computing
from safelight.server.workers import resident

BEAT = 1.0
"""Seconds after which an actor that has nothing to say says so."""


class Lines(StringIO):
    """Where a worker writes its lines."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = queue.SimpleQueue[str]()

    def write(self, line: str) -> int:
        """Keep it."""
        self.kept.put(line)
        return len(line)


class Seat:
    """The actor: see `worker` for its lines. Each of its methods has a thread of its own."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        from safelight.server.worker import Bench

        self.settings, self.lines = settings, Lines()
        self.bench = Bench(settings, self.lines)

    def run(self) -> None:
        """Work."""
        with computing(self.settings.get("device", ""), self.settings.get("dtype", "")):
            self.bench.run()

    def order(self, line: str) -> None:
        """Take a line."""
        self.bench.orders.put(json.loads(line))

    def said(self) -> list[str]:
        """The lines since the last call, waiting a BEAT for one. MemoryError when the actor has more memory than it may."""
        most = self.settings["most"]["memory"]
        if most and resident(os.getpid()) > most:
            raise MemoryError(f"it took more than {most >> 20} MB of memory")
        found = list[str]()
        with suppress(queue.Empty):
            found.append(self.lines.kept.get(timeout=BEAT))
            while True:
                found.append(self.lines.kept.get_nowait())
        return found


def _hired(ray: Any, settings: Mapping[str, Any]) -> Any:
    """An actor, with a GPU where the cluster has some and none was declined. It is Ray's not to start it again: the server does."""
    gpus = 1 if settings.get("device", "") != "cpu" and ray.cluster_resources().get("GPU") else 0
    passed = {name: os.environ[name] for name in ("SAFELIGHT_HOME", "SAFELIGHT_MODELS", "OMP_NUM_THREADS") if name in os.environ}
    threads = {"run": 1, "order": 1, "said": 1}
    kind = ray.remote(num_cpus=1, num_gpus=gpus, max_restarts=0, concurrency_groups=threads, runtime_env={"env_vars": passed})(Seat)
    return kind.remote(settings)


def _orders(actor: Any, ended: threading.Event) -> None:
    for line in sys.stdin:
        actor.order.options(concurrency_group="order").remote(line)
    ended.set()


def _pass_on(ray: Any, settings: Mapping[str, Any], out: Any) -> None:
    actor, ended = _hired(ray, settings), threading.Event()
    running = actor.run.options(concurrency_group="run").remote()
    threading.Thread(target=_orders, args=(actor, ended), daemon=True).start()
    while not ended.is_set():
        (done, *_), _ = ray.wait([actor.said.options(concurrency_group="said").remote(), running])
        out.writelines(line for line in ray.get(done) or ())
        out.flush()


def main() -> None:
    """The argument is the settings as JSON; `ray` is the cluster's address, or empty."""
    settings = json.loads(sys.argv[1])
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what Ray prints is no answer
    with joined(settings["ray"] or None) as ray:
        try:
            _pass_on(ray, settings, out)
        except ray.exceptions.RayError as error:
            sys.exit("the actor ended: " + str(error).strip().splitlines()[-1].partition(". ")[0])
