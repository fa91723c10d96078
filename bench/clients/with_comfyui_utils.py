# pip: comfyui-utils==0.0.1
# does: hears its place in the queue, each node and each step, then the result; once more for a prompt that was drawn already
import asyncio
import json
import sys

from comfyui_utils.comfy import Callbacks, ComfyAPI

url, prompt, out = sys.argv[1:]


class Heard(Callbacks):
    def __init__(self) -> None:
        self.steps: list[tuple[int, int]] = []
        self.result: dict = {}

    async def queue_position(self, position: str) -> None:
        print("place in the queue:", position)

    async def in_progress(self, node_id: int, progress: int, total: int) -> None:
        self.steps.append((progress, total))

    async def completed(self, outputs: dict, cached: bool) -> None:
        self.result = outputs


async def run() -> None:
    with open(prompt) as f:
        graph = json.load(f)
    graph["5"]["inputs"]["seed"] = 104
    api = ComfyAPI(url.removeprefix("http://"))
    first, second = Heard(), Heard()
    await api.submit(graph, first)
    assert (6, 6) in first.steps, first.steps
    await api.submit(graph, second)
    assert second.result == first.result

    async def keep(data) -> None:
        with open(out, "wb") as f:
            f.write(data.read())

    await api.fetch(first.result["images"][0], keep)


asyncio.run(run())
