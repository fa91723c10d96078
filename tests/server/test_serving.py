"""The server as users start it, with a real worker that draws with the embedded model."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image as Pil

from safelight.embed import png_texts
from safelight.server.guard import Rules
from tests.server.serving import Server, drawing, nodes


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("serving"))
    yield server
    assert server.stop() == 0
    assert not server.workers()


class Listening:
    """A client's socket, and all that was said on it."""

    def __init__(self, server: Server, client: str) -> None:
        from websockets.sync.client import connect

        self.said: list[tuple[str, dict[str, Any]]] = []
        self.pictures: list[bytes] = []
        self.client = client
        self.stack = ExitStack()
        self.socket = self.stack.enter_context(connect(server.url.replace("http", "ws") + f"/ws?clientId={client}"))
        self.socket.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()
        while not any(t == "feature_flags" for t, _ in self.said):
            time.sleep(0.01)

    def _listen(self) -> None:
        for message in self.socket:
            if isinstance(message, bytes):
                self.pictures.append(message)
                self.said.append(("picture", {}))
            else:
                told = json.loads(message)
                self.said.append((told["type"], told["data"]))

    def run(self, prompt_id: str, seconds: float = 90) -> list[tuple[str, dict[str, Any]]]:
        """All that was said of a prompt, once it has ended."""
        until = time.monotonic() + seconds
        while ("executing", {"node": None, "prompt_id": prompt_id}) not in self.said:
            assert time.monotonic() < until, self.said
            time.sleep(0.02)
        return [(t, d) for t, d in self.said if d.get("prompt_id") == prompt_id or t in ("picture", "status")]

    def close(self) -> None:
        self.stack.close()
        self.thread.join(5)


@pytest.fixture
def ear(server: Server) -> Iterator[Listening]:
    ear = Listening(server, f"client-{random.random()}")
    yield ear
    ear.close()


def of(ear: Listening, server: Server, prompt: dict[str, Any], **extra: Any) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
    ear.said.clear()
    id = server.queue(prompt, client_id=ear.client, extra_data=extra)
    return id, ear.run(id)


def test_a_prompt_runs_and_is_told_of_in_comfyuis_order(server: Server, ear: Listening) -> None:
    workflow = {"id": "an editor's", "nodes": []}
    id, said = of(ear, server, nodes(), extra_pnginfo={"workflow": workflow})
    kinds = [t for t, _ in said if t != "status"]
    assert kinds[:2] == ["execution_start", "execution_cached"] and kinds[-2:] == ["execution_success", "executing"]
    ran = [d["node"] for t, d in said if t == "executing"]
    assert ran.index("5") < ran.index("6") < ran.index("7") and ran[-1] is None and "picture" not in kinds
    steps = [(d["value"], d["max"]) for t, d in said if t == "progress" and d["node"] == "5"]
    assert steps == sorted(steps) and steps[-1] == (3, 3)
    last = [d for t, d in said if t == "progress_state"][-1]
    assert all(n["state"] == "finished" for n in last["nodes"].values()) and set(last["nodes"]["5"]) >= {
        "value",
        "max",
        "display_node_id",
    }
    picture = next(d for t, d in said if t == "executed")["output"]["images"][0]
    assert picture == {"filename": "shot_00001_.png", "subfolder": "", "type": "output"}
    order = [t for t, _ in said]
    assert order.index("execution_success") < len(order) - 1 - order[::-1].index("status") < len(order) - 1
    with urllib.request.urlopen(f"{server.url}/view?filename=shot_00001_.png") as answer:
        content = answer.read()
    assert Pil.open(io.BytesIO(content)).size == (64, 64)
    texts = png_texts(content)
    assert json.loads(texts["prompt"]) == nodes() and json.loads(texts["workflow"]) == workflow and "safelight" in texts
    entry = server.wait(id)
    assert entry["status"]["status_str"] == "success" and entry["status"]["completed"] and entry["outputs"]["7"]["images"] == [picture]
    assert [m[0] for m in entry["status"]["messages"]] == ["execution_start", "execution_cached", "execution_success"]
    assert entry["prompt"][1] == id and entry["prompt"][4] == ["7"] and entry["meta"]["7"]["real_node_id"] == "7"
    job = server.get(f"/api/jobs/{id}")
    assert job["status"] == "completed" and job["preview_output"]["filename"] == "shot_00001_.png" and job["workflow_id"] == "an editor's"

    again, said = of(ear, server, nodes(), extra_pnginfo={"workflow": workflow})  # nothing runs, and no file is written
    kinds = [t for t, _ in said if t != "status"]
    assert set(next(d for t, d in said if t == "execution_cached")["nodes"]) == set(nodes())
    assert kinds == ["execution_start", "execution_cached", "executed", "progress_state", "execution_success", "executing"]
    assert server.wait(again)["outputs"]["7"]["images"] == [picture]
    assert len(list((server.home / "studio" / "output").glob("*.png"))) == 1
    (server.home / "studio" / "output" / "shot_00001_.png").unlink()
    third, _ = of(ear, server, nodes(), extra_pnginfo={"workflow": workflow})  # the file is gone, so it is written again
    told = server.wait(third)["outputs"]["7"]["images"][0]["filename"]
    assert (server.home / "studio" / "output" / told).read_bytes() == content

    _, said = of(ear, server, nodes(steps=2), preview_method="auto")
    assert "5" not in next(d for t, d in said if t == "execution_cached")["nodes"]
    assert "2" in next(d for t, d in said if t == "execution_cached")["nodes"]
    frame = ear.pictures[0]
    size = int.from_bytes(frame[4:8], "big")
    assert frame[:4] == b"\0\0\0\4" and json.loads(frame[8 : 8 + size])["node_id"] == "5" and frame[8 + size :].startswith(b"\xff\xd8")


def test_an_error_names_its_node_and_the_next_prompt_runs(server: Server, ear: Listening) -> None:
    broken = server.home / "studio" / "input" / "broken.png"
    broken.write_bytes(b"no picture")
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "broken.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}},
    }
    id, said = of(ear, server, prompt)
    told = next(d for t, d in said if t == "execution_error")
    assert told["node_id"] == "1" and told["node_type"] == "LoadImage" and told["traceback"] and "broken.png" in told["exception_message"]
    entry = server.wait(id)
    assert entry["status"]["status_str"] == "error" and not entry["status"]["completed"]
    assert server.get(f"/api/jobs/{id}")["execution_error"]["node_id"] == "1"
    assert server.wait(server.queue(drawing(11)))["status"]["completed"]


def test_interrupt_stops_between_two_steps(server: Server, ear: Listening) -> None:
    id = server.queue(drawing(12, steps=900), client_id=ear.client)
    while not any(t == "progress" for t, _ in ear.said):
        time.sleep(0.02)
    server.post("/interrupt", {"prompt_id": "another"})
    assert server.get("/queue")["queue_running"][0][1] == id
    server.post("/interrupt")
    said = ear.run(id)
    assert next(d for t, d in said if t == "execution_interrupted")["node_id"] == "1"
    assert server.wait(id)["status"]["messages"][-1][0] == "execution_interrupted"
    assert server.get(f"/api/jobs/{id}")["status"] == "cancelled"


def test_prompts_share_passes_and_give_what_each_gives_alone(server: Server) -> None:
    """Eight at once are all under way together, and their pictures are those of a run alone."""
    alone = server.wait(server.queue(drawing(100, steps=6)))
    server.post("/queue", {"pause": True})
    ids = [
        server.queue(drawing(100 + i, steps=6, guide="cfg", prompt=f"a man number {i}" if i else "a girl with purple hair"))
        for i in range(8)
    ]
    server.post("/queue", {"pause": False})
    together = 0
    while not server.get(f"/history/{ids[-1]}"):
        together = max(together, len(server.get("/queue")["queue_running"]))
        time.sleep(0.005)
    assert together >= 4
    for id in ids:
        assert server.wait(id)["status"]["completed"]

    def pixels(entry: dict[str, Any]) -> bytes:
        return Pil.open(server.home / "studio" / "output" / entry["outputs"]["1"]["images"][0]["filename"]).tobytes()

    assert pixels(server.wait(ids[0])) == pixels(alone)


def patched(seed: int, steps: int) -> dict[str, Any]:
    """A prompt on the same model with a patch on it, which cannot share its passes."""
    free = {"class_type": "with_freeu", "inputs": {"model": "mini"}}
    drawn = drawing(seed, steps=steps)["1"]
    return {"free": free, "1": {**drawn, "inputs": {**drawn["inputs"], "model": ["free", 0]}}}


def test_what_waits_for_a_model_says_so(server: Server) -> None:
    first = server.queue(drawing(40, steps=60))
    second = server.queue(patched(41, 2))
    told: set[str] = set()
    while not server.get(f"/history/{first}"):
        told.add(server.get("/api/safelight/queue")["progress"].get(second, {}).get("waits", ""))
        time.sleep(0.01)
    assert "its model is held by generate with other patches" in told
    assert server.wait(second)["status"]["completed"] and not server.get("/api/safelight/queue")["progress"]


@pytest.mark.slow
def test_what_waits_for_a_model_goes_to_another_worker(tmp_path: Path) -> None:
    server = Server(tmp_path, "--workers", "2")
    try:
        while not all(w["ready"] for w in server.get("/api/safelight/queue")["workers"]):
            time.sleep(0.1)
        long = [server.queue(drawing(50, steps=120)), server.queue(patched(51, 40))]
        short = server.queue(patched(52, 2))  # the first worker is as busy as the second
        assert server.wait(short)["status"]["completed"] and not server.get(f"/history/{long[0]}")
        assert all(server.wait(id)["status"]["completed"] for id in long)
    finally:
        server.stop()


def kill_at_work(server: Server) -> None:
    until = time.monotonic() + 120
    while not any(p["share"] > 0 for p in server.get("/api/safelight/queue")["progress"].values()):
        assert time.monotonic() < until
        time.sleep(0.02)
    (pid,) = server.workers()
    os.kill(pid, signal.SIGKILL)
    while server.get("/api/safelight/queue")["progress"]:
        time.sleep(0.02)


def test_a_killed_worker_costs_its_prompt_one_attempt(server: Server) -> None:
    first, second = server.queue(drawing(20, steps=100)), server.queue(drawing(21, prompt="a red fox"))
    kill_at_work(server)
    assert server.wait(first)["status"]["completed"] and server.wait(second)["status"]["completed"]


@pytest.mark.slow
def test_a_prompt_that_kills_its_worker_three_times_is_given_up(server: Server) -> None:
    first = server.queue(drawing(22, steps=150))
    for _ in range(3):
        kill_at_work(server)
    second = server.queue(drawing(23))
    entry = server.wait(first)
    told = entry["status"]["messages"][-1][1]
    assert told["exception_type"] == "WorkerDied" and "3 times" in told["exception_message"] and "signal 9" in told["exception_message"]
    assert server.wait(second)["status"]["completed"]


def test_what_is_no_picture_is_kept_whole(server: Server) -> None:
    made = server.wait(server.queue({"mine": {"class_type": "model", "inputs": {"name": "mini"}}}))["outputs"]["mine"]["files"]
    assert {"model_index.json", "unet", "vae"} <= {p.name for p in (server.home / "studio" / "output" / "mine_00001_").iterdir()}
    assert all((server.home / "studio" / "output" / f["subfolder"] / f["filename"]).is_file() for f in made) and len(made) > 5
    score = {"2": {"class_type": "score", "inputs": {"image": ["1", 0], "by": ["sharpness"]}}, **drawing(40)}
    told = server.wait(server.queue(score))["outputs"]["2"]
    assert told["files"][0]["filename"] == "scores.json" and len(told["text"]) == 1
    with urllib.request.urlopen(server.url + told["text"][0]) as answer:  # which the editor shows in the node
        assert "sharpness" in answer.read().decode()


def test_an_answer_completes_its_prompt(server: Server, ear: Listening) -> None:
    """A preflight makes nothing and fails at nothing."""
    folder = server.home / "studio" / "input" / "five"
    folder.mkdir(parents=True)
    for i in range(5):
        Pil.effect_noise((64, 64), 20 + i).convert("RGB").save(folder / f"{i}.png")
    small = {"steps": 3, "batch": 2, "rank": 2, "size": 64, "samples": 0, "preflight": True}
    prompt = {
        "data": {"class_type": "folder", "inputs": {"path": str(folder)}},
        "base": {"class_type": "model", "inputs": {"name": "mini"}},
        "train": {"class_type": "train_lora", "inputs": {"model": ["base", 0], "data": ["data", 0], **small}},
    }
    id, said = of(ear, server, prompt)
    text = next(d for t, d in said if t == "executed" and d["node"] == "train")["output"]["text"][0]
    assert " s a step, " in text and ", until " in text and not [t for t, _ in said if t == "execution_error"]
    told = server.wait(id)
    assert told["status"]["completed"] and told["outputs"] == {"train": {"text": [text]}}
    listed = server.get(f"/api/jobs/{id}")
    assert listed["status"] == "completed" and listed["outputs_count"] == 0
    with urllib.request.urlopen(f"{server.url}/studio/train") as page:
        assert text in page.read().decode()


def test_the_openai_client_draws_and_edits(server: Server) -> None:
    openai = pytest.importorskip("openai")
    with openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        assert "mini" in [m.id for m in client.models.list()]
        made = client.images.generate(
            model="mini",
            prompt="a girl with purple hair",
            n=2,
            size="64x64",
            response_format="b64_json",
            extra_body={"seed": 3, "steps": 2},
        )
        pictures = [Pil.open(io.BytesIO(base64.b64decode(d.b64_json))) for d in made.data]
        assert [p.size for p in pictures] == [(64, 64)] * 2 and pictures[0].tobytes() != pictures[1].tobytes()
        by_link = client.images.generate(
            model="dall-e-3", prompt="a girl with purple hair", size="64x64", extra_body={"seed": 3, "steps": 2}
        )
        with urllib.request.urlopen(by_link.data[0].url) as answer:
            assert Pil.open(io.BytesIO(answer.read())).tobytes() == pictures[0].tobytes()
        raw, mask = io.BytesIO(), io.BytesIO()
        pictures[0].save(raw, "PNG")
        half = Pil.new("RGBA", (64, 64), (0, 0, 0, 255))
        half.paste((0, 0, 0, 0), (0, 0, 64, 32))
        half.save(mask, "PNG")
        edited = client.images.edit(
            image=("a.png", raw.getvalue()),
            mask=("m.png", mask.getvalue()),
            prompt="a man with red hair",
            model="mini",
            size="64x64",
            response_format="b64_json",
            extra_body={"seed": 4, "steps": 2},
        )
        new = Pil.open(io.BytesIO(base64.b64decode(edited.data[0].b64_json)))
        below = (0, 32, 64, 64)
        assert new.crop(below).tobytes() == pictures[0].crop(below).tobytes() and new.tobytes() != pictures[0].tobytes()
        with pytest.raises(openai.BadRequestError, match="size"):
            client.images.generate(model="mini", prompt="x", size="13x13")


def test_automatic1111_draws_and_reads_what_it_drew(server: Server) -> None:
    asked = {
        "prompt": "a (girl:1.2)",
        "negative_prompt": "hat",
        "seed": 5,
        "steps": 2,
        "cfg_scale": 5,
        "width": 64,
        "height": 64,
        "batch_size": 2,
        "sampler_name": "Euler a Karras",
    }
    told = server.post("/sdapi/v1/txt2img", asked)
    info = json.loads(told["info"])
    assert len(told["images"]) == 2 and info["all_seeds"] == [5, 6] and told["parameters"]["steps"] == 2
    read = server.post("/sdapi/v1/png-info", {"image": told["images"][0]})
    assert (
        read["parameters"]["Sampler"] == "Euler a" and read["parameters"]["Schedule type"] == "Karras" and read["parameters"]["Seed"] == "5"
    )
    again = server.post("/sdapi/v1/img2img", {**asked, "init_images": [told["images"][0]], "denoising_strength": 0.5, "batch_size": 1})
    assert len(again["images"]) == 1 and again["images"] != told["images"][:1]
    with pytest.raises(urllib.error.HTTPError) as refused:
        server.post("/sdapi/v1/txt2img", {**asked, "width": 13})
    assert refused.value.code == 400 and b"multiples" in refused.value.read()


START = """
import asyncio, sys, time
from pathlib import Path
from safelight.server.app import application
from safelight.server.files import Shelves
from safelight.server.studio import Setup
from safelight.comfy import object_info

async def main():
    app = application(Setup(Shelves.below(Path(sys.argv[1])), devices=()))
    async with app.router.lifespan_context(app):
        print(time.process_time(), file=sys.stderr)
        object_info(app.state.studio.places)
        await app.state.studio.submit({"1": {"class_type": "generate", "inputs": {"model": "mini", "prompt": "x"}}})
asyncio.run(main())
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_the_server_never_imports_torch(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", START, str(tmp_path)], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "transformers", "scipy", "openai"} & set(eval(done.stdout))  # noqa: S307


def test_it_refuses_to_be_reached_without_a_token(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from safelight.cli import main; main()", "serve", "--host", "0.0.0.0", "--dir", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "--token" in done.stderr and not Rules("0.0.0.0", "x").host_allowed("evil")


def survive(home: Path, prompts: int, kills: int) -> None:
    """Queue prompts and kill servers and workers while they are drawn: each is done once, with one picture of its own."""
    source = random.Random(1)
    server = Server(home)
    ids = [server.queue(drawing(1000 + i, prompt=f"a man {i}", steps=1 + i % 3)) for i in range(prompts)]
    for kill in range(kills):
        left = server.get("/prompt")["exec_info"]["queue_remaining"]
        most = left - source.randint(1, max(1, 2 * prompts // kills - 2))
        while left > max(most, 0):
            time.sleep(0.05)
            left = server.get("/prompt")["exec_info"]["queue_remaining"]
        time.sleep(source.uniform(0, 0.5))
        if kill % 2:
            server.kill()
            server = Server(home)
            assert len(server.get("/api/jobs?limit=1000")["jobs"]) == prompts
        elif pids := server.workers():
            os.kill(source.choice(pids), signal.SIGKILL)
    try:
        entries = [server.wait(id, 300) for id in ids]
    finally:
        server.stop()
    names = [e["outputs"]["1"]["images"][0]["filename"] for e in entries]
    assert all(e["status"]["completed"] for e in entries) and len(set(names)) == prompts
    files = sorted(p.name for p in (home / "studio" / "output").glob("*.png"))
    assert files == sorted(names)
    for entry in entries:
        texts = png_texts((home / "studio" / "output" / entry["outputs"]["1"]["images"][0]["filename"]).read_bytes())
        assert json.loads(texts["prompt"]) == entry["prompt"][2]


def test_no_prompt_is_lost_or_done_twice_when_everything_is_killed(tmp_path: Path) -> None:
    survive(tmp_path, prompts=8, kills=2)


@pytest.mark.slow
def test_six_kills_over_thirty_prompts(tmp_path: Path) -> None:
    survive(tmp_path, prompts=30, kills=6)


@pytest.mark.slow
def test_fifty_kills_over_three_hundred_prompts(tmp_path: Path) -> None:
    survive(tmp_path, prompts=300, kills=50)


def test_a_socket_that_takes_nothing_is_given_up_and_memory_stays_bounded() -> None:
    from safelight.server.sockets import BYTES, WAITING, Socket

    async def work() -> None:
        one = Socket(None, "x")  # type: ignore[arg-type]
        for _ in range(200):
            one.post(b"\0" * 65536)
        assert one.size <= BYTES and not one.gone
        one.post("a message")
        for i in range(WAITING):
            one.post(f"{i}", status=True)
        assert not one.gone and len(one.waiting) <= WAITING  # a state replaces the one before
        for i in range(WAITING):
            one.post(f"{i}")
        assert one.gone and one.size <= BYTES and not any(isinstance(m, bytes) for m in one.waiting)

    asyncio.run(work())
