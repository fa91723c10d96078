"""What a client hears of its prompt: the events of a worker as ComfyUI's messages, in ComfyUI's order."""
from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from typing import Any

from safelight.server.desk import Job
from safelight.server.sockets import Sockets, now

MEASURED = 2000
"""Numbers that are kept of one prompt."""
SHOTS = 256
"""Pictures of one prompt whose latest previews are kept."""


class Telling:
    """One prompt's run. `nodes` are the classes of the nodes that it needs, by id."""

    def __init__(self, sockets: Sockets, prompt_id: str, client: str, nodes: Mapping[str, str]) -> None:
        self.sockets, self.id, self.client, self.nodes = sockets, prompt_id, client, nodes
        self.cached: list[str] | None = []
        """Nodes whose results were there, until the first one runs; then they were told of, and this is None."""
        self.states: dict[str, dict[str, Any]] = {}
        self.executed: list[str] = []
        self.current = ""
        self.messages: list[list[Any]] = []
        self.preview: Mapping[str, Any] | None = None
        self.latest: tuple[str, bytes] | None = None
        self.shots: dict[str, tuple[str, str]] = {}
        """Each picture's latest preview by `node.index`: media type and base64."""
        self.keys: dict[str, str] = {}
        """The nodes' recipe keys, under which the store has what they made."""
        self.progress = 0.0
        self.measured: list[tuple[float, dict[str, float]]] = []
        """Numbers that work on the way told of, by step: losses, rates."""
        self.notes: list[str] = []
        self.waits = ""
        """What it waits for, while it does, in a worker that runs others."""
        self.ran = self.plain = True  # plain: nothing was told of what came out
        self._keep("execution_start")

    def _post(self, kind: str, *, everybody: bool = False, **data: Any) -> None:
        """To the prompt's client. Of a prompt without one, everybody hears what has no result in it."""
        if everybody or not self.client:
            if everybody or kind in ("progress", "progress_state"):
                self.sockets.post(kind, data)
        else:
            self.sockets.post(kind, data, self.client)

    def _keep(self, kind: str, *, later: bool = False, **data: Any) -> None:
        """A message that the history keeps as well; `later`: it is not sent yet."""
        told = {**data, "prompt_id": self.id, "timestamp": now()}
        self.messages.append([kind, told])
        if not later:
            self._post(kind, everybody=kind == "execution_interrupted", **told)

    def event(self, event: Mapping[str, Any]) -> None:
        """Tell of one event of the worker's."""
        node, kind = str(event.get("node", "")), event["event"]
        self.waits = str(event["text"]) if kind == "waits" else ""
        if event.get("outcome"):
            self.plain = False
            self._post("safelight", prompt_id=self.id, node=node, text=event["outcome"])
        if kind in ("started", "cached") and event.get("key"):
            self.keys[node] = str(event["key"])
        if kind == "cached" and self.cached is not None:
            self.cached.append(node)
        elif kind == "started":
            self._begin(node)
        elif kind in ("cached", "done"):
            self._finish(node)
        elif kind == "progress" and event.get("total"):
            self._measure(event)
            self._progress(node, event)
        elif kind == "preview":
            self.preview, shot = event, f"{node}.{event.get('index', 0)}"
            if shot in self.shots or len(self.shots) < SHOTS:
                self.shots[shot] = str(event["media"]), str(event["data"])
        elif kind in ("note", "waits") and event.get("text"):
            self.notes = [*self.notes[-4:], event["text"]]
            self._post("notification", value=event["text"], id=node)

    def _tell_cached(self, ran: str = "") -> None:
        if self.cached is not None:
            nodes = [n for n in dict.fromkeys(self.cached) if n != ran and n in self.nodes]
            self.cached = None
            self._keep("execution_cached", nodes=nodes)

    def _begin(self, node: str) -> None:
        self._tell_cached(node)
        if node == self.current:
            return
        if self.current:
            self._finish(self.current)
        self.current = node
        self._state(node, "running", 0, 1)
        self._post("executing", node=node, display_node=node, prompt_id=self.id)

    def _progress(self, node: str, event: Mapping[str, Any]) -> None:
        value, most = event["step"], event["total"]
        self.progress = value / most
        self._state(node, "running", value, most)
        if self.preview is not None:
            picture, media = b64decode(self.preview["data"]), str(self.preview["media"])
            self.preview, self.latest = None, (media, picture)
            told = {"node_id": node, "prompt_id": self.id, "display_node_id": node, "parent_node_id": None, "real_node_id": node}
            self.sockets.preview(media, picture, told, self.client or None)
        self._post("progress", value=value, max=most, prompt_id=self.id, node=node)

    def _measure(self, event: Mapping[str, Any]) -> None:
        if values := dict(event.get("values") or ()):
            self.measured.append((event["step"], values))
            if "loss" in values or "held-out" in values:
                self._post("safelight", prompt_id=self.id, node=str(event.get("node", "")), step=event["step"], values=values)
            if len(self.measured) > MEASURED:  # every other one of the older half
                half = len(self.measured) // 2
                self.measured = [*self.measured[:half:2], *self.measured[half:]]

    def _finish(self, node: str) -> None:
        if node in self.states and self.states[node]["state"] != "finished":
            most = self.states[node]["max"]
            self._state(node, "finished", most, most)
            self.executed.append(node)
        if node == self.current:
            self.current = ""

    def _state(self, node: str, state: str, value: float, most: float) -> None:
        same = {"node_id": node, "prompt_id": self.id, "display_node_id": node, "parent_node_id": None, "real_node_id": node}
        self.states[node] = {"value": value, "max": most, "state": state, **same}
        self._post("progress_state", prompt_id=self.id, nodes=self.states)

    def complete(self) -> None:
        """It went well; what the history keeps of that is noted, and sent by `saved` when the results can be read."""
        self.ran = self.cached is None
        if not self.ran:
            self.cached = list(self.nodes)
        self._tell_cached()
        if self.current:
            self._finish(self.current)
        self._keep("execution_success", later=True)

    def saved(self, outputs: Mapping[str, Mapping[str, Any]], sockets: Sockets | None = None) -> None:
        """The results can be read. `sockets` have not heard of it before."""
        if sockets is not None:
            self.sockets = sockets
            for kind, told in self.messages[:-1]:
                self._post(kind, **told)
        for node, ui in outputs.items():
            if self.ran:
                self._begin(node)
            self._post("executed", node=node, display_node=node, output=ui, prompt_id=self.id)
            if self.ran:
                self._finish(node)
            else:
                self._state(node, "finished", 1, 1)
        self._post("execution_success", **self.messages[-1][1])

    def failure(self, told: Mapping[str, Any]) -> None:
        """A node raised."""
        self._tell_cached()
        node = str(told.get("node") or self.current or next(iter(self.nodes), ""))
        self._keep(
            "execution_error", node_id=node, node_type=self.nodes.get(node, ""), executed=self.executed,
            exception_message=told["text"] + "\n", exception_type=told["kind"], traceback=told.get("traceback", []),
            current_inputs={}, current_outputs=[],
        )

    def interrupted(self) -> None:
        """Somebody stopped it."""
        self._tell_cached()
        node = self.current or next(iter(self.nodes), "")
        self._keep("execution_interrupted", node_id=node, node_type=self.nodes.get(node, ""), executed=self.executed)

    def end(self) -> None:
        """The last message of a run."""
        self._post("executing", node=None, prompt_id=self.id)


def entry(job: Job) -> str:
    """A prompt in the history, as JSON text."""
    good = job.state == "done"
    status = {"status_str": "success" if good else "error", "completed": good, "messages": json.loads(job.messages)}
    meta = {n: {"node_id": n, "display_node": n, "parent_node": None, "real_node_id": n} for n in json.loads(job.outputs)}
    return f'{{"prompt":{job.item},"outputs":{job.outputs},"status":{json.dumps(status)},"meta":{json.dumps(meta)}}}'
