"""What one prompt may take, enforced where it runs: a real worker under a server with small limits."""

from __future__ import annotations

import io
import json
import time
import urllib.error
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from safelight.server.reading import Most
from safelight.server.worker import Bench
from safelight.store import Store, using
from tests.server.serving import Server, drawing, nodes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = ("--max-steps", "900", "--max-pixels", "17000000", "--max-batch", "24", "--max-seconds", "4", "--max-memory", "2000")
    server = Server(tmp_path_factory.mktemp("limits"), *limits)
    yield server
    assert server.stop() == 0


def refusal(server: Server, prompt: dict[str, Any]) -> str:
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.queue(prompt)
    with refused.value as answer:
        assert answer.code == 400
        return str(json.loads(answer.read())["error"]["details"])


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_what_a_prompt_says_is_looked_at_before_it_is_queued(server: Server) -> None:
    assert "steps is 901; this server allows 900" in refusal(server, nodes(steps=901))
    assert "allows 17000000" in refusal(server, drawing(width=8192, height=8192))
    assert "allows 24" in refusal(server, drawing() | {"1": node("generate", model="mini", prompt="x", seeds=list(range(25)))})
    assert server.get("/queue")["queue_pending"] == []


def test_what_it_only_says_by_a_link_is_looked_at_by_the_worker(server: Server) -> None:
    """Steps from a node that makes a number: known only when the prompt runs."""
    prompt = nodes() | {"8": node("PrimitiveInt", value=1000)}
    prompt["5"]["inputs"]["steps"] = ["8", 0]
    try:
        told = server.wait(server.queue(prompt))["status"]["messages"][-1][1]["exception_message"]
    except urllib.error.HTTPError as e:
        with e:
            told = e.read().decode()
    assert "steps is 1000; this server allows 900" in told


def bench(home: Path, prompt: dict[str, Any], **most: Any) -> list[dict[str, Any]]:
    """What a worker says of a prompt."""
    for name in ("input", "output", "staging"):
        (home / name).mkdir(parents=True)
    folders = {name: str(home / name) for name in ("input", "output", "staging")}
    out = io.StringIO()
    work = Bench({**folders, "nodes": None, "most": asdict(Most(**most))}, out)
    one = work.running["it"] = work.begun({"id": "it", "prompt": prompt, "workflow": ""})
    while work.running:
        work.advance(one)
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize("latent", [False, True])
def test_what_is_made_in_a_chain_is_measured_where_it_is_made(tmp_path: Path, latent: bool) -> None:
    chain, made, by = {"1": node("EmptyImage", width=64, height=64, batch_size=1, color=0)}, "image", "ImageScaleBy"
    if latent:
        chain, made, by = {"1": node("EmptyLatentImage", width=64, height=64, batch_size=1)}, "samples", "LatentUpscaleBy"
    for i in (2, 3):
        chain[str(i)] = node(by, upscale_method="bilinear", scale_by=2.0, **{made: [str(i - 1), 0]})
    end = {"samples": ["3", 0]} if latent else {"images": ["3", 0]}
    chain["end"] = node("SaveLatent" if latent else "SaveImage", filename_prefix="x", **end)
    with using(Store(tmp_path / "store")):
        assert "result" in bench(tmp_path / "all", chain, pixels=256 * 256)[-1]
        for turn in ("made", "there"):  # and one that lies in the store is not taken either
            failed = bench(tmp_path / turn, chain, pixels=256 * 256 - 1)[-1]["failed"]
            assert failed["node"] == "3" and failed["text"].startswith("node 3 (")
            assert "256 x 256 pixels; this server allows 65535" in failed["text"]


def drawn(server: Server, seed: int) -> bool:
    """Whether a small picture is drawn within the limit, at last: on a busy machine the first attempts may only get as far as the model."""
    return any(server.wait(server.queue(drawing(seed)))["status"]["completed"] for _ in range(20))


def test_what_takes_too_long_is_stopped_and_the_next_prompt_runs(server: Server) -> None:
    assert drawn(server, 1)
    (worker,) = server.workers()
    long = server.wait(server.queue(drawing(2, steps=900, width=512, height=512)))["status"]
    assert long["status_str"] == "error" and "longer than the 4 s" in long["messages"][-1][1]["exception_message"]
    assert drawn(server, 3) and server.workers() == [worker]


@pytest.mark.slow
def test_a_prompt_that_takes_too_much_memory_fails_alone(server: Server) -> None:
    """Six pictures of 16 million points are 1.2 GB, at every node anew; the worker is killed for them, at last the prompt is given up."""
    big = {"1": node("EmptyImage", width=4096, height=4096, batch_size=6, color=0x808080)}
    for i in range(2, 8):
        big[str(i)] = node("ImageInvert", image=[str(i - 1), 0])
    big["end"] = node("SaveImage", images=["7", 0], filename_prefix="big")
    told = server.wait(server.queue(big))["status"]["messages"][-1][1]
    assert told["exception_type"] == "WorkerDied" and "more than 2000 MB of memory" in told["exception_message"]
    assert drawn(server, 4)


def test_memory_that_no_worker_can_live_in_is_said_once_and_refused(tmp_path: Path) -> None:
    server = Server(tmp_path, "--max-memory", "50")
    try:
        waits = server.queue(nodes())
        while "no worker is started any more" not in (tmp_path / "errors.txt").read_text():
            time.sleep(0.05)
        with pytest.raises(urllib.error.HTTPError) as refused:
            server.queue(nodes())
        with refused.value as answer:
            told = str(json.loads(answer.read())["error"]["details"])
        assert told.startswith("--max-memory 50 is too little; the least that a worker can start with is ")
        assert not server.workers() and (tmp_path / "errors.txt").read_text().count(told) == 1
        assert [item[1] for item in server.get("/queue")["queue_pending"]] == [waits]  # with more memory it runs
    finally:
        server.stop()
