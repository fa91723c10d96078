"""Loaders: checkpoints, their parts, LoRAs, ControlNets."""
from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from safelight.comfy.building import Building, Clip, Link
from safelight.comfy.models import EMBEDDED
from safelight.comfy.node import Given, choice, files, integer, node, real, socket, switch

STRENGTH = (1.0, -100.0, 100.0)
CLIP_TYPES = ("stable_diffusion", "stable_cascade", "sd3", "stable_audio", "mochi", "ltxv", "pixart", "cosmos", "lumina2", "wan", "hidream",
              "chroma", "ace", "omnigen2", "qwen_image", "hunyuan_image")
DEVICE = replace(choice("device", ("default", "cpu"), optional=True), told={"advanced": True})
KINDS = ("auto", "openpose", "depth", "hed/pidi/scribble/ted", "canny/lineart/anime_lineart/mlsd", "normal", "segment", "tile", "repaint")
PREDICTIONS = {"eps": "eps", "v_prediction": "v"}


@node("CheckpointLoaderSimple", "loaders", [choice("ckpt_name", lambda places: [*files("checkpoints")(places), EMBEDDED])],
      "MODEL", "CLIP", "VAE", title="Load Checkpoint", parts={"name": "ckpt_name"})
def checkpoint(b: Building, n: Given) -> Any:
    """A checkpoint with all its parts."""
    whole = b.model()
    return whole, Clip(whole), whole


@node("DiffusersLoader", "advanced/loaders/deprecated", [choice("model_path", files("diffusers"))], "MODEL", "CLIP", "VAE",
      parts={"name": "model_path"})
def diffusers_folder(b: Building, n: Given) -> Any:
    """A folder in diffusers layout."""
    return checkpoint(b, n)


@node("UNETLoader", "advanced/loaders",
      [choice("unet_name", files("diffusion_models")), choice("weight_dtype", ("default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"))],
      "MODEL", title="Load Diffusion Model", parts={"name": "unet_name"})
def unet(b: Building, n: Given) -> Any:
    """A denoiser; its text encoder and VAE are those of the loaders beside it."""
    return b.model()


@node("CLIPLoader", "advanced/loaders",
      [choice("clip_name", files("text_encoders")), choice("type", CLIP_TYPES), DEVICE], "CLIP",
      title="Load CLIP", parts={"text_encoder": "clip_name"})
def clip(b: Building, n: Given) -> Any:
    """A text encoder."""
    return Clip(b.model())


@node("DualCLIPLoader", "advanced/loaders",
      [choice("clip_name1", files("text_encoders")), choice("clip_name2", files("text_encoders")),
       choice("type", ("sdxl", "sd3", "flux", "hunyuan_video", "hidream", "hunyuan_image")), DEVICE],
      "CLIP", parts={"text_encoder": "clip_name1", "text_encoder_2": "clip_name2"})
def two_clips(b: Building, n: Given) -> Any:
    """Two text encoders."""
    return Clip(b.model())


@node("VAELoader", "loaders", [choice("vae_name", files("vae"))], "VAE", title="Load VAE", parts={"vae": "vae_name"})
def vae(b: Building, n: Given) -> Any:
    """An autoencoder."""
    return b.model()


@node("CLIPSetLastLayer", "conditioning", [*socket("CLIP"), integer("stop_at_clip_layer", -1, -24, -1)], "CLIP",
      title="CLIP Set Last Layer")
def last_layer(b: Building, n: Given) -> Any:
    """Read an earlier layer of the text encoder."""
    return Clip(n["clip"].model, n["stop_at_clip_layer"])


def _lora(b: Building, n: Given, model: Link, strength: float, text_strength: float, *, part: str = "") -> Link:
    file = Link(f"{b.node}.lora")
    if file.id not in b.nodes:
        b.add("load_lora", part="lora", path=b.places.find("loras", n["lora_name"]))
    return b.add("with_lora", part=part, model=model, lora=file, strength=strength, text_strength=text_strength)


@node("LoraLoader", "loaders",
      [*socket("MODEL"), *socket("CLIP"), choice("lora_name", files("loras")), real("strength_model", *STRENGTH),
       real("strength_clip", *STRENGTH)], "MODEL", "CLIP", title="Load LoRA")
def lora(b: Building, n: Given) -> Any:
    """A LoRA on a denoiser and a text encoder. Where both are one model's, so is the result: one lease serves encoding and drawing."""
    model, text = n["model"], n["clip"]
    strength, text_strength = n["strength_model"], n["strength_clip"]
    if strength == 0 and text_strength == 0:
        return model, text
    if text.model == model:
        both = _lora(b, n, model, strength, text_strength)
        return both, Clip(both, text.last)
    drawn = _lora(b, n, model, strength, 0.0) if strength else model
    return drawn, Clip(_lora(b, n, text.model, 0.0, text_strength, part="clip"), text.last) if text_strength else text


@node("LoraLoaderModelOnly", "loaders", [*socket("MODEL"), choice("lora_name", files("loras")), real("strength_model", *STRENGTH)], "MODEL")
def lora_of_model(b: Building, n: Given) -> Any:
    """A LoRA on a denoiser."""
    return _lora(b, n, n["model"], n["strength_model"], 0.0) if n["strength_model"] else n["model"]


@node("ControlNetLoader", "loaders", [choice("control_net_name", files("controlnet"))], "CONTROL_NET", title="Load ControlNet Model")
def control(b: Building, n: Given) -> Any:
    """A ControlNet."""
    return b.add("load_control", path=b.places.find("controlnet", n["control_net_name"]))


def _freeu(name: str, b1: float, b2: float, method: str) -> None:
    inputs = [*socket("MODEL"), real("b1", b1, 0, 10), real("b2", b2, 0, 10), real("s1", 0.9, 0, 10), real("s2", 0.2, 0, 10)]
    node(name, "model_patches/unet", inputs, "MODEL")(lambda b, n: b.add("with_freeu", **n, method=method))


_freeu("FreeU", 1.1, 1.2, "v1")
_freeu("FreeU_V2", 1.3, 1.4, "v2")


@node("TripleCLIPLoader", "advanced/loaders", [choice(f"clip_name{i}", files("text_encoders")) for i in (1, 2, 3)], "CLIP",
      parts={"text_encoder": "clip_name1", "text_encoder_2": "clip_name2", "text_encoder_3": "clip_name3"})
def three_clips(b: Building, n: Given) -> Any:
    """SD 3's text encoders, in the order CLIP-L, CLIP-G, T5."""
    return Clip(b.model())


node("SetUnionControlNetType", "conditioning/controlnet", [*socket("CONTROL_NET"), choice("type", KINDS)],
     "CONTROL_NET")(lambda b, n: b.add("set_kind", control=n["control_net"], kind=n["type"].partition("/")[0]))

node("GLIGENLoader", "loaders", [choice("gligen_name", files("gligen"))], "GLIGEN")(lambda b, n: b.places.find("gligen", n["gligen_name"]))


@node("HypernetworkLoader", "loaders",
      [*socket("MODEL"), choice("hypernetwork_name", files("hypernetworks")), real("strength", 1.0, -10, 10)], "MODEL")
def hypernetwork(b: Building, n: Given) -> Any:
    """A hypernetwork on a denoiser."""
    given = {"path": b.places.find("hypernetworks", n["hypernetwork_name"]), "strength": n["strength"]}
    return replace(b.add("with_network", model=n["model"], kind="hypernetworks", **given), sampled=n["model"].sampled)


@node("CheckpointLoader", "advanced/loaders", [choice("config_name", files("configs")), choice("ckpt_name", files("checkpoints"))],
      "MODEL", "CLIP", "VAE", title="Load Checkpoint With Config (DEPRECATED)", parts={"name": "ckpt_name"}, flags=["deprecated"])
def configured(b: Building, n: Given) -> Any:
    """A checkpoint, and of its configuration what the weights do not tell: a prediction of v, and the layer of the text encoder."""
    try:
        told = yaml.safe_load(b.places.models.find("configs", n["config_name"]).read_bytes())["model"]["params"]
        text = told["cond_stage_config"].get("params") or {}
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"config_name: {n['config_name']}: expected a configuration with model.params in it; {e!r}") from e
    whole = b.rebased(b.model(), prediction="v") if told.get("parameterization") == "v" else b.model()
    return whole, Clip(whole, text.get("layer_idx")), whole


@node("DiffControlNetLoader", "loaders", [*socket("MODEL"), choice("control_net_name", files("controlnet"))], "CONTROL_NET",
      title="Load ControlNet Model (diff)")
def control_of(b: Building, n: Given) -> Any:
    """A ControlNet; of one that is kept as a difference nothing is known here, and reading it says so."""
    return control(b, n)


@node("ModelSamplingDiscrete", "advanced/model",
      [*socket("MODEL"), choice("sampling", ("eps", "v_prediction", "lcm", "x0", "img_to_img")), switch("zsnr", False)], "MODEL")
def prediction(b: Building, n: Given) -> Any:
    """Another word for what the network predicts."""
    found = PREDICTIONS.get(n["sampling"])
    if found is None or (n["zsnr"] and found == "eps"):
        got = f"{n['sampling']!r}{' with zsnr' * n['zsnr']}"
        raise ValueError(f"sampling: got {got}; eps, v_prediction and v_prediction with zsnr are here")
    return b.taught(n["model"], prediction="v-zsnr" if n["zsnr"] else found)


@node("RescaleCFG", "advanced/model", [*socket("MODEL"), real("multiplier", 0.7, 0, 1)], "MODEL")
def rescale(b: Building, n: Given) -> Any:
    """Guidance that keeps the contrast down."""
    return replace(n["model"], sampled=(*n["model"].sampled, ("guide", "rescale"), ("rescale", n["multiplier"])))
