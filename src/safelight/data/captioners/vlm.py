"""Captions by a vision-language model that transformers knows by name (SmolVLM, LLaVA, Qwen-VL, ...)."""
from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from PIL import Image as Pil

from safelight.data.captioners import Asked, captioner
from safelight.data.captioners.blip import drawing, seed
from safelight.data.networks import find, looked
from safelight.events import Event
from safelight.pictures import read
from safelight.values import Row

QUESTION = "Describe this picture in one sentence: what it shows, its colours and its style."


@captioner("vlm")
def from_vlm(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """The answer of a small vision-language model to `prompt`, on one line. `network` is a folder or name. Yields Progress."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from safelight.runtime import choose_device, choose_dtype

    look, place, device = asked.looking, find("vlm", asked.looking.network), choose_device()
    here = {"local_files_only": True, "trust_remote_code": False}
    try:
        net = AutoModelForImageTextToText.from_pretrained(place, dtype=choose_dtype(device), use_safetensors=True, **here)
    except (ValueError, OSError) as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"caption: {place} is no vision-language model that transformers has a class for ({said})") from error
    net = net.to(device).eval().requires_grad_(False)
    reader = AutoProcessor.from_pretrained(place, backend="pil", **here)
    reader.tokenizer.padding_side = "left"  # answers begin where the questions end
    if reader.tokenizer.pad_token is None:
        reader.tokenizer.pad_token = reader.tokenizer.eos_token
    if not reader.chat_template:
        raise ValueError(f"caption: {place} has no chat template, so it cannot be asked; give a model made for instructions")
    asks = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": look.prompt or QUESTION}]}]
    question = reader.apply_chat_template(asks, add_generation_prompt=True)
    lengths = {"max_new_tokens": look.max_length, "min_new_tokens": look.min_length, "pad_token_id": reader.tokenizer.pad_token_id}

    def say(some: Sequence[Row], pictures: list[Pil.Image]) -> list[str]:
        given = reader(text=[question] * len(some), images=[[p] for p in pictures], padding=True, return_tensors="pt").to(device, net.dtype)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(seed(some, look))
            ids = net.generate(**given, **lengths, **drawing(look))[:, given["input_ids"].shape[1]:]
        return [" ".join(t.split()) for t in reader.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    return (yield from looked(rows, look, _picture, say))


def _picture(path: Path) -> Pil.Image:
    return Pil.fromarray(read(path))
