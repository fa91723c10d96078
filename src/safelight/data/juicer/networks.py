"""Filters that look with a network: aesthetics, nsfw, watermark, likeness of picture and text. The network is a folder, or a name in the
Hugging Face cache; nothing is downloaded. For image_text_similarity_filter `hf_clip: embedded` is the pair of encoders that comes along.
"""
from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cache, cached_property, lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.data.juicer.pictures import Picture
from safelight.data.juicer.registry import Pictures, Settings, pair_filter, picture_filter

if TYPE_CHECKING:
    from PIL import Image as Pil

OWN_CODE: dict[str, Any] = {"trust_remote_code": (False,)}
FLIPS: dict[str, Any] = {"horizontal_flip": False, "vertical_flip": False, "reduce_mode": ("avg", "max", "min")}
EMBEDDED = "embedded"


class Network:
    """A network of transformers with what prepares its inputs, on the best device there is. ImportError when it is not there."""

    def __init__(self, name: str, kind: str) -> None:
        import transformers

        from safelight.runtime import choose_device

        self.place, self.device = place(name), choose_device()
        made = getattr(transformers, kind)
        self.model = made.from_pretrained(self.place, local_files_only=True, use_safetensors=True).to(self.device).eval()

    @cached_property
    def tokenizer(self) -> Any:
        """For the text; the embedded one lies beside its network."""
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        if (self.place / "tokenizer_config.json").exists():
            return AutoTokenizer.from_pretrained(self.place, local_files_only=True)
        return PreTrainedTokenizerFast.from_pretrained(self.place.parent / "tokenizer", local_files_only=True)

    @cached_property
    def processor(self) -> Callable[[Sequence[Pil.Image]], Any]:
        """Pictures -> (B, 3, H, W) float32."""
        import numpy as np
        import torch

        if (self.place / "preprocessor_config.json").exists():
            from transformers import AutoImageProcessor

            own = AutoImageProcessor.from_pretrained(self.place, local_files_only=True, backend="pil")
            return lambda some: own(images=list(some), return_tensors="pt")["pixel_values"]
        from safelight.pictures import floats, square

        named = self.place / "preprocessor.json"
        said = json.loads(named.read_text("utf-8")) if named.exists() else {}
        side = int(self.model.config.vision_config.image_size)
        mean, std = (np.array(said.get(k, [0.5] * 3), np.float32) for k in ("image_mean", "image_std"))
        return lambda some: torch.from_numpy(
            np.stack([((floats(square(np.asarray(p), side)) - mean) / std).transpose(2, 0, 1) for p in some]))

    def pictures(self, some: Sequence[Pil.Image]) -> Any:
        """Pictures as the network takes them, on its device."""
        return self.processor(some).to(self.device)

    def words(self, text: str) -> Any:
        """One text as tokens on the device, cut at the network's limit."""
        limit = int(self.model.config.text_config.max_position_embeddings)
        tokens = self.tokenizer([text], return_tensors="pt", truncation=True, max_length=limit, padding=True)
        return {k: v.to(self.device) for k, v in tokens.items() if k in ("input_ids", "attention_mask")}


def place(name: str) -> Path:
    """The folder of a network: the embedded one, a folder, or a name in the cache. ImportError, which ends the run, when there is none."""
    from safelight import folders
    from safelight.families.sources import read_config

    if name == EMBEDDED:
        return Path(str(files("safelight") / "embedded" / "weights" / "clip"))
    found = Path(name).expanduser() if Path(name).expanduser().is_dir() else None
    try:
        found = found or folders.hub_snapshot(name)
    except ValueError as error:
        raise ImportError(str(error)) from error
    for config in sorted(found.glob("*config.json")):
        read_config(config)  # refuses what would run code
    return found


@lru_cache(maxsize=4)
def network(name: str, kind: str) -> Network:
    """A loaded network; the last four stay in memory."""
    return Network(name, kind)


def _second_class(picture: Picture, name: str) -> float:
    import torch

    used = network(name, "AutoModelForImageClassification")
    with torch.inference_mode():
        logits = used.model(pixel_values=used.pictures([picture.pixels])).logits
    return float(torch.softmax(logits.float(), dim=-1)[0, 1])


@picture_filter({"image_nsfw_score": ("min_score", "max_score")}, needs="model", hf_nsfw_model="Falconsai/nsfw_image_detection", **OWN_CODE,
                min_score=0.0, max_score=0.5)
def image_nsfw_filter(picture: Picture, s: Settings) -> tuple[float]:
    """The classifier's probability of its second class, in [0, 1]."""
    return (_second_class(picture, s["hf_nsfw_model"]),)


@picture_filter({"image_watermark_prob": ("", "prob_threshold")}, needs="model",
                hf_watermark_model="amrul-hzz/watermark_detector", **OWN_CODE, prob_threshold=0.8)
def image_watermark_filter(picture: Picture, s: Settings) -> tuple[float]:
    """The classifier's probability of its second class, in [0, 1]."""
    return (_second_class(picture, s["hf_watermark_model"]),)


USUAL_SCORER = "shunk031/aesthetics-predictor-v2-sac-logos-ava1-l14-linearMSE"


@picture_filter({"image_aesthetics_scores": ("min_score", "max_score")}, needs="model", hf_scorer_model="", **OWN_CODE,
                min_score=0.5, max_score=1.0)
def image_aesthetics_filter(picture: Picture, s: Settings) -> tuple[float]:
    """The score of a linear or small head on CLIP's picture embedding; about 0 to 1 for the usual predictors, whose 1 to 10 is divided."""
    import torch

    name = s["hf_scorer_model"] or USUAL_SCORER
    used = network(name, "CLIPVisionModelWithProjection")
    with torch.inference_mode():
        x = used.model(pixel_values=used.pictures([picture.pixels])).image_embeds
        score = _head(name)(x / x.norm(dim=-1, keepdim=True)).item()
    return (score / 10 if "aesthetics-predictor" in name else score,)


@cache
def _head(name: str) -> Any:
    """The layers behind the embedding, from the predictor's own file; dropout is nothing here."""
    import torch
    from safetensors.torch import load_file

    used = network(name, "CLIPVisionModelWithProjection")
    state = load_file(used.place / "model.safetensors")
    weights = sorted((k for k in state if k.startswith(("layers.", "predictor.")) and k.endswith(".weight")), key=_number)
    if not weights:
        raise ImportError(f"image_aesthetics_filter: {name} has no layers for a score; expected an aesthetics predictor of V1 or V2")
    between = "ReLU" in str(json.loads((used.place / "config.json").read_text("utf-8")).get("architectures"))
    layers: list[torch.nn.Module] = []
    for key in weights:
        linear = torch.nn.Linear(state[key].shape[1], state[key].shape[0])
        linear.load_state_dict({"weight": state[key], "bias": state[key.replace("weight", "bias")]})
        layers += [linear, *([torch.nn.ReLU()] if between and key != weights[-1] else [])]
    return torch.nn.Sequential(*layers).to(used.device).eval()


def _number(key: str) -> int:
    return next((int(part) for part in key.split(".") if part.isdigit()), 0)


def _chunks(text: str, pictures: Pictures, s: Settings) -> list[tuple[str, list[Pil.Image]]]:
    """Parts of a text that stand for pictures, each with its own pictures, flipped as asked."""
    from PIL import ImageOps

    found, offset = [], 0
    for part in text.split(s["eoc_special_token"]):
        count = part.count(s["image_special_token"])
        taken = [p.pixels for p in pictures[offset:offset + count]]
        for flip, wanted in ((ImageOps.mirror, s["horizontal_flip"]), (ImageOps.flip, s["vertical_flip"])):
            taken = [flip(p) for p in taken] if wanted else taken
        if taken:
            found.append((part.replace(s["image_special_token"], "").strip(), taken))
        offset += count
    return found


def _reduced(values: Any, s: Settings) -> float:
    return float({"avg": values.mean, "max": values.max, "min": values.min}[s["reduce_mode"]]())


@pair_filter({"image_text_similarity": ("min_score", "max_score")}, hf_clip="openai/clip-vit-base-patch32", **OWN_CODE, min_score=0.1,
             max_score=1.0, **FLIPS)
def image_text_similarity_filter(text: str, pictures: Pictures, s: Settings) -> list[float]:
    """CLIP's likeness of every part of the text and its pictures: a hundredth of the logit; for the embedded encoders the cosine."""
    import torch

    used = network(s["hf_clip"], "CLIPModel")
    unit = float(used.model.logit_scale.detach().exp()) if s["hf_clip"] == EMBEDDED else 100.0
    found = []
    for part, taken in _chunks(text, pictures, s):
        with torch.inference_mode():
            logits = used.model(**used.words(part), pixel_values=used.pictures(taken)).logits_per_text
        found.append(_reduced(logits.float() / unit, s))
    return found


@pair_filter({"image_text_matching_score": ("min_score", "max_score")}, hf_blip="Salesforce/blip-itm-base-coco", **OWN_CODE,
             min_score=0.003, max_score=1.0, **FLIPS)
def image_text_matching_filter(text: str, pictures: Pictures, s: Settings) -> list[float]:
    """BLIP's probability that picture and text belong together, for every part of the text and its pictures."""
    import torch

    used = network(s["hf_blip"], "BlipForImageTextRetrieval")
    found = []
    for part, taken in _chunks(text, pictures, s):
        words = used.words(part)
        with torch.inference_mode():
            scores = [used.model(**words, pixel_values=used.pictures([p])).itm_score.float().softmax(dim=-1)[:, 1] for p in taken]
        found.append(_reduced(torch.stack(scores), s))
    return found
