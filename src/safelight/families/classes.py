"""Denoisers that read no text: they draw what they were shown, or one of a few classes of it (arXiv:2207.12598)."""
from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch

from safelight.families import family
from safelight.families.layouts import Layout
from safelight.families.passing import PassesOn
from safelight.families.sources import Parts
from safelight.families.unet import UNet
from safelight.families.weight_file import WeightFile
from safelight.values import Cond

SHOWN = 24
"""How many classes an error names."""


@family
class Classes(PassesOn):
    """A U-Net that is told the number of a class, or nothing, and a KL autoencoder.

    The names lie in `tokenizer/config.json` under `classes`, in the order of their numbers. The number after the last stands for no class:
    an empty prompt means it, so guidance works as it does with texts. Without names every prompt says the same, nothing.
    """

    name = "classes"
    pipelines: ClassVar[tuple[str, ...]] = ("ClassesPipeline",)
    repeats_tokens = True

    def __init__(self, parts: Parts, *, device: torch.device, dtype: torch.dtype) -> None:
        """Build the networks on `device` in `dtype`, frozen and in eval mode. ValueError when a part is missing or foreign, or there are
        not as many names as classes."""
        network = UNet(parts, device=torch.device(device), dtype=dtype)
        super().__init__(network)
        self.classes: tuple[str, ...] = tuple(parts.config("tokenizer").get("classes", ()))
        self.width, known = int(network.net.config.cross_attention_dim), network.net.config.num_class_embeds or 1
        if len(self.classes) + 1 != known:
            raise ValueError(f"model {parts.source}: {len(self.classes)} names for a U-Net of {known - 1} classes; expected one for each")

    @staticmethod
    def recognise(file: WeightFile) -> Mapping[str, Layout] | None:
        """None: a single file has no place for the classes' names."""
        return None

    def tokens(self, text: str) -> int:
        """1 for a class, 0 for none."""
        return int(self.number(text) < len(self.classes))

    def number(self, text: str) -> int:
        """The class whose name the text has in it, in letters of either case, the longest of several; that of no class for an empty text.
        ValueError listing the classes when there is none in it."""
        found = [c for c in self.classes if re.search(rf"(?<!\w){re.escape(c)}(?!\w)", text, re.IGNORECASE | re.ASCII)]
        if not found and self.classes and text.strip():
            more = f" and {len(self.classes) - SHOWN} more" if len(self.classes) > SHOWN else ""
            raise ValueError(f"text: {text!r} names no class of this model; expected one of {', '.join(self.classes[:SHOWN])}{more}, "
                             "or nothing")
        return self.classes.index(max(found, key=len)) if found else len(self.classes)

    def encode_text(self, prompts: Sequence[str], *, skip: int = 0, negative: bool = False) -> Cond:
        """`class` (B, 1) in the extras where there are classes; the tokens (B, 1, D) say nothing. `skip` has no layers to leave out."""
        told = {"class": torch.tensor([[float(self.number(p))] for p in prompts])} if self.classes else {}
        return Cond(torch.zeros(len(prompts), 1, self.width), told)
