# pip: comfyui-workflow-client==0.1.0
# does: the same prompt through its blocking and its asynchronous client, seed and text changed by title
import asyncio
import sys

from comfyuiclient import ComfyUIClient, ComfyUIClientAsync

url, prompt, out = sys.argv[1:]
at = url.removeprefix("http://")
client = ComfyUIClient(at, prompt)
client.connect()
client.set_data(key="KSampler", seed=102)
client.set_data(key="Positive", text="a man with red hair")
client.generate(["Save Image"])["Save Image"].save(out)
client.close()


async def again() -> None:
    client = ComfyUIClientAsync(at, prompt)
    await client.connect()
    await client.set_data(key="KSampler", seed=103)
    assert (await client.generate(["Save Image"]))["Save Image"].size == (128, 128)
    await client.close()


asyncio.run(again())
