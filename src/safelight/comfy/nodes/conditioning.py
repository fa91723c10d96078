"""Texts as conditions, and what is done with conditions."""
from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from safelight.comfy.building import Building, Clip, Link, Steer, Words
from safelight.comfy.models import layers_left_out
from safelight.comfy.node import Given, Input, choice, integer, node, pixels, real, socket, switch, text

log = logging.getLogger(__name__)

EMBEDDING = re.compile(r"embedding:([^\s,()]+)")
TWO = socket("CONDITIONING", "positive", "negative")
SIDES = ("positive:CONDITIONING", "negative:CONDITIONING")
SPAN = [real("strength", 1.0, 0, 10), real("start_percent", 0, 0, 1, 0.001), real("end_percent", 1, 0, 1, 0.001)]


def encoded(b: Building, clip: Clip, prompt: str, **more: Any) -> Words:
    """A node of ours that encodes a prompt, with the embeddings that it names."""
    model, prompt = _with_words(b, clip.model, prompt)
    skip = 0 if clip.last is None else -clip.last - 1 - layers_left_out(b.base(model))
    return Words(b.add("encode_text", model=model, text=prompt, skip=skip, negative=b.node in b.against, **more))


def _with_words(b: Building, model: Link, prompt: str) -> tuple[Link, str]:
    """The model that knows the prompt's embeddings, and the prompt without those that are not there: ComfyUI ignores them."""
    for bare in dict.fromkeys(re.sub(r":[\d.+-]+$", "", name) for name in EMBEDDING.findall(prompt)):
        try:
            file = b.places.find("embeddings", bare)
        except ValueError as e:
            log.warning("node %s: %s; it is left out of the prompt", b.node, e)
            prompt = re.sub(rf"embedding:{re.escape(bare)}(?=[\s,():]|$)", "", prompt)
            continue
        read = b.add("load_embedding", part=f"{bare}.file", path=file, name=bare)
        model = b.add("with_embedding", part=bare, model=model, embedding=read)
    return model, prompt


@node("CLIPTextEncode", "conditioning", [text("text", prompt=True), *socket("CLIP")], "CONDITIONING", title="CLIP Text Encode (Prompt)")
def encode(b: Building, n: Given) -> Any:
    """A prompt."""
    return encoded(b, n["clip"], n["text"])


def _sides(*names: str, default: int = 1024) -> list[Input]:
    return [integer(name, default, 0, 16384) for name in names]


@node("CLIPTextEncodeSDXL", "advanced/conditioning",
      [*socket("CLIP"), *_sides("width", "height"), *_sides("crop_w", "crop_h", default=0), *_sides("target_width", "target_height"),
       text("text_g", prompt=True), text("text_l", prompt=True)], "CONDITIONING")
def encode_sdxl(b: Building, n: Given) -> Any:
    """A prompt for each of SDXL's encoders, and the sizes that it is told."""
    sizes = {name: n[name] for name in ("width", "height", "target_width", "target_height")}
    first = n["text_l"] if n["text_l"] != n["text_g"] else None
    return encoded(b, n["clip"], n["text_g"], first=first, crop_x=n["crop_w"], crop_y=n["crop_h"], **sizes)


@node("CLIPTextEncodeSDXLRefiner", "advanced/conditioning",
      [real("ascore", 6.0, 0, 1000), *_sides("width", "height"), text("text", prompt=True), *socket("CLIP")], "CONDITIONING")
def encode_refiner(b: Building, n: Given) -> Any:
    """A prompt for SDXL's refiner."""
    return encoded(b, n["clip"], n["text"], score=n["ascore"], width=n["width"], height=n["height"])


def _placed(op: str, **names: str) -> Callable[[Building, Given], Words]:
    """What sets something of a condition: our op, and its inputs' names here."""

    def make(b: Building, n: Given) -> Words:
        words: Words = n["conditioning"]
        return replace(words, cond=b.add(op, cond=words.cond, **{ours: n[theirs] for ours, theirs in names.items()}))

    return make


AREA = {"width": "width", "height": "height", "x": "x", "y": "y", "strength": "strength"}

node("ConditioningSetArea", "conditioning",
     [*socket("CONDITIONING"), pixels("width", 64, 64), pixels("height", 64, 64), pixels("x", 0, 0), pixels("y", 0, 0),
      real("strength", 1.0, 0, 10)], "CONDITIONING", title="Conditioning (Set Area)")(_placed("set_area", **AREA))

node("ConditioningSetAreaStrength", "conditioning", [*socket("CONDITIONING"), real("strength", 1.0, 0, 10)],
     "CONDITIONING")(_placed("set_range", strength="strength"))

node("ConditioningSetTimestepRange", "advanced/conditioning",
     [*socket("CONDITIONING"), real("start", 0.0, 0, 1, 0.001), real("end", 1.0, 0, 1, 0.001)],
     "CONDITIONING")(_placed("set_range", start="start", end="end"))


@node("ConditioningSetAreaPercentage", "conditioning",
      [*socket("CONDITIONING"), real("width", 1.0, 0, 1), real("height", 1.0, 0, 1), real("x", 0, 0, 1), real("y", 0, 0, 1),
       real("strength", 1.0, 0, 10)], "CONDITIONING", title="Conditioning (Set Area with Percentage)")
def area_share(b: Building, n: Given) -> Any:
    """A rectangle in shares of the picture."""
    cond = b.add("set_area", cond=n["conditioning"].cond, shares=True, **{name: n[name] for name in AREA})
    return replace(n["conditioning"], cond=cond)


@node("ConditioningSetMask", "conditioning",
      [*socket("CONDITIONING"), *socket("MASK"), real("strength", 1.0, 0, 10), choice("set_cond_area", ("default", "mask bounds"))],
      "CONDITIONING", title="Conditioning (Set Mask)")
def set_mask(b: Building, n: Given) -> Any:
    """A place given by a mask."""
    bounds = n["set_cond_area"] != "default"
    cond = b.add("set_mask", cond=n["conditioning"].cond, mask=n["mask"], strength=n["strength"], bounds=bounds)
    return replace(n["conditioning"], cond=cond)


@node("ConditioningZeroOut", "advanced/conditioning", socket("CONDITIONING"), "CONDITIONING")
def zero(b: Building, n: Given) -> Any:
    """Nothing of the text."""
    return replace(n["conditioning"], cond=b.add("scale_cond", cond=n["conditioning"].cond, by=0.0))


@node("ConditioningCombine", "conditioning", socket("CONDITIONING", "conditioning_1", "conditioning_2"), "CONDITIONING",
      title="Conditioning (Combine)")
def combine(b: Building, n: Given) -> Any:
    """Both together."""
    one, other = n["conditioning_1"], n["conditioning_2"]
    if one.steers != other.steers:
        raise ValueError("its two conditions carry different ControlNets; put the ControlNet on the combined condition")
    return replace(one, cond=b.add("combine_conds", conds=[one.cond, other.cond]), gligen=one.gligen or other.gligen)


FROM_TO = socket("CONDITIONING", "conditioning_to", "conditioning_from")


@node("ConditioningConcat", "conditioning", FROM_TO, "CONDITIONING", title="Conditioning (Concat)")
def concat(b: Building, n: Given) -> Any:
    """One text after the other."""
    to = n["conditioning_to"]
    return replace(to, cond=b.add("concat_conds", cond=to.cond, other=n["conditioning_from"].cond))


@node("ConditioningAverage", "conditioning", [*FROM_TO, real("conditioning_to_strength", 1.0, 0, 1)], "CONDITIONING")
def average(b: Building, n: Given) -> Any:
    """A blend of two texts."""
    to, strength = n["conditioning_to"], n["conditioning_to_strength"]
    return replace(to, cond=b.add("average_conds", cond=to.cond, other=n["conditioning_from"].cond, strength=strength))


@node("ControlNetApply", "conditioning/controlnet",
      [*socket("CONDITIONING"), *socket("CONTROL_NET"), *socket("IMAGE"), real("strength", 1.0, 0, 10)], "CONDITIONING",
      title="Apply ControlNet (OLD)", flags=["deprecated"])
def apply_control(b: Building, n: Given) -> Any:
    """A ControlNet on a condition; from the positive one it steers the negative one too, unless that has its own."""
    words: Words = n["conditioning"]
    if n["strength"] == 0:
        return words
    return replace(words, steers=(*words.steers, Steer(n["control_net"], n["image"], n["strength"], both=True)))


@node("ControlNetApplyAdvanced", "conditioning/controlnet",
      [*TWO, *socket("CONTROL_NET"), *socket("IMAGE"), *SPAN, *socket("VAE", optional=True)], *SIDES,
      title="Apply ControlNet")
def apply_controls(b: Building, n: Given) -> Any:
    """A ControlNet on both conditions, for a part of the way."""
    both = n["positive"], n["negative"]
    if n["strength"] == 0:
        return both
    steer = Steer(n["control_net"], n["image"], n["strength"], n["start_percent"], n["end_percent"])
    return tuple(replace(words, steers=(*words.steers, steer)) for words in both)


node("ControlNetApplySD3", "conditioning/controlnet", [*TWO, *socket("CONTROL_NET"), *socket("VAE"), *socket("IMAGE"), *SPAN], *SIDES,
     title="Apply Controlnet with VAE", flags=["deprecated"])(apply_controls)


@node("GLIGENTextBoxApply", "conditioning/gligen",
      [*socket("CONDITIONING", "conditioning_to"), *socket("CLIP"), *socket("GLIGEN", "gligen_textbox_model"), text("text", prompt=True),
       pixels("width", 64, 8), pixels("height", 64, 8), pixels("x", 0, 0), pixels("y", 0, 0)], "CONDITIONING")
def box(b: Building, n: Given) -> Any:
    """What is to be in a rectangle."""
    model, prompt = _with_words(b, n["clip"].model, n["text"])
    place = {name: n[name] for name in ("width", "height", "x", "y")}
    cond = b.add("add_box", cond=n["conditioning_to"].cond, model=model, text=prompt, **place)
    return replace(n["conditioning_to"], cond=cond, gligen=n["gligen_textbox_model"])


@node("InpaintModelConditioning", "conditioning/inpaint",
      [*TWO, *socket("VAE"), *socket("IMAGE", "pixels"), *socket("MASK"), switch("noise_mask", True)],
      *SIDES, "latent:LATENT")
def inpaint(b: Building, n: Given) -> Any:
    """What an inpainting network is shown, and the latent it draws into."""
    shown = b.add("encode_inpaint", part="shown", model=n["vae"], image=n["pixels"], mask=n["mask"], exact=True)
    sides = [replace(n[side], cond=b.add("inpaint_cond", part=side, cond=n[side].cond, shown=shown)) for side in ("positive", "negative")]
    latent = b.add("encode", model=n["vae"], image=n["pixels"])
    if n["noise_mask"]:
        latent = b.add("set_noise_mask", part="masked", latent=latent, mask=shown)
    return *sides, latent


@node("CLIPTextEncodeSD3", "advanced/conditioning",
      [*socket("CLIP"), text("clip_l", prompt=True), text("clip_g", prompt=True), text("t5xxl", prompt=True),
       choice("empty_padding", ("none", "empty_prompt"))], "CONDITIONING")
def encode_sd3(b: Building, n: Given) -> Any:
    """A prompt for SD 3's encoders; here it is one for all of them."""
    said = {n["clip_l"], n["clip_g"], n["t5xxl"]}
    if len(said) > 1:
        raise ValueError("clip_l, clip_g, t5xxl: got different texts; expected one text for all, SD 3's encoders read the same prompt here")
    return encoded(b, n["clip"], said.pop())


@node("PairConditioningCombine", "advanced/hooks/cond pair", socket("CONDITIONING", "positive_A", "negative_A", "positive_B", "negative_B"),
      *SIDES, title="Cond Pair Combine", flags=["experimental"])
def combine_pairs(b: Building, n: Given) -> Any:
    """Two pairs of conditions as one."""
    sides = []
    for side in ("positive", "negative"):
        one, other = n[f"{side}_A"], n[f"{side}_B"]
        if one.steers != other.steers:
            raise ValueError("its conditions carry different ControlNets; put the ControlNet on the combined ones")
        sides.append(replace(one, cond=b.add("combine_conds", part=side, conds=[one.cond, other.cond]), gligen=one.gligen or other.gligen))
    return tuple(sides)
