# pip: comfyui-autograph==2.3.0
# does: runs the prompt with events, fetches the picture
import sys

from autograph import ApiFlow

url, prompt, out = sys.argv[1:]
graph = ApiFlow(prompt, server_url=url)
heard = []
done = graph.submit(server_url=url, wait=True, poll_interval=0.2, on_event=heard.append)
assert heard
done.fetch_images().save(out)
