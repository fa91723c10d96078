"""Training: ComfyUI's nodes for a LoRA over our `train_lora`, whose dataset is the folder that the pictures came from."""
from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safelight.comfy.building import Building, Link, Words
from safelight.comfy.data import SAYS
from safelight.comfy.node import Given, Input, choice, files, integer, node, real, seed, socket, switch, text
from safelight.comfy.nodes.loaders import STRENGTH
from safelight.folders import inside
from safelight.op import op
from safelight.values import Image, Patch

ODD = ["experimental"]
LOSSES = {"MSE": "l2", "L1": "l1", "Huber": "huber", "SmoothL1": "huber"}
HERE = {"optimizer": ("AdamW", "Adam"), "algorithm": ("LoRA", "LoHa", "LoKr"), "existing_lora": ("[None]",)}
FOLDER = [choice("folder", lambda places: sorted(p.name for p in places.input.glob("*") if p.is_dir()))]
RESIZE = [choice("resize_method", ("None", "Stretch", "Crop", "Pad"), "None", optional=True)]
SIZE = [Input(name, "INT", -1, -1, 10000, 1, optional=True) for name in ("width", "height")]
PLAIN = {"text_encoder": False, "decay": "constant", "warmup": 0, "drop": 0.0, "prior": 0.0, "held_out": 0.0, "samples": 0}


@op(group="image", registry=SAYS)
def loss_graph(lora: Patch) -> Image:
    """The loss of a training by its steps, drawn."""
    import numpy as np
    from PIL import Image as Pil

    from safelight.reporting.model_card import curve

    losses = json.loads(Path(lora.files["record.json"].path).read_text("utf-8"))["loss"]
    drawn = Pil.open(io.BytesIO(curve([(step, loss, loss, loss) for step, loss in losses], "loss by step")))
    return Image(np.asarray(drawn, np.float32)[None] / np.float32(255))


@node("LoadImageSetFromFolderNode", "loaders", [*FOLDER, *RESIZE], "IMAGE", title="Load Image Dataset from Folder", flags=ODD)
def pictures(b: Building, n: Given) -> Any:
    """The pictures of a folder below the input pictures; training cuts them itself."""
    return b.add("load_image", path=str((b.places.input / inside(n["folder"], "folder")).absolute()), raw=True)


@node("LoadImageTextSetFromFolderNode", "loaders", [*FOLDER, *socket("CLIP"), *RESIZE, *SIZE], "IMAGE", "CONDITIONING",
      title="Load Image and Text Dataset from Folder", flags=ODD)
def captioned(b: Building, n: Given) -> Any:
    """The pictures of a folder and the texts beside them."""
    return pictures(b, n), Words(b.add("encode_text", part="captions", model=n["clip"].model, text=""))


def _data(b: Building, latents: Link, prompt: Link) -> Link:
    """The folder behind encoded pictures as a dataset: with its own captions, or all with the prompt that is given."""
    image = b.nodes[latents.id]["inputs"].get("image", [""])[0]
    path = b.nodes.get(image, {}).get("inputs", {}).get("path", "")
    said = b.nodes[prompt.id]["inputs"].get("text", "")
    if not (path and Path(path).is_dir()) or not (said or prompt.id == f"{image}.captions"):
        raise ValueError("latents, positive: expected the pictures of a folder through VAEEncode, and their texts or one prompt")
    data = b.add("folder", part="data", path=path)
    return b.add("caption", part="said", data=data, by="template", template=said.replace("{", "{{").replace("}", "}}")) if said else data


@node("TrainLoraNode", "training",
      [*socket("MODEL"), *socket("LATENT", "latents"), *socket("CONDITIONING", "positive"), integer("batch_size", 1, 1, 10000),
       integer("grad_accumulation_steps", 1, 1, 1024), integer("steps", 16, 1, 100000), real("learning_rate", 0.0005, 1e-7, 1, 1e-6),
       integer("rank", 8, 1, 128), choice("optimizer", ("AdamW", "Adam", "SGD", "RMSprop"), "AdamW"),
       choice("loss_function", tuple(LOSSES), "MSE"), replace(seed(), told={"control_after_generate": False}),
       *[choice(k, ("bf16", "fp32"), "bf16") for k in ("training_dtype", "lora_dtype")],
       choice("algorithm", ("LoRA", "LoHa", "LoKr", "OFT"), "LoRA"), switch("gradient_checkpointing", True),
       choice("existing_lora", lambda places: [*files("loras")(places), "[None]"], "[None]")],
      "model_with_lora:MODEL", "lora:LORA_MODEL", "loss:LOSS_MAP", "steps:INT", title="Train LoRA", flags=ODD)
def train(b: Building, n: Given) -> Any:
    """A LoRA of the denoiser, trained; the precision is the run's."""
    if wrong := [name for name, known in HERE.items() if n[name] not in known]:
        raise ValueError(f"{wrong[0]}: got {n[wrong[0]]!r}, expected {' or '.join(HERE[wrong[0]])}")
    data = _data(b, n["latents"], n["positive"].cond)
    lora = b.add("train_lora", part="lora", model=n["model"], data=data, more=PLAIN | {
        "rank": n["rank"], "method": n["algorithm"].lower(), "lr": n["learning_rate"], "checkpointing": n["gradient_checkpointing"],
        "steps": n["steps"], "batch": n["batch_size"] * n["grad_accumulation_steps"], "at_once": n["batch_size"],
        "seed": n["seed"] % 2**53, "loss": LOSSES[n["loss_function"]], "weight_decay": 0.01 if n["optimizer"] == "AdamW" else 0.0})
    return trained(b, {**n, "lora": lora, "strength_model": 1.0}), lora, lora, n["steps"]


@node("LoraModelLoader", "loaders", [*socket("MODEL"), *socket("LORA_MODEL", "lora"), real("strength_model", *STRENGTH)], "MODEL",
      title="Load LoRA Model", flags=ODD)
def trained(b: Building, n: Given) -> Any:
    """A trained LoRA on a denoiser."""
    return b.add("with_lora", model=n["model"], lora=n["lora"], strength=n["strength_model"], text_strength=0.0)


@node("SaveLoRANode", "loaders",
      [*socket("LORA_MODEL", "lora"), text("prefix", "loras/ComfyUI_trained_lora"),
       Input("steps", "INT", optional=True, told={"forceInput": True})], ends=True, title="Save LoRA Weights", flags=ODD)
def save(b: Building, n: Given) -> Any:
    """A trained LoRA in a file."""
    b.save(n["lora"], f"{n['prefix']}_{n['steps']}_steps" if n.get("steps") else n["prefix"], form={"lora": True})


@node("LossGraphNode", "training", [Input("loss", "LOSS_MAP", told={"default": {}}), text("filename_prefix", "loss_graph")], ends=True,
      title="Plot Loss Graph", flags=ODD)
def graph(b: Building, n: Given) -> Any:
    """How the loss fell, as a picture."""
    b.save(b.add("loss_graph", lora=n["loss"]), n["filename_prefix"], kept=False)
