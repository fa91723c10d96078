# pip: webuiapi==0.9.17
# does: AUTOMATIC1111's API: txt2img, img2img, what a picture says of itself, options, models, samplers, progress
import sys

import webuiapi

url, prompt, out = sys.argv[1:]
host, port = url.removeprefix("http://").split(":")
api = webuiapi.WebUIApi(host=host, port=int(port), sampler="Euler a", steps=6)
said = {"negative_prompt": "hat", "cfg_scale": 5, "width": 128, "height": 128}
made = api.txt2img(prompt="a girl with purple hair", seed=108, **said)
made.image.save(out)
assert made.info["seed"] == 108 and "Euler a" in api.png_info(made.image).info
again = api.img2img(images=[made.image], prompt="a man with red hair", seed=109, denoising_strength=0.6, **said)
assert again.image.size == (128, 128) and again.image.tobytes() != made.image.tobytes()
api.util_set_model("mini")
assert api.util_get_current_model() == "mini" and "mini" in api.util_get_model_names() and "Euler a" in api.util_get_sampler_names()
assert api.get_progress()["progress"] == 0 and api.get_loras() == [] and api.get_options()
