"""The Kolors nodes as its workflows use them: a model, its text encoder, texts, a sampler in diffusers' schedules, a LoRA."""
from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from safelight.comfy.building import Building, Link
from safelight.comfy.convert import opened
from safelight.comfy.node import Given, Input, choice, files, integer, node, pixels, real, seed, socket, text

AT = "KwaiKolorsWrapper"
LEVELS, FIRST, LAST = 1100, 0.00085, 0.014
"""The table of noise levels: its length, and the ends of beta, whose root is linear."""
PRECISIONS = ("fp16", "quant4", "quant8")
MULTISTEP = {"DPMSolverMultistepScheduler": "dpmpp_2m", "UniPCMultistepScheduler": "uni_pc_bh2", "DEISMultistepScheduler": "deis"}
SAMPLERS = {
    "EulerDiscreteScheduler": "euler", "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPMSolverMultistepScheduler": MULTISTEP["DPMSolverMultistepScheduler"], "DPMSolverMultistepScheduler_SDE_karras": "dpmpp_2m_sde",
    "UniPCMultistepScheduler": MULTISTEP["UniPCMultistepScheduler"], "DEISMultistepScheduler": MULTISTEP["DEISMultistepScheduler"],
}
MODEL, TEXTS = socket("KOLORSMODEL", "kolors_model"), "kolors_embeds:KOLORS_EMBEDS"


@dataclass(frozen=True)
class Pairs:
    """What is behind KOLORS_EMBEDS: conditions with what is against each, and how many pictures of each."""

    conds: tuple[tuple[Link, Link], ...]
    each: int


@node("DownloadAndLoadKolorsModel", AT, [choice("model", ("Kwai-Kolors/Kolors",)), choice("precision", ("fp16",))],
      "kolors_model:KOLORSMODEL", title="(Down)load Kolors Model", parts={"name": "model"})
def kolors(b: Building, n: Given) -> Any:
    """Kolors, from models/diffusers or the Hugging Face cache; nothing is downloaded here. The precision is the run's."""
    return b.model()


@node("DownloadAndLoadChatGLM3", AT, [choice("precision", PRECISIONS, "fp16")], "chatglm3_model:CHATGLM3MODEL",
      title="(Down)load ChatGLM3 Model", parts={})
def chatglm(b: Building, n: Given) -> Any:
    """The text encoder of the Kolors model beside it."""
    return b.model()


@node("LoadChatGLM3", AT, [choice("chatglm3_checkpoint", files("LLM")), choice("precision", PRECISIONS, "fp16")],
      "chatglm3_model:CHATGLM3MODEL", title="Load ChatGLM3 Model", parts={"text_encoder": "chatglm3_checkpoint"})
def chatglm_file(b: Building, n: Given) -> Any:
    """A text encoder from models/LLM."""
    return b.model()


@node("KolorsTextEncode", AT,
      [Input("chatglm3_model", "CHATGLM3MODEL", old="kolors_model"), text("prompt", many_lines=True),
       text("negative_prompt", many_lines=True), integer("num_images_per_prompt", 1, 1, 128)], TEXTS, title="Kolors Text Encode")
def encode(b: Building, n: Given) -> Any:
    """Prompts: `{a|b}` is one of them by chance, and without braces a `|` stands between prompts of one batch."""
    told: str = n["prompt"]
    prompts = [opened(told)] if "{" in told and "}" in told else told.split("|")
    against = b.add("encode_text", part="negative", model=n["chatglm3_model"], text=n["negative_prompt"], negative=True)
    conds = [b.add("encode_text", part=str(i), model=n["chatglm3_model"], text=prompt) for i, prompt in enumerate(prompts)]
    return Pairs(tuple((cond, against) for cond in conds), n["num_images_per_prompt"])


@node("KolorsSampler", AT,
      [*MODEL, *socket("KOLORS_EMBEDS", "kolors_embeds"), pixels("width", 1024, 64, 64, 2048), pixels("height", 1024, 64, 64, 2048), seed(),
       integer("steps", 25, 1, 200), real("cfg", 5.0, 0, 20), choice("scheduler", tuple(SAMPLERS), "EulerDiscreteScheduler", newer=True),
       *socket("LATENT", "latent", optional=True), real("denoise_strength", 1.0, 0, 1, optional=True)], "latent:LATENT",
      title="Kolors Sampler")
def sample(b: Building, n: Given) -> Any:
    """Latents along diffusers' "leading" steps; from a latent, the last share of them."""
    pairs: Pairs = n["kolors_embeds"]
    total, given = len(pairs.conds) * pairs.each, n.get("latent")
    way, left_out = _way(n, part=given is not None)
    if given is None:
        given = b.add("empty_latent", part="empty", model=n["kolors_model"], width=n["width"], height=n["height"], count=total)
        if way.get("sigmas"):
            way |= {"add_noise": False}
            given = _noise(b, n, given, way["sigmas"][0])
    elif total > 1:
        given = b.add("repeat_latents", part="each", latent=given, count=total, noise="new")
    drawn = []
    for i, (cond, against) in enumerate(pairs.conds):
        alone = len(pairs.conds) == 1
        start = given if alone else b.add("pick_latents", part=f"start{i}", latent=given, start=i * pairs.each, count=pairs.each)
        drawn.append(b.add(
            "sample", part="" if alone else str(i), model=n["kolors_model"], positive=cond, negative=against, latent=start, seed=n["seed"],
            scale=n["cfg"], sampler=SAMPLERS[n["scheduler"]], steps=n["steps"], start_at_step=left_out, **way,
        ))
    return drawn[0] if len(drawn) == 1 else b.add("join_latents", latents=drawn)


def _way(n: Given, *, part: bool) -> tuple[dict[str, Any], int]:
    """The schedule's inputs of `sample`, and how many of its first steps are left out."""
    steps, share = n["steps"], n.get("denoise_strength", 1.0)
    left_out = max(steps - min(int(steps * share), steps), 0) if part else 0
    if n["scheduler"].endswith("_karras"):
        return {"schedule": "karras"}, left_out
    if left_out == steps:
        raise ValueError(f"denoise_strength: {share:g} of {steps} steps is not one step; take more of either")
    return {"sigmas": leading(steps, multistep=n["scheduler"] in MULTISTEP)[left_out:]}, 0


def leading(steps: int, *, multistep: bool = False) -> list[float]:
    """Noise levels of Kolors' table at evenly spaced whole times from 1 up, and 0: diffusers' "leading" spacing with an offset of 1. Its
    multistep solvers space them as for one step more and leave the first time out."""
    apart = LEVELS // (steps + multistep)
    kept, table = 1.0, []
    for i in range(LEVELS):
        root = math.sqrt(FIRST) + (math.sqrt(LAST) - math.sqrt(FIRST)) * i / (LEVELS - 1)
        kept *= 1 - root * root
        table.append(math.sqrt((1 - kept) / kept))
    return [*(table[min((i + multistep) * apart + 1, LEVELS - 1)] for i in reversed(range(steps))), 0.0]


def _noise(b: Building, n: Given, empty: Link, level: float) -> Link:
    """Noise of the size that data and noise have together at the first level, where diffusers starts."""
    levels = b.add("sigmas", part="level", curve="karras", steps=2, high=level, low=level / 2)
    noisy = b.add("add_noise", part="noise", model=n["kolors_model"], latent=empty, sigmas=levels, seed=n["seed"])
    whole = math.sqrt(1 + level * level) / level
    return b.add("mix_latents", part="start", latent=noisy, other=noisy, ratio=1.0, scale=whole)


@node("LoadKolorsLoRA", AT, [*MODEL, text("lora_path"), real("lora_alpha", 2.0, 0, 4)], "kolors_model:KOLORSMODEL",
      title="Load Kolors LoRA")
def lora(b: Building, n: Given) -> Any:
    """A LoRA by its name in models/loras or its path there; as strong as alpha over the rank that the file has."""
    if not n["lora_path"] or not n["lora_alpha"]:
        return n["kolors_model"]
    name = n["lora_path"].replace("\\", "/").rstrip("/")
    inside = [p.path.absolute() for p in b.places.models.of("loras")]
    below = next((name.removeprefix(f"{root.as_posix()}/") for root in inside if name.startswith(f"{root.as_posix()}/")), name)
    try:
        path = b.places.find("loras", below)
    except ValueError:
        path = b.places.find("loras", below.rpartition("/")[2])  # a path of another machine
    read = b.add("load_lora", part="lora", path=path, alpha=n["lora_alpha"])
    return b.add("with_lora", model=n["kolors_model"], lora=read, strength=1.0)
