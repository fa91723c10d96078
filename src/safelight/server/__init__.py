"""The server: a durable queue, worker processes, ComfyUI's wire, OpenAI's and AUTOMATIC1111's. No torch in this process."""
