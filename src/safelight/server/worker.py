"""A process that runs prompts, several at once: their questions to one model are answered in shared forward passes.

Orders come in as lines of JSON, what happens goes out the same way (events as `safelight run --events jsonl` prints them):

    {"do": "run", "id", "prompt", "workflow", "preview"}      {"ready": {...}}                 {"id", "event": {...}}
    {"do": "stop", "id"}    {"do": "free"}                    {"id", "result": {node: ...}}    {"id", "failed": {...}}
    {"do": "drop", "id"}: another shall run it                {"id", "dropped": true}

When the orders end, so does the process. It can be killed at any time: what it finished lies in the store by key, what it was writing lies
in the folder for half-done work, and the queue is not its own.
"""
from __future__ import annotations

import json
import os
import queue
import shutil
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from safelight import comfy
from safelight.comfy.building import Saved
from safelight.comfy.run import known_ops, save
from safelight.computing import computing
from safelight.events import Answered, Ask, Cached, Done, Event, Preview, Started
from safelight.folders import current as folders
from safelight.lineage import outcome
from safelight.op import OPS
from safelight.server.known import files
from safelight.server.reading import Most
from safelight.spec import Work
from safelight.store import Store, current
from safelight.values import Dataset, Image, Latent, Scores, Value, canonical, digest

if TYPE_CHECKING:
    from torch import Tensor

SLICE = 0.2
"""Seconds that one prompt may run before the others come."""
KNOWN = 4096
"""Results that are remembered as written."""


class _Running:
    """One prompt: its generator, the question it waits with, and the answer to it."""

    work: Work[dict[str, list[Path]]]

    def __init__(self, order: Mapping[str, Any]) -> None:
        self.id, self.order = str(order["id"]), order
        self.ask: Ask | None = None
        self.reply: Sequence[Tensor] | None = None
        self.node = ""
        self.waits = False
        self.stamps: dict[str, dict[str, Any]] = {}
        self.graphs: list[Mapping[str, Any]] = []


class Bench:
    """All prompts that this process runs."""

    def __init__(self, settings: Mapping[str, Any], out: TextIO) -> None:
        """`out` takes the lines."""
        nodes = Path(settings["nodes"]) if settings["nodes"] else None
        self.places = comfy.Places(folders(), Path(settings["input"]), Path(settings["output"]), nodes)
        self.staging = Path(settings["staging"])
        self.most = Most(**settings["most"])
        self.store: Store = current()
        self.running: dict[str, _Running] = {}
        self.written: OrderedDict[str, None] = OrderedDict()
        self.rows = 0
        self.orders: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.out = out

    def say(self, **what: Any) -> None:
        """One line to the server. What lay in the store is told with what comes next."""
        self.out.write(json.dumps(what, ensure_ascii=False) + "\n")
        if what.get("event", {}).get("event") != "cached":
            self.out.flush()

    def listen(self) -> None:
        """Read orders until there are no more."""
        for line in sys.stdin:
            self.orders.put(json.loads(line))
        self.orders.put(None)
        time.sleep(10)  # a pass may take longer; nobody waits for it any more
        os._exit(0)

    def run(self) -> None:
        """Until the orders end."""
        from safelight.sampling.driver import ROWS, asks_wanted

        self.rows = ROWS
        self.say(ready=_machine())
        with asks_wanted():
            while self.obey():
                if all(one.waits for one in self.running.values()):
                    first = next(iter(self.running.values()))
                    self.running[first.id] = self.begun(first.order)
                for one in list(self.running.values()):
                    self.advance(one)
                self.answer()

    def obey(self) -> bool:
        """Take the orders that are there, waiting when there is nothing else to do. False at their end."""
        while not self.running or not self.orders.empty():
            order = self.orders.get()
            if order is None:
                for one in self.running.values():
                    one.work.close()
                return False
            if order["do"] == "run":
                self.running[order["id"]] = self.begun(order)
            elif order["do"] == "stop" and order["id"] in self.running:
                self.running[order["id"]].work.close()
                self.end(self.running[order["id"]], failed={"kind": "stopped", "text": ""})
            elif order["do"] == "drop" and order["id"] in self.running:
                self.running.pop(order["id"]).work.close()
                self.say(id=order["id"], dropped=True)
            elif order["do"] == "free":
                from safelight import runtime

                runtime.release()
        return True

    def begun(self, order: Mapping[str, Any]) -> _Running:
        """A prompt from its start, whatever was done of it before."""
        one = _Running(order)
        one.work = self.work(one)
        return one

    def work(self, one: _Running) -> Work[dict[str, list[Path]]]:
        """Run and keep, having looked at what it asks for now that all links to numbers are resolved."""
        folder = self.staging / one.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

        def look(graph: Mapping[str, Any]) -> None:
            if wrong := self.most.refused(graph.values()):
                raise ValueError(wrong)
            one.graphs.append(graph)

        def keep(value: Value, saved: Saved, texts: Mapping[str, str], store: Store) -> list[Path]:
            stamp = digest("result", value.key, saved.prefix, str(saved.kept), canonical([saved.form, texts]))
            again = stamp in self.written and not one.order.get("fresh")
            before = {f for told in one.stamps.values() for f in told["files"]}
            made = [] if again else save(value, saved, folder, texts, store)
            if not again and not isinstance(value, Image):  # a model is more files than it names
                made = [p for p in sorted(folder.rglob("*")) if p.is_file() and str(p) not in before]
            one.stamps[saved.node] = {"stamp": stamp, "kept": saved.kept, "files": [str(f) for f in made]}
            one.stamps[saved.node]["type"] = "Image" if isinstance(value, Image) else type(value).__name__
            return made

        prompt, workflow = one.order["prompt"], one.order["workflow"]
        return (yield from comfy.run(prompt, self.places, store=self.store, workflow=workflow, keep=keep, look=look))

    def advance(self, one: _Running) -> None:
        """Go on until it asks, ends, or others should have a turn."""
        from safelight.runtime import Lent

        until = time.monotonic() + SLICE
        try:
            while one.ask is None and not one.waits and time.monotonic() < until:
                event, one.reply = one.work.send(one.reply), None
                self.tell(one, event)
        except StopIteration:
            self.end(one, result=one.stamps, read=files(one.graphs, known_ops(self.places)))
            self.remember(one)
        except Answered as e:
            self.end(one, result={e.answer.node or one.node: {"text": e.answer.text}})
        except Lent as e:
            if len(self.running) == 1:
                self.end(one, failed=_told(e, one.node))
            else:
                self.say(id=one.id, event={"event": "waits", "node": one.node, "text": f"its model is held by {e.by}"})
            one.waits = True
        except Exception as e:  # noqa: BLE001  whatever a node raises is its prompt's failure, not the worker's
            self.end(one, failed=_told(e, one.node))

    def tell(self, one: _Running, event: Event) -> None:
        """Pass an event on; a question stays here."""
        if isinstance(event, Ask):
            one.ask = event
            return
        if isinstance(event, Started):
            one.node = event.node
        if not isinstance(event, Preview) or one.order.get("preview"):
            self.say(id=one.id, event=event.json() | self.outcome(one, event))

    def outcome(self, one: _Running, event: Event) -> dict[str, str]:
        """What came of a dataset or of scores, for those who look at the node. ValueError for more pixels than there may be."""
        spec = OPS[event.op].spec if isinstance(event, Cached | Done) and event.op in OPS else None
        if not isinstance(event, Cached | Done) or (spec and spec.output not in (Dataset, Scores, Image, Latent)):
            return {}
        told = record.about if (record := self.store.get(event.key)) else {}
        wide, high, made = told.get("width", 0), told.get("height", 0), not spec or not (spec.loads or spec.group == "score")
        if made and wide * high > self.most.pixels:
            one.node = event.node
            one.work.close()
            raise ValueError(f"node {event.node} ({event.op}): it made {wide} x {high} pixels; this server allows {self.most.pixels}")
        return {"outcome": text} if (text := outcome(told)) else {}

    def end(self, one: _Running, **how: Any) -> None:
        """Say how it ended; those that waited for its model try again from their start, which is cheap."""
        self.running.pop(one.id, None)
        self.say(id=one.id, **how)
        for other in self.running.values():
            if other.waits:
                self.running[other.id] = self.begun(other.order)

    def remember(self, one: _Running) -> None:
        """Its results are written: the same ones need not be again."""
        for told in one.stamps.values():
            self.written[told["stamp"]] = None
        while len(self.written) > KNOWN:
            self.written.popitem(last=False)

    def answer(self) -> None:
        """All questions that wait, in shared passes; smaller ones when the memory does not suffice."""
        import torch

        from safelight.sampling.driver import answer

        asking = [one for one in self.running.values() if one.ask is not None]
        if not asking:
            return
        try:
            replies: Sequence[Any] = answer([one.ask for one in asking if one.ask], rows=self.rows)
        except torch.OutOfMemoryError as e:
            self.rows //= 2
            if self.rows:
                return
            self.rows = 1
            for one in asking:
                one.work.close()
                self.end(one, failed=_told(e, one.node))
            return
        except Exception as e:  # noqa: BLE001  a network's error belongs to those who asked
            replies = [e] * len(asking)
        for one, reply in zip(asking, replies, strict=True):
            one.ask, one.reply = None, reply
            if isinstance(reply, Exception):
                one.work.close()
                self.end(one, failed=_told(reply, one.node))


def _told(e: Exception, node: str) -> dict[str, Any]:
    faults = getattr(e, "faults", None) or getattr(e, "problems", None)
    lines = traceback.format_exception(e)[-20:]
    return {"kind": type(e).__name__, "text": str(e), "node": faults[0].node if faults else node, "traceback": lines}


def _machine() -> dict[str, Any]:
    """What the server tells of the device without knowing it itself."""
    import torch

    from safelight.runtime import choose_device

    device = choose_device()
    told: dict[str, Any] = {"torch": torch.__version__, "type": device.type, "index": device.index, "name": device.type}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        told |= {"name": torch.cuda.get_device_name(device), "vram_total": total, "vram_free": free}
    return told


def main() -> None:
    """The argument is the settings as JSON."""
    settings = json.loads(sys.argv[1])
    with ExitStack() as stack:
        stack.enter_context(computing(settings.get("device", ""), settings.get("dtype", "")))
        out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print is no answer
        bench = Bench(settings, out)
        threading.Thread(target=bench.listen, daemon=True).start()
        bench.run()


if __name__ == "__main__":
    main()
