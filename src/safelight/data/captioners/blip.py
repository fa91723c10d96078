"""Captions by BLIP (arXiv:2201.12086), through transformers."""
from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Pil

from safelight.data.asking import Looking
from safelight.data.captioners import Asked, captioner
from safelight.data.networks import find, looked
from safelight.events import Event
from safelight.pictures import floats, read
from safelight.values import Row, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI CLIP's, for folders without a preprocessor_config.json."""


def prepared(path: Path, side: int, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """(3, side, side) float32: the whole picture as a square, as BLIP was trained, normalised by channel."""
    square = Pil.fromarray(read(path)).resize((side, side), Pil.Resampling.BICUBIC)
    scaled = (floats(np.asarray(square)) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1), dtype=np.float32)


def drawing(asked: Looking) -> dict[str, Any]:
    """How transformers' generate chooses words."""
    if asked.beam_search:
        return {"do_sample": False, "num_beams": asked.num_beams}
    return {"do_sample": True, "top_p": asked.top_p, "top_k": 0, "repetition_penalty": 1.1}


def seed(rows: Sequence[Row], asked: Looking) -> int:
    """For the words drawn about these pictures."""
    return int(digest("caption", str(asked.caption_seed), *[row.picture.sha256 for row in rows])[:15], 16)


@captioner("blip")
def from_blip(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """A sentence by BLIP: nucleus sampling or beam search. `network` is a folder or name; safetensors only. Yields Progress."""
    import torch
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    from safelight.runtime import choose_device

    look, place, device = asked.looking, find("blip", asked.looking.network), choose_device()
    net = BlipForConditionalGeneration.from_pretrained(place, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    net = net.to(device).eval().requires_grad_(False)
    words = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False)
    side, named = int(net.config.vision_config.image_size), place / "preprocessor_config.json"
    told = json.loads(named.read_text("utf-8")) if named.is_file() else {}
    mean, std = told.get("image_mean", MEAN), told.get("image_std", STD)
    lengths = {"max_length": look.max_length, "min_length": look.min_length}

    def say(some: Sequence[Row], pictures: list[NDArray[np.float32]]) -> list[str]:
        begun = words([look.prompt] * len(some), return_tensors="pt").to(device) if look.prompt else {}
        given = {k: v for k, v in begun.items() if k in ("input_ids", "attention_mask")}
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed(some, look))
            ids = net.generate(pixel_values=torch.from_numpy(np.stack(pictures)).to(device), **given, **lengths, **drawing(look))
        said = [" ".join(t.split()) for t in words.batch_decode(ids, skip_special_tokens=True)]
        return [t.removeprefix(look.prompt.lower().strip()).strip() for t in said]

    return (yield from looked(rows, look, lambda path: prepared(path, side, mean, std), say))
