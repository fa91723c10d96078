"""Train a small CLIP from nothing on captioned pictures (Radford et al. 2021, arXiv:2103.00020).

Two losses share the towers: the symmetric contrastive loss over captions, and the same softmax over the phrases of one attribute at a
time (all hair colours, all expressions, ...), as in UniCL (Yang et al. 2022, arXiv:2204.03610), which is what zero-shot use asks.

    python -m pretraining.clip DATA MINI/clip --minutes 40
"""
from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from pretraining.shards import Mixture, Shards, unit
from safelight.disk import place
from safelight.embedded import tokenizer, vocabulary

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
SIDE = 64


def model_config(vocabulary_size: int) -> Any:
    """A CLIPConfig: text 192 x 4 layers, pictures 192 x 4 layers on 64 px in patches of 8; joint space of 128."""
    from transformers import CLIPConfig

    shape = {
        "hidden_size": 192, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4, "attention_dropout": 0.0,
    }
    words = {
        "vocab_size": vocabulary_size, "max_position_embeddings": tokenizer.LENGTH, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
    }
    return CLIPConfig(
        projection_dim=128, text_config=shape | words, vision_config=shape | {"image_size": SIDE, "patch_size": 8})


def pictures(raw: Any) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, 64, 64) in [-1, 1], area-averaged."""
    from torch.nn.functional import interpolate

    x = unit(raw)
    return x if x.shape[-1] == SIDE else interpolate(x, size=(SIDE, SIDE), mode="area")


class Attributes:
    """Every attribute's phrases in both languages, and which value each picture has."""

    def __init__(self, rows: tuple[dict[str, str], ...]) -> None:
        self.names = list(vocabulary.ATTRIBUTES)
        self.phrases = {n: list(vocabulary.ATTRIBUTES[n].values()) for n in self.names}
        self.place = {n: {value: i for i, value in enumerate(vocabulary.ATTRIBUTES[n])} for n in self.names}
        self.rows = rows

    def labels(self, name: str, index: Any) -> Tensor:
        """(B,) the value's number, or -100 where the picture has none."""
        import torch

        return torch.tensor([self.place[name].get(self.rows[i].get(name, ""), -100) for i in index])

    def texts(self, language: int) -> list[str]:
        """All phrases of all attributes, in order."""
        return [p[language] for n in self.names for p in self.phrases[n]]

    def split(self, similarity: Tensor) -> dict[str, Tensor]:
        """(B, all phrases) -> (B, values) a name."""
        return dict(zip(self.names, similarity.split([len(self.phrases[n]) for n in self.names], dim=1), strict=True))


@dataclass(frozen=True)
class Towers:
    """A transformers CLIPModel and its tokenizer, giving unit vectors (N, 128)."""

    model: Any
    tokenizer: Any

    def text(self, texts: list[str]) -> Tensor:
        """One vector a text."""
        from torch.nn.functional import normalize

        ids = self.tokenizer(texts, padding=True, truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt")["input_ids"]
        return normalize(self.model.get_text_features(input_ids=ids).pooler_output.float(), dim=-1)

    def image(self, raw: Any) -> Tensor:
        """One vector a picture of (B, S, S, 3) uint8."""
        from torch.nn.functional import normalize

        return normalize(self.model.get_image_features(pixel_values=pictures(raw)).pooler_output.float(), dim=-1)


def accuracy(towers: Towers, attributes: Attributes, shards: Shards, index: Any, language: int) -> dict[str, float]:
    """Zero-shot accuracy an attribute on the pictures `index`; `language` 0 is English, 1 Chinese."""
    import torch

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        similarity = towers.image(shards.pixels(index)) @ towers.text(attributes.texts(language)).T
    out = {}
    for name, s in attributes.split(similarity.float()).items():
        y = attributes.labels(name, index)
        known = y >= 0
        out[name] = round(float((s.argmax(1)[known] == y[known]).float().mean()), 3)
    return out


def losses(towers: Towers, shards: Shards, attributes: Attributes, index: Any, rng: Random) -> tuple[Tensor, Tensor]:
    """(contrastive loss over captions, mean softmax loss over attributes)."""
    import torch
    from torch.nn.functional import cross_entropy

    captions = shards.captions(index, rng)
    with torch.autocast("cpu", torch.bfloat16):
        text, words = towers.text(captions), towers.text(attributes.texts(int(rng.random() < 0.4)))
        image = towers.image(shards.pixels(index))
    scale = towers.model.logit_scale.exp().clamp(max=100)
    # pictures that share a caption are no negatives of each other
    same = torch.tensor([[a == b and i != j for j, b in enumerate(captions)] for i, a in enumerate(captions)])
    similarity = (scale * image @ text.T).masked_fill(same, -1e4)
    place = torch.arange(len(index))
    contrast = (cross_entropy(similarity, place) + cross_entropy(similarity.T, place)) / 2
    by_name = {name: (s, attributes.labels(name, index)) for name, s in attributes.split(scale * image @ words.T).items()}
    return contrast, torch.stack([cross_entropy(s, y) for s, y in by_name.values() if bool((y >= 0).any())]).mean()


def _tokenizer(shards: Shards, folder: Path, seed: int) -> Any:
    """The one in `folder`; trained there first on 12,000 captions a language when there is none."""
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").exists():
        rng = Random(seed)
        index = np.array(rng.sample(range(len(shards)), min(len(shards), 12000)))
        tokenizer.train((c for chinese in (0.0, 1.0) for c in shards.captions(index, rng, chinese=chinese)), folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def train(data: Path, out: Path, *, minutes: float, batch: int = 64, lr: float = 1e-3, seed: int = 0) -> None:
    """Train for `minutes` of wall time, the rate falling over the second half, and save a CLIPModel to `out`, its tokenizer to
    `out`/../tokenizer. Goes on from `out`/last.pt, or from the weights in `out` alone."""
    import torch
    from transformers import CLIPModel

    shards, shares = Shards.open(data), {"person": 0.6, "scene": 0.1, "object": 0.3}
    tok = _tokenizer(shards, out.parent / "tokenizer", seed)
    torch.manual_seed(seed)
    if (out / "config.json").exists():
        model = CLIPModel.from_pretrained(out, dtype=torch.float32)
    else:
        model = CLIPModel(model_config(len(tok)))
        model.logit_scale.data.fill_(2.3)
    model.set_attn_implementation("eager")  # the fused kernel's backward takes a third of the step on a CPU
    towers, mix, attributes = Towers(model, tok), Mixture(shards, shares, seed=seed), Attributes(shards.rows)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    start, step, first = time.monotonic(), 0, 0
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = first = state["step"]
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 100) * (1 if done < 0.5 else max(0.02, 2 * (1 - done)))
        contrast, named = losses(towers, shards, attributes, mix.batch(step, batch), Random(f"{seed}/{step}"))
        optimizer.zero_grad(set_to_none=True)
        (contrast + named).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            rate = (step + 1 - first) * batch / (time.monotonic() - start)
            log.info("step %d contrastive %.3f attributes %.3f %.0f pictures/s", step, contrast.item(), named.item(), rate)
        step += 1
        if step % 500 == 0:
            _save(out, model, optimizer, step)
    _save(out, model, optimizer, step)
    held = Mixture(shards, shares, seed=1, held_out=True).batch(0, 500)
    for number, language in enumerate(("en", "zh")):
        log.info("zero-shot %s: %s", language, accuracy(towers, attributes, shards, held, number))
    model.to(torch.float16).save_pretrained(out)


def _save(out: Path, model: Any, optimizer: Any, step: int) -> None:
    import torch

    out.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    place(out, out / "last.pt", lambda new: torch.save(state, new))


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--minutes", type=float, default=40)
    p.add_argument("--lr", type=float, default=1e-3)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    train(a.data, a.out, minutes=a.minutes, batch=a.batch, lr=a.lr)


if __name__ == "__main__":
    main()
