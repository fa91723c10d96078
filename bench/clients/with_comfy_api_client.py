# pip: comfy-api-client==0.1.0
# does: submits, reads the machine and the queue; waiting for the result fails in its own code (a function that it does not define)
import asyncio
import json
import sys
import time
import urllib.request

from comfy_api_client import create_client, utils

url, prompt, out = sys.argv[1:]


async def run() -> str:
    async with create_client(url.removeprefix("http://"), start_state_tracker=None) as client:
        assert (await client.get_system_stats()).system.os
        graph = utils.read_json(prompt)
        graph["5"]["inputs"]["seed"] = 113
        return (await client.submit_workflow(graph, return_future=False)).prompt_id


id = asyncio.run(run())
while not (told := json.load(urllib.request.urlopen(f"{url}/history/{id}"))):
    time.sleep(0.2)
name = told[id]["outputs"]["7"]["images"][0]["filename"]
with urllib.request.urlopen(f"{url}/view?filename={name}") as answer, open(out, "wb") as f:
    f.write(answer.read())
