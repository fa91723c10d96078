"""The server under load, and ComfyUI under the same.

    python bench/bench_serve.py [--models PATHS.yaml --checkpoint NAME --comfy 'python main.py --cpu --port {port} ...' --at FOLDER]

Printed are: processor seconds from the start to the first answer; milliseconds of a prompt that was run before, until it is acknowledged,
told as done on the socket and read from the history (medians); seconds for 1, 4 and 8 clients that ask for a picture each at once, as a
share of as many times one; with 1,000 waiting prompts and 100 sockets what GET /queue takes and the server's memory. For pictures of
256 x 256 by the embedded model the bare networks' share stands beside it: as many rows in each pass, with nothing around them.

`--comfy` is the command of a ComfyUI that is started in the folder `--at` and asked the same in turns; `{port}` and `{out}` (a folder) are
put in. Both run the usual seven nodes with `--checkpoint`, a name in the folders of `--models`.
"""
from __future__ import annotations

import argparse
import json
import os
import shlex
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from itertools import count, product
from pathlib import Path
from typing import Any

import psutil
from websockets.sync.client import ClientConnection, connect

TURNS, AGAIN, LOOKS, SOCKETS, WAITING = 5, 40, 400, 100, 1000
CLIENTS = (1, 4, 8)
STEPS, SIDE = 20, 256
OURS = (sys.executable, "-c", "from safelight.cli import main; main()", "serve", "--port", "{port}", "--dir", "{out}/studio")
LISTEN = """
import asyncio, sys
from websockets.asyncio.client import connect
async def ear(i):
    async with connect(f"{sys.argv[1]}/ws?clientId=c{i}", max_queue=None) as socket:
        print(i, flush=True)
        async for _ in socket:
            pass
async def main():
    await asyncio.gather(*map(ear, range(int(sys.argv[2]))))
asyncio.run(main())
"""
"""Clients that only listen, in a process of their own: what they do is not what is measured."""
FRESH = count(1)
"""Seeds that were not used yet."""

Graph = Callable[[int], dict[str, Any]]


class Server:
    """A server of its own, started and asked until it answers; `start` are the processor seconds that this took."""

    def __init__(self, name: str, command: Sequence[str], out: Path, at: Path) -> None:
        self.name = name
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        told = [word.format(port=port, out=out) for word in command]
        self.log = out / "log.txt"
        environment = {**os.environ, "SAFELIGHT_HOME": str(out)}
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(told, env=environment, cwd=at, stdout=log, stderr=log)
        self.url = f"http://127.0.0.1:{port}"
        while not self.answers():
            time.sleep(0.02)
        self.start = self.cpu()

    def answers(self) -> bool:
        """Whether it is there."""
        if self.process.poll() is not None:
            sys.exit(self.log.read_text())
        try:
            call(f"{self.url}/queue")
        except urllib.error.URLError:
            return False
        return True

    def cpu(self, *, workers: bool = False) -> float:
        """Processor seconds so far, of the server or of its workers."""
        at = psutil.Process(self.process.pid)
        return sum(sum(p.cpu_times()[:2]) for p in (at.children() if workers else [at]))

    def memory(self) -> float:
        """Megabytes of the server's own process."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)

    def listen(self, client: str) -> ClientConnection:
        """A client's socket."""
        return connect(f"{self.url.replace('http', 'ws')}/ws?clientId={client}", max_queue=None, max_size=None)

    def ask(self, client: str, graph: dict[str, Any]) -> str:
        """Queue a prompt."""
        return str(call(f"{self.url}/prompt", {"prompt": graph, "client_id": client})["prompt_id"])

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def call(url: str, data: Any = None) -> Any:
    """GET, or POST of JSON."""
    request = urllib.request.Request(url, data=None if data is None else json.dumps(data).encode())
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read() or b"null")


def drawing(seed: int, steps: int = STEPS, side: int = SIDE) -> dict[str, Any]:
    """One picture by one op."""
    inputs = {"model": "mini", "prompt": f"a girl with purple hair, {seed}", "seeds": [seed], "width": side, "height": side, "steps": steps}
    return {"1": {"class_type": "generate", "inputs": inputs}}


def nodes(checkpoint: str, seed: int = 1) -> dict[str, Any]:
    """The usual seven nodes, in few steps."""
    loader = ("CheckpointLoaderSimple", {"ckpt_name": checkpoint}) if checkpoint else ("model", {"name": "mini"})
    graph = {
        "1": loader, "2": ("CLIPTextEncode", {"text": "a cat", "clip": ["1", 1]}), "3": ("CLIPTextEncode", {"text": "", "clip": ["1", 1]}),
        "4": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
        "5": ("KSampler", {"model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": seed,
                           "steps": 10, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}),
        "6": ("VAEDecode", {"samples": ["5", 0], "vae": ["1", 2]}), "7": ("SaveImage", {"images": ["6", 0], "filename_prefix": "bench"}),
    }
    return {key: {"class_type": kind, "inputs": inputs} for key, (kind, inputs) in graph.items()}


def ended(ear: ClientConnection, id: str) -> None:
    """Listen until the prompt has ended."""
    while True:
        said = ear.recv()
        told = json.loads(said) if isinstance(said, str) else {"type": ""}
        if told["type"] == "executing" and told["data"]["node"] is None and told["data"].get("prompt_id") == id:
            return
        if told["type"] == "execution_error":
            sys.exit(told["data"]["exception_message"])


def again(server: Server, checkpoint: str, times: int) -> list[tuple[float, float, float]]:
    """Milliseconds until a prompt that was run before is acknowledged, done, and read from the history."""
    took = []
    with server.listen("again") as ear:
        for _ in range(times):
            marks = [time.perf_counter()]
            id = server.ask("again", nodes(checkpoint))
            marks.append(time.perf_counter())
            ended(ear, id)
            marks.append(time.perf_counter())
            assert call(f"{server.url}/history/{id}")[id]["status"]["completed"]
            took.append(tuple(1000 * (mark - marks[0]) for mark in (*marks[1:], time.perf_counter())))
    return took


def repeated(servers: Sequence[Server], checkpoint: str) -> None:
    """The same prompt once more, in turns."""
    for server in servers:
        again(server, checkpoint, 3)
    time.sleep(2.5)  # files that lie there for less are not taken for settled
    took: dict[str, list[tuple[float, float, float]]] = {server.name: [] for server in servers}
    used = {server.name: (server.cpu(), server.cpu(workers=True)) for server in servers}
    for _ in range(TURNS):
        for server in servers:
            took[server.name] += again(server, checkpoint, AGAIN)
    for server in servers:
        said, done, read = (statistics.median(column) for column in zip(*took[server.name], strict=True))
        first, second = used[server.name]
        each = [1000 * (now - then) / (TURNS * AGAIN) for now, then in ((server.cpu(), first), (server.cpu(workers=True), second))]
        print(f"{server.name}: a prompt that was run before: acknowledged {said:.1f} ms, done {done:.1f} ms, read {read:.1f} ms; "
              f"of processor time {each[0]:.1f} ms in the server, {each[1]:.1f} ms in workers", flush=True)


def loaded(server: Server) -> None:
    """A long queue and many listeners."""
    call(f"{server.url}/queue", {"pause": True})
    command = [sys.executable, "-c", LISTEN, server.url.replace("http", "ws"), str(SOCKETS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as ears:
        assert ears.stdout is not None and all(ears.stdout.readline() for _ in range(SOCKETS))
        begun = time.perf_counter()
        for i in range(WAITING):
            server.ask(f"c{i % SOCKETS}", nodes("", 10_000 + i))
        rate = WAITING / (time.perf_counter() - begun)
        took, used = [], server.cpu()
        for _ in range(LOOKS):
            begun = time.perf_counter()
            assert len(call(f"{server.url}/queue")["queue_pending"]) == WAITING
            took.append(1000 * (time.perf_counter() - begun))
        used = 1000 * (server.cpu() - used) / LOOKS
        assert ears.poll() is None
        shares = statistics.quantiles(took, n=100)
        print(f"{server.name}: {WAITING} waiting, {SOCKETS} sockets: GET /queue p50 {shares[49]:.0f} ms, p99 {shares[98]:.0f} ms, of "
              f"processor time {used:.1f} ms; server {server.memory():.0f} MB; {rate:.0f} prompts taken in a second", flush=True)
        ears.kill()
    call(f"{server.url}/queue", {"clear": True})
    call(f"{server.url}/queue", {"pause": False})


def at_once(server: Server, clients: int, graph: Graph) -> float:
    """Seconds until as many clients have a picture each."""

    def client(name: str, seed: int) -> None:
        with server.listen(name) as ear:
            ended(ear, server.ask(name, graph(seed)))

    threads = [threading.Thread(target=client, args=(f"at{i}", next(FRESH))) for i in range(clients)]
    begun = time.perf_counter()
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return time.perf_counter() - begun


def together(servers: Sequence[Server], what: str, graph: Graph, turns: int) -> None:
    """1, 4 and 8 clients, in turns; the best of each."""
    took: dict[tuple[str, int], list[float]] = {}
    for server in servers:
        at_once(server, 1, graph)
    for clients, server in product((1, *CLIENTS) * turns, servers):
        took.setdefault((server.name, clients), []).append(at_once(server, clients, graph))
    for (name, clients), times in took.items():
        share = min(times) / min(took[name, 1]) / clients
        print(f"{name}: {what}: {clients} clients: {min(times):.2f} s, {share:.2f} x as many times one", flush=True)


def bare() -> None:
    """What passes and decoding alone take of one picture and of several, in this process."""
    import torch

    from safelight import model
    from safelight.runtime import lease
    from safelight.values import Cond

    def took(work: Callable[[], Any], times: int = 3) -> float:
        found = []
        for _ in range(times + 1):
            begun = time.perf_counter()
            work()
            found.append(time.perf_counter() - begun)
        return min(found)

    with lease(model("mini")) as family, torch.no_grad():
        words = family.encode_text(["a girl with purple hair"])
        latent = family.encode_image(torch.rand(1, SIDE, SIDE, 3))
        decode = took(lambda: family.decode(latent))

        def drawn(pictures: int) -> float:
            rows = 2 * pictures  # with and without the words
            cond = Cond(words.tokens.expand(rows, -1, -1), {k: t.expand(rows, *t.shape[1:]) for k, t in words.extras.items()})
            x, sigma = torch.randn(rows, *latent.shape[1:]), torch.full((rows,), 3.0)
            return STEPS * took(lambda: family.denoise(x, sigma, cond)) + pictures * decode

        one = drawn(1)
        for pictures in CLIENTS[1:]:
            print(f"bare networks, {torch.get_num_threads()} threads: {pictures} pictures: {(whole := drawn(pictures)):.2f} s, "
                  f"{whole / one / pictures:.2f} x as many times one, which takes {one:.2f} s", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="", help="a models folder or an extra_model_paths.yaml, for our server")
    parser.add_argument("--checkpoint", default="", help="what both servers draw with; without it ours draws with the embedded model")
    parser.add_argument("--comfy", default="", help="ComfyUI's command")
    parser.add_argument("--at", type=Path, default=Path(), help="the folder that it runs in")
    parser.add_argument("--only", choices=("again", "together", "loaded"), help="one part of it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = (Path(folder) / name for name in ("ours", "theirs"))
        ours.mkdir()
        theirs.mkdir()
        servers = [Server("safelight", (*OURS, *(("--models", asked.models) if asked.models else ())), ours, ours)]
        servers += [Server("comfyui", shlex.split(asked.comfy), theirs, asked.at)] if asked.comfy else []
        for server in servers:
            print(f"{server.name}: start to the first answer: {server.start:.2f} s of processor time, {server.memory():.0f} MB", flush=True)
        if asked.only in (None, "again"):
            repeated(servers, asked.checkpoint)
        if asked.only in (None, "together"):
            together(servers, "64 x 64, 10 steps", lambda seed: nodes(asked.checkpoint, seed), 2)
            together(servers[:1], f"{SIDE} x {SIDE}, {STEPS} steps, embedded model", drawing, 2)
            bare()
        if asked.only in (None, "loaded"):
            loaded(servers[0])
        for server in servers:
            server.stop()


if __name__ == "__main__":
    main()
