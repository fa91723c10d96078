"""LoRAs that a prompt names, as AUTOMATIC1111's prompts do: `<lora:ink:0.8>`. No torch here.

`<lora:name>`, `<lora:name:0.8>`, `<lora:name:0.5:0.8>` for text encoder and U-Net apart, in that order, as it is there, and with names,
in any order, `<lora:name:unet=0.8:te=0.5>`; `lyco` is another word for `lora`. A backslash before the bracket leaves it a text.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from safelight import folders
from safelight.spec import InputError

TAG = re.compile(r"(?<!\\)<(lora|lyco|hypernet):([^<>]*)>")
ESCAPED = re.compile(r"\\(?=<(?:lora|lyco|hypernet):)")
NUMBER = re.compile(r"(?:(unet|te)=)?([+-]?(?:\d+\.?\d*|\.\d+))")
FORM = "<lora:name:strength> or <lora:name:strength in the text encoder:strength in the U-Net>"


class Named(NamedTuple):
    """A LoRA in a prompt: its file, how strong it is, and how strong in the text encoders where that was said."""

    file: str
    strength: float
    text_strength: float | None


def taken(op: str, prompt: str) -> tuple[str, list[Named]]:
    """The prompt without its tags, and what they name, in order. InputError for a name that is not in the models folders, for another form
    and for hypernetworks."""
    found = [_named(op, tag) for tag in TAG.finditer(prompt)]
    return (TAG.sub("", prompt).strip() if found else prompt), found


def refuse(op: str, name: str, text: str, advice: str) -> None:
    """InputError when the text has a tag."""
    tag = TAG.search(text)
    if tag:
        raise InputError(op, name, tag[0], "a text without such tags", advice=advice)


def plain(text: str) -> str:
    """A text whose brackets are no tags, as it is meant: without the backslash before them."""
    return ESCAPED.sub("", text)


def _named(op: str, tag: re.Match[str]) -> Named:
    if tag[1] == "hypernet":
        raise InputError(op, "prompt", tag[0], "no hypernetwork, they are not supported", advice="take it out, or use a LoRA")
    name, *numbers = tag[2].split(":")
    strength = _strengths(op, tag[0], numbers)
    try:
        file = folders.current().find("loras", name.strip())
    except ValueError as e:
        raise InputError(op, "prompt", tag[0], "a LoRA's name", advice=str(e).removeprefix("models: "), kind="not_in_list") from e
    return Named(str(file.absolute()), strength.get("unet", 1.0), strength.get("te"))


def _strengths(op: str, tag: str, numbers: list[str]) -> Mapping[str, float]:
    """By network. In AUTOMATIC1111 a lone `te=` leaves the U-Net at 1, and so it does here."""
    found: dict[str, float] = {}
    bare = ["te", "unet"] if len(numbers) > 1 else ["unet"]
    for i, text in enumerate(numbers):
        number = NUMBER.fullmatch(text.strip())
        network = number and (number[1] or bare[min(i, 1)])
        if number is None or network is None or network in found:
            raise InputError(op, "prompt", tag, FORM)
        found[network] = float(number[2])
    return found
