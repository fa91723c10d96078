"""The worker processes, seen from the server: started, fed, watched, replaced when they die."""
from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safelight.server.desk import Job
from safelight.server.reading import Most

log = logging.getLogger(__name__)

LINE = 2**26
"""Bytes of a worker's longest line."""
GRACE = 20.0
"""Seconds in which a worker must stop a prompt, or itself, before it is killed."""
SLOWEST = 30.0
"""Seconds between attempts to start a worker that does not start."""


class Office(Protocol):
    """Who gives out prompts and hears what became of them."""

    async def next_jobs(self, most: int, *, idle: bool) -> Sequence[Job]:
        """Prompts to run now."""

    def order(self, job: Job) -> Mapping[str, Any]:
        """The worker's order for one."""

    async def heard(self, id: str, line: Mapping[str, Any]) -> None:
        """A line about a prompt: `event`, `result` or `failed`."""

    async def orphaned(self, ids: Sequence[str], why: str) -> None:
        """The worker of these died; without a reason, none has room for them any more."""


@dataclass
class Worker:
    """One process. `jobs` are the prompts it has, with the time by which each must have ended; while it is `held`, one of them waits for a
    model that another has."""

    device: str
    process: asyncio.subprocess.Process | None = None
    machine: Mapping[str, Any] | None = None
    jobs: dict[str, float] = field(default_factory=dict)
    alone: bool = False
    held: bool = False
    last: deque[str] = field(default_factory=lambda: deque(maxlen=20))

    def send(self, **order: Any) -> None:
        """Give an order, if there is somebody to hear it."""
        if self.process is not None and self.process.stdin is not None and self.process.returncode is None:
            self.process.stdin.write(json.dumps(order).encode() + b"\n")

    def kill(self) -> None:
        """End it now; it is replaced."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()

    def memory(self) -> int:
        """Bytes of memory it has, where the system says so."""
        return resident(self.process.pid) if self.process else 0


def resident(pid: int) -> int:
    """Bytes of memory that a process has, 0 where nobody says."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


class Pool:
    """All workers. `settings` is what each is told at its start, `together` how many prompts each may have. With `ray` in the settings, a
    cluster's address or nothing, they are actors (see `seat`)."""

    def __init__(self, office: Office, settings: Mapping[str, Any], devices: Sequence[str], *, together: int, most: Most) -> None:
        self.office, self.settings, self.together, self.most = office, settings, together, most
        self.workers = [Worker(device) for device in devices]
        self.hungry = asyncio.Event()
        self.back: list[str] = []
        self.small = ""  # why there can be no worker
        self.tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start them all."""
        work = [self._keep(w) for w in self.workers] + [self._feed(), self._watch()]
        self.tasks = [asyncio.create_task(w) for w in work]

    async def close(self) -> None:
        """Let the workers end; kill those that do not."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        living = [w.process for w in self.workers if w.process is not None]
        for process in living:
            assert process.stdin is not None
            process.stdin.close()
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*(p.wait() for p in living)), GRACE / 4)
        for worker in self.workers:
            worker.kill()
        await asyncio.gather(*(p.wait() for p in living))

    def stop(self, id: str) -> bool:
        """Stop a prompt that runs; False when none of them has it."""
        worker = next((w for w in self.workers if id in w.jobs), None)
        if worker is not None:
            worker.jobs[id] = min(worker.jobs[id], time.monotonic() + GRACE)
            worker.send(do="stop", id=id)
        return worker is not None

    def free(self) -> None:
        """Let the workers forget models that nothing uses."""
        for worker in self.workers:
            worker.send(do="free")

    # Each worker's life.

    async def _keep(self, worker: Worker) -> None:
        pause = 0.0
        while True:
            begun = time.monotonic()
            why = await self._live(worker)
            jobs, worker.jobs, worker.machine, worker.alone, worker.held = list(worker.jobs), {}, None, False, False
            log.warning("worker on %s ended: %s", worker.device or "the default device", why)
            if jobs:
                await self.office.orphaned(jobs, why)
            if self.small:
                log.error("%s; no worker is started any more", self.small)
                return
            pause = 0.0 if jobs or time.monotonic() - begun > SLOWEST else min(max(2 * pause, 0.5), SLOWEST)
            await asyncio.sleep(pause)

    async def _live(self, worker: Worker) -> str:
        """From start to end; why it ended."""
        told = json.dumps({**self.settings, "device": worker.device})
        program = ("-c", "from safelight.server.seat import main; main()") if "ray" in self.settings else ("-m", "safelight.server.worker")
        worker.last.clear()
        worker.process = await asyncio.create_subprocess_exec(
            sys.executable, *program, told, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE, limit=LINE, start_new_session=True,
        )
        assert worker.process.stdout is not None and worker.process.stderr is not None
        trouble = asyncio.create_task(self._trouble(worker, worker.process.stderr))
        while line := await worker.process.stdout.readline():
            await self._heard(worker, json.loads(line))
        status = await worker.process.wait()
        await trouble
        last = f"; it said: {worker.last[-1]}" if worker.last else ""
        return (f"killed by signal {-status}" if status < 0 else f"exit status {status}") + last

    async def _trouble(self, worker: Worker, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            worker.last.append(line.decode("utf-8", "replace").rstrip()[:500])
            log.info("worker: %s", worker.last[-1])

    async def _heard(self, worker: Worker, line: Mapping[str, Any]) -> None:
        if "ready" in line and 0 < self.most.memory < (has := worker.memory()):
            self.small = f"--max-memory {self.most.memory >> 20} is too little; the least that a worker can start with is {(has >> 20) + 1}"
            worker.kill()
        elif "ready" in line:
            worker.machine = line["ready"]
        else:
            if "event" not in line:
                worker.jobs.pop(line["id"], None)
                worker.alone, worker.held = worker.alone and bool(worker.jobs), "dropped" in line
                self.back += [line["id"]] if "dropped" in line else []
            elif line["event"]["event"] == "waits":
                worker.held = True
                if any(not w.held for w in self.ready()):
                    worker.send(do="drop", id=line["id"])
            await self.office.heard(line["id"], line)
        if "event" not in line:
            self.hungry.set()

    async def _feed(self) -> None:
        """Give prompts out while there are some and somebody has room, the least busy first."""
        while True:
            await self.hungry.wait()
            self.hungry.clear()
            if self.back:
                ids, self.back = self.back, []
                await self.office.orphaned(ids, "")
            ready = self.ready()
            room = sum(self.together - len(w.jobs) for w in ready)
            jobs = await self.office.next_jobs(room, idle=not all(w.jobs for w in ready)) if room else ()
            for job in jobs:
                self.place(job)
            if jobs and jobs[0].suspect:  # it came alone; others may go to another worker
                self.hungry.set()

    def ready(self) -> list[Worker]:
        """Those that can take a prompt now."""
        return [w for w in self.workers if w.machine is not None and not w.alone and len(w.jobs) < self.together]

    def place(self, job: Job) -> None:
        """Give a prompt that was taken to the least busy worker, or back when there is none any more."""
        ready = [w for w in self.ready() if not (job.suspect and w.jobs)]
        if not ready:
            self.back.append(job.id)
            self.hungry.set()
            return
        worker = min(ready, key=lambda w: (w.held, len(w.jobs)))
        worker.jobs[job.id] = time.monotonic() + self.most.seconds
        worker.alone = bool(job.suspect)
        worker.send(do="run", **self.office.order(job))

    async def _watch(self) -> None:
        """Stop what runs too long; kill what does not stop or takes too much memory."""
        while True:
            await asyncio.sleep(1)
            for worker in self.workers:
                self._look(worker, time.monotonic())

    def _look(self, worker: Worker, now: float) -> None:
        for id in [id for id, until in worker.jobs.items() if now > until]:
            worker.send(do="stop", id=id)
        if any(now > until + GRACE for until in worker.jobs.values()):
            log.warning("worker does not stop when it should; it is killed")
            worker.kill()
        if self.most.memory and worker.machine is not None and worker.memory() > self.most.memory:
            worker.last.append(f"it took more than {self.most.memory >> 20} MB of memory")
            worker.kill()
