"""What one prompt may take, enforced where it runs: a real worker under a server with small limits."""

from __future__ import annotations

import json
import urllib.error
from collections.abc import Iterator
from typing import Any

import pytest

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
