"""What the server does, whoever asks for it: takes prompts in, gives them to workers, keeps and tells what became of them."""
from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import shutil
import time
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from safelight.comfy import Places
from safelight.disk import put
from safelight.folders import current as folders
from safelight.locks import acquire, release
from safelight.server.desk import Desk, Full, Job
from safelight.server.files import Names, Shelves
from safelight.server.guard import Rules
from safelight.server.known import Marks, marks
from safelight.server.pictures import Small
from safelight.server.reading import Most
from safelight.server.sockets import Sockets
from safelight.server.telling import Telling
from safelight.server.validating import Ready, Rooms, cut, examine, wanted, words, workflow
from safelight.server.workers import Pool

log = logging.getLogger(__name__)

REMEMBERED = 4096
LATELY, LARGE = 256, 2**17
Known = tuple[str, Mapping[str, str], Mapping[str, Any], Marks]
"""Of a prompt that needs no worker: its ends, its nodes' classes, its results, and what it read."""


@dataclass(frozen=True)
class Setup:
    """How a server is set up. `devices` has one worker each; `attempts` is how often a prompt may kill the worker that it has alone,
    `patience` how many seconds a client may stand still. `ray`: the address of a Ray cluster whose actors are the workers, empty for one
    of this machine's own; ValueError when that has no token."""

    shelves: Shelves
    rules: Rules = field(default_factory=Rules)
    devices: Sequence[str] = ("",)
    together: int = 8
    attempts: int = 3
    waiting: int = 10_000
    previews: bool = False
    patience: float = 20.0
    connections: int = 800
    most: Most = field(default_factory=Most)
    data: Sequence[Path] = ()
    nodes: Path | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        if self.ray is not None and not self.rules.token:
            raise ValueError("serve: --engine ray works on a whole cluster, and there is no token to keep others off; give --token")


class Studio:
    """One server's state."""

    def __init__(self, setup: Setup) -> None:
        self.setup, self.shelves = setup, setup.shelves
        self.places = Places(folders(), self.shelves.input.path, self.shelves.output.path, setup.nodes)
        self.rooms = Rooms(self.places, self.shelves, setup.data, setup.most)
        self.lock = acquire(self.shelves.home / "lock", wait=False)
        if self.lock is None:
            raise ValueError(f"serve: another server uses {self.shelves.home}; stop it, or give --dir another folder")
        self.desk = Desk(self.shelves.home / "queue.sqlite")
        self.staging = self.shelves.staging / uuid.uuid4().hex  # what a dead server's workers still write is not ours
        self.sockets = Sockets(self._greeting)
        self.small = Small()
        self.options: dict[str, Any] = {"sd_model_checkpoint": "mini", "samples_format": "png", "CLIP_stop_at_last_layers": 1}
        self.names = Names()
        settings = {
            "input": str(self.shelves.input.path), "output": str(self.shelves.output.path), "staging": str(self.staging),
            "most": asdict(setup.most), "nodes": str(setup.nodes) if setup.nodes else None,
            **({"ray": setup.ray} if setup.ray is not None else {}),
        }
        self.pool = Pool(self, settings, setup.devices, together=setup.together, most=setup.most)
        self.desk.room = lambda: bool(self.pool.ready())
        self.tellings: dict[str, Telling] = {}
        self.waiters: defaultdict[str, list[asyncio.Future[Job]]] = defaultdict(list)
        self.written: OrderedDict[str, list[Path]] = OrderedDict()
        self.known: OrderedDict[str, Known] = OrderedDict()
        self.fresh: set[str] = set()
        self.stopping: set[str] = set()
        self.ended, self.lately = 0, deque[str](maxlen=LATELY)
        """How many prompts ended while this server runs, and the latest of them."""

    async def start(self) -> None:
        """Put in order what the last run left, and begin."""
        await self.desk.recover()
        await asyncio.to_thread(self.shelves.clear)
        self.pool.start()
        self.pool.hungry.set()

    async def close(self) -> None:
        """Stop the workers; what ran waits for the next start."""
        await self.pool.close()
        await asyncio.to_thread(self.desk.close)
        self.shelves.clear()
        if self.lock is not None:
            release(self.lock)

    # From clients.

    async def submit(
        self, prompt: Any, *, id: str = "", client: str = "", extra: Mapping[str, Any] | None = None, front: bool = False,
        number: float | None = None, targets: Sequence[str] | None = None,
    ) -> tuple[Job, Ready]:
        """Take a prompt in: once this returns it will run, whatever happens. Refusal when it cannot, Full when there is no room for it,
        Taken when there is one of that id already."""
        if self.pool.small or self.desk.remaining >= self.setup.waiting:
            raise Full(self.pool.small or f"{self.desk.remaining} prompts wait already; the queue takes no more")
        told = {**(extra or {}), **({"client_id": client} if client else {})}
        raw, more = json.dumps(prompt, ensure_ascii=False), json.dumps(told, ensure_ascii=False)
        if not (id or targets or front) and number is None and (known := await self._held(_key(raw, told))):
            return await self._repeat(raw, more, words(prompt), known, client=client), Ready(json.loads(known[0]), {})
        ready = await asyncio.to_thread(examine, prompt, self.rooms, targets)
        job = await self.desk.put(
            id or str(uuid.uuid4()), raw, more, json.dumps(list(ready.ends)), words=words(prompt), client=client, number=number, front=front
        )
        self.tell_status()
        if job.state == "running":
            asyncio.get_running_loop().call_soon(self._hand_out, job)  # once it is acknowledged
        else:
            self.pool.hungry.set()
        return job, ready

    def _hand_out(self, job: Job) -> None:
        self._begin(job)
        self.pool.place(job)

    async def _held(self, key: str) -> Known | None:
        return await asyncio.to_thread(self._holds, key) if key in self.known else None

    def _holds(self, key: str) -> Known | None:
        known = None if self.desk.paused or self.desk.remaining > len(self.tellings) else self.known.get(key)
        holds = known is not None and marks(known[3]) == known[3] and all(self._still(told["stamp"]) for told in known[2].values())
        return known if holds else None

    async def _repeat(self, prompt: str, extra: str, text: str, known: Known, *, client: str) -> Job:
        """Take in what is done already, in one commit."""
        id, (ends, nodes, result, _) = str(uuid.uuid4()), known
        said = Telling(Sockets(self._greeting), id, client, nodes)
        said.complete()
        put = self.desk.put(id, prompt, extra, ends, words=text, client=client)
        done = self._kept(lambda: self.desk.finish(id, "done", json.dumps(said.messages), lambda: self._published(id, result)))
        job: Job | None = (await asyncio.gather(put, done))[1]
        if job is None:
            raise Full("the queue was cleared while there was no room on the disk")

        def tell() -> None:
            said.saved(json.loads(job.outputs), self.sockets)
            self._told(job, said)

        asyncio.get_running_loop().call_soon(tell)  # once it is acknowledged
        return job

    async def done(self, id: str) -> Job:
        """Wait until a prompt has ended."""
        waiter: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self.waiters[id].append(waiter)
        job = await self.desk.job(id)
        if job is not None and job.ended is not None and not waiter.done():
            self._wake(job)
        return await waiter

    async def cancel(self, ids: Sequence[str] | None = None, *, running: bool = True) -> bool:
        """Take waiting prompts out and stop running ones; whether there was any of these."""
        gone = await self.desk.cancel(ids)
        for job in gone:
            self._wake(job)
        runs = [id for id in list(self.tellings) if running and (ids is None or id in ids)]
        for id in runs:
            self.interrupt(id)
        self.tell_status()
        return bool(gone or runs)

    def interrupt(self, id: str | None) -> None:
        """Stop what runs, or only one of it."""
        self.stopping.update(i for i in list(self.tellings) if id in (None, i) and self.pool.stop(i))

    def tell_status(self) -> None:
        """Everybody hears how many prompts there are."""
        self.sockets.post("status", {"status": {"exec_info": {"queue_remaining": self.desk.remaining}}})

    def _greeting(self, client: str) -> list[tuple[str, dict[str, Any]]]:
        hello: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": self.desk.remaining}}, "sid": client}
        runs = [t.current for t in self.tellings.values() if t.client == client and t.current]
        return [("status", hello), *(("executing", {"node": node}) for node in runs[:1])]

    # From the workers.

    async def next_jobs(self, most: int, *, idle: bool) -> Sequence[Job]:
        """Prompts to run now."""
        jobs: list[Job] = await self._kept(lambda: self.desk.take(most, idle=idle))
        for job in jobs:
            self._begin(job)
        return jobs

    def _begin(self, job: Job) -> None:
        prompt = cut(json.loads(job.prompt), json.loads(job.ends))
        self.tell_status()
        self.tellings[job.id] = Telling(self.sockets, job.id, job.client, {k: str(e["class_type"]) for k, e in prompt.items()})

    def order(self, job: Job) -> Mapping[str, Any]:
        """The worker's order for one."""
        extra = json.loads(job.extra)
        drawn, told = workflow(extra), extra.get("preview_method")
        return {
            "id": job.id, "prompt": cut(json.loads(job.prompt), json.loads(job.ends)), "fresh": job.id in self.fresh,
            "workflow": json.dumps(drawn) if drawn is not None else "",
            "preview": self.setup.previews if told in (None, "default") else told != "none",
        }

    async def heard(self, id: str, line: Mapping[str, Any]) -> None:
        """A line about a prompt."""
        telling = self.tellings.get(id)
        if telling is None:
            return
        if "event" in line:
            telling.event(line["event"])
        elif "dropped" in line:
            return
        elif "result" in line:
            await self._succeeded(id, telling, line["result"], line.get("read"))
        elif line["failed"]["kind"] == "stopped":
            await self._end(id, telling, "failed" if id not in self.stopping else "cancelled", line["failed"])
        else:
            await self._end(id, telling, "failed", line["failed"])

    async def orphaned(self, ids: Sequence[str], why: str) -> None:
        """Nobody runs them any more: they wait again, but for those whose worker died too often."""
        for job in await self._kept(lambda: self.desk.give_back(ids, died=bool(why))):
            telling = self.tellings[job.id]
            if job.id in self.stopping:
                await self._end(job.id, telling, "cancelled", {"kind": "stopped", "text": ""})
            elif job.deaths >= self.setup.attempts:
                text = f"the worker died {job.deaths} times while it ran this prompt alone, the last time {why}"
                await self._end(job.id, telling, "failed", {"kind": "WorkerDied", "text": text})
            else:
                del self.tellings[job.id]
        self.tell_status()

    async def _kept(self, write: Any) -> Any:
        """Do what must not be lost, waiting for room on the disk."""
        while True:
            try:
                return await write()
            except Full as e:
                log.error("queue: %s", e)
                await asyncio.sleep(2)

    async def _succeeded(self, id: str, telling: Telling, result: Mapping[str, Any], read: Sequence[str] | None) -> None:
        if any("text" not in told and not told["files"] and not self._still(told["stamp"]) for told in result.values()):
            self.fresh.add(id)  # the files of its earlier run are gone
            await self._kept(lambda: self.desk.give_back([id]))
            del self.tellings[id]
            return
        telling.complete()
        job = await self._kept(lambda: self.desk.finish(id, "done", json.dumps(telling.messages), lambda: self._published(id, result)))
        if job is not None:
            telling.saved(json.loads(job.outputs))
            await self._over(job, telling)
            if telling.plain and not telling.ran and read is not None and self.setup.ray is None:  # an actor sees other files
                learning = asyncio.to_thread(self._learn, job, telling.nodes, result, read)
                await asyncio.wait({asyncio.create_task(learning)})  # asyncio logs its error, and the worker is heard on

    def _learn(self, job: Job, nodes: Mapping[str, str], result: Mapping[str, Any], read: Sequence[str]) -> None:
        """Know a prompt that was run as a whole. What changed since it began is too young for `marks`, if that is not long ago."""
        whole = {*json.loads(job.ends)} == {*wanted(json.loads(job.prompt), self.places)} and len(job.prompt) < LARGE
        if not whole:
            return
        configs = [entry.path for _, entry in self.places.models.walk("configs")]  # they are read before there is a graph
        seen = marks([*read, *configs], {str(p.path) for places in self.places.models.places.values() for p in places})
        if seen is not None and time.time() < (job.started or 0) + 1:
            again = {node: {**told, "files": []} for node, told in result.items()}
            self.known[_key(job.prompt, json.loads(job.extra))] = job.ends, nodes, again, seen
            while len(self.known) > LATELY:
                self.known.popitem(last=False)

    def _still(self, stamp: str) -> bool:
        return stamp in self.written and all(p.exists() for p in self.written[stamp])

    def _published(self, id: str, result: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
        """The outputs and the moves that bring them about; on the desk's thread, so that no two prompts take the same name."""
        outputs: dict[str, dict[str, list[Any]]] = {}
        moves: list[tuple[str, str]] = []
        for node, told in result.items():
            if "text" in told:  # an answer, and nothing made
                outputs[node] = {"text": [told["text"]]}
                continue
            staged = self.staging / id / ("" if told["kept"] else "temp")
            root = (self.shelves.output if told["kept"] else self.shelves.temp).path
            chosen: dict[str, str] = {}
            places = [self.names.free(root, Path(f).relative_to(staged).as_posix(), chosen) for f in told["files"]]
            moves += [(f, str(p)) for f, p in zip(told["files"], places, strict=True)]
            if places:
                self.written[told["stamp"]] = places
            kind = "images" if told["type"] == "Image" else "files"
            outputs[node] = {kind: (shown := [self.shelves.told(p) for p in places or self.written[told["stamp"]]])}
            if kind == "files" and shown:  # the editor shows such text in the node
                outputs[node]["text"] = [f"/view?{urlencode(shown[0])}"]
        while len(self.written) > REMEMBERED:
            self.written.popitem(last=False)
        return json.dumps(outputs), moves

    async def _end(self, id: str, telling: Telling, state: str, told: Mapping[str, Any]) -> None:
        if state == "cancelled":
            telling.interrupted()
        else:
            text = told["text"] or f"it was stopped: it took longer than the {self.setup.most.seconds:g} s that this server allows"
            telling.failure({**told, "text": text})
        job = await self._kept(lambda: self.desk.finish(id, state, json.dumps(telling.messages)))
        if job is not None:
            await self._over(job, telling)

    async def _over(self, job: Job, telling: Telling) -> None:
        trained = [key for node, key in telling.keys.items() if telling.nodes.get(node, "").startswith("train_")]
        if trained or telling.measured:
            told = {"recipe": trained[-1] if trained else "", "measured": telling.measured}
            await asyncio.to_thread(put, self.curve(job.id), json.dumps(told).encode())
        self._told(job, telling)
        await asyncio.to_thread(shutil.rmtree, self.staging / job.id, ignore_errors=True)

    def _told(self, job: Job, telling: Telling) -> None:
        self.tellings.pop(job.id, None)
        self.fresh.discard(job.id)
        self.stopping.discard(job.id)
        self.ended += 1
        self.lately.append(job.id)
        self.tell_status()
        telling.end()
        self._wake(job)

    def curve(self, id: str) -> Path:
        """Where the numbers of a run that ended are kept, and the recipe key of its training."""
        return self.shelves.home / "curves" / f"{hashlib.sha256(id.encode()).hexdigest()[:32]}.json"

    def _wake(self, job: Job) -> None:
        for waiter in self.waiters.pop(job.id, []):
            if not waiter.done():
                waiter.set_result(job)


def _key(prompt: str, extra: Mapping[str, Any]) -> str:
    """What a prompt (JSON) is known by, with what its pictures will say of it."""
    return hashlib.sha256(f"{prompt}{json.dumps(extra.get('extra_pnginfo'))}".encode("utf-8", "surrogatepass")).hexdigest()
