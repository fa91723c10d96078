# pip: openai==3.54.0
# does: OpenAI's own client: lists models, draws, gets the picture as base64
import base64
import sys

import openai

url, prompt, out = sys.argv[1:]
client = openai.OpenAI(base_url=url + "/v1", api_key="none")
assert "mini" in [m.id for m in client.models.list()]
said = {"model": "mini", "prompt": "a girl with purple hair", "size": "128x128", "response_format": "b64_json"}
made = client.images.generate(**said, extra_body={"steps": 6})
with open(out, "wb") as f:
    f.write(base64.b64decode(made.data[0].b64_json))
