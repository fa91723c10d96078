# pip: comfy-toolkit[ws]==0.1.0
# does: follows the steps on the socket, reads the result from the history, downloads it
import sys

from comfy_toolkit import ComfyClient

url, prompt, out = sys.argv[1:]
client = ComfyClient(url)
assert client.is_online() and client.queue_status()["running"] == 0
graph = client.load_workflow(prompt)
graph["5"]["inputs"]["seed"] = 107
steps = []
result = client.submit_and_track(graph, on_progress=lambda value, most: steps.append((value, most)))
assert (6, 6) in steps, steps
client.save(result["images"][0], out)
