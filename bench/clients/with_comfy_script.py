# pip: comfy-script[runtime]==0.6.1
# does: makes a Python function of every node class from /object_info, then runs the prompt written as Python
import sys

from comfy_script.runtime import *

url, prompt, out = sys.argv[1:]
load(url)
from comfy_script.runtime.nodes import *

with Workflow(wait=True):
    model, clip, vae = Model_("mini", "auto")[:3]
    latent = KSampler(
        model, 105, 6, 4.0, "euler", "normal", CLIPTextEncode("a girl with purple hair", clip), CLIPTextEncode("", clip),
        EmptyLatentImage(128, 128, 1), 1.0,
    )
    pictures = util.get_images(VAEDecode(latent, vae), save=True)
pictures[0].save(out)
