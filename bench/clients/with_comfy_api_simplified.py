# pip: comfy-api-simplified==1.6.0
# does: changes inputs by title, queues, waits on the socket, fetches the picture; uploads one; lists node classes, the queue, the machine
import sys

from comfy_api_simplified import ComfyApiWrapper, ComfyWorkflowWrapper

url, prompt, out = sys.argv[1:]
api = ComfyApiWrapper(url + "/")
graph = ComfyWorkflowWrapper(prompt)
graph.set_node_param("KSampler", "seed", 101)
(picture,) = api.queue_and_wait_images(graph, "Save Image").values()
with open(out, "wb") as f:
    f.write(picture)
assert api.upload_image(out)["name"].endswith(".png")
assert "KSampler" in api.get_object_info() and list(api.get_object_info("KSampler")) == ["KSampler"]
assert api.get_system_stats()["system"]["comfyui_version"] and api.get_embeddings() == [] and api.get_queue()["queue_running"] == []
