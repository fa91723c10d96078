"""A pair of text and image encoders trained by contrast (CLIP, arXiv:2103.00020): classify, retrieve, and score a picture by its prompt."""
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safelight.pictures import bytes8, floats, square
from safelight.scoring import Subject, metric
from safelight.values import Blob, digest

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 64


def embedded() -> Path:
    """Where the encoders lie that come with the package."""
    return Path(str(files("safelight") / "embedded" / "weights" / "clip"))


def stamp() -> str:
    """Changes when the embedded encoders do; empty when they are not there."""
    weights = sorted(embedded().glob("*.safetensors")) if embedded().is_dir() else []
    return digest(*[Blob.of(w).sha256 for w in weights]) if weights else ""


@dataclass(frozen=True, eq=False)
class ClipTowers:
    """Both encoders, loaded. `size` is the picture side they take, `scale` the learnt factor on cosine similarities before a softmax."""

    model: Any
    tokenizer: Any
    size: int
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @staticmethod
    def load(path: str | Path | None = None) -> ClipTowers:
        """A folder as `CLIPModel.save_pretrained` writes it, the embedded one by default; its tokenizer lies in it or in `../tokenizer`.

        ValueError when files are missing. The last two are kept in memory.
        """
        folder = Path(path) if path is not None else embedded()
        if not (folder / "config.json").exists():
            raise ValueError(f"clip: no config.json in {folder}; expected a folder that CLIPModel.save_pretrained wrote")
        if (kind := json.loads((folder / "config.json").read_text("utf-8")).get("model_type")) != "clip":
            raise ValueError(f"clip: {folder} holds a network of the type {kind!r}; expected 'clip', with both encoders")
        return _load(folder.resolve(), (folder / "config.json").stat().st_mtime_ns)

    def text(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, D) float32, rows of length 1. Texts over the token limit are cut."""
        import torch

        limit = int(self.model.config.text_config.max_position_embeddings)
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(list(texts[start:start + BATCH]), padding=True, truncation=True, max_length=limit, return_tensors="pt")
            with torch.inference_mode():
                hidden = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
                parts.append(_unit(self.model.text_projection(hidden)))
        return np.concatenate(parts) if parts else np.empty((0, int(self.model.config.projection_dim)), np.float32)

    def image(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """(B, H, W, 3) float32 in [0, 1] -> (B, D) float32, rows of length 1. The middle square is resized to `size`."""
        import torch

        if pixels.shape[1:3] != (self.size, self.size):
            pixels = np.stack([floats(square(p, self.size)) for p in bytes8(pixels)])
        parts = []
        for start in range(0, len(pixels), BATCH):
            x = (pixels[start:start + BATCH] - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
            with torch.inference_mode():
                hidden = self.model.vision_model(pixel_values=torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output
                parts.append(_unit(self.model.visual_projection(hidden)))
        return np.concatenate(parts)

    def classify(self, pixels: NDArray[np.float32], labels: Sequence[str]) -> NDArray[np.float32]:
        """Zero-shot: (B, H, W, 3) and N labels -> (B, N) probabilities."""
        logits = self.scale * self.image(pixels) @ self.text(labels).T
        grown = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(grown / grown.sum(axis=1, keepdims=True), dtype=np.float32)

    def retrieve(self, query: str | NDArray[np.float32], among: Sequence[str] | NDArray[np.float32], n: int = 5) -> list[tuple[int, float]]:
        """The n nearest of `among`, best first, as (index, cosine similarity). A text finds pictures, a picture (H, W, 3) finds texts."""
        asked = self.text([query]) if isinstance(query, str) else self.image(query[None])
        pool = self.image(among) if isinstance(among, np.ndarray) else self.text(among)
        near = pool @ asked[0]
        return [(int(i), float(near[i])) for i in np.argsort(-near, kind="stable")[:n]]


def _unit(x: Any) -> NDArray[np.float32]:
    """A (N, D) tensor as float32 numpy with rows of length 1."""
    array: NDArray[np.float32] = x.float().cpu().numpy()
    return np.asarray(array / np.linalg.norm(array, axis=1, keepdims=True), dtype=np.float32)


def forget() -> None:
    """Give back the memory of those that are loaded."""
    _load.cache_clear()


@lru_cache(maxsize=2)
def _load(folder: Path, _stamp: int) -> ClipTowers:
    import torch
    from transformers import CLIPModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    own = folder if (folder / "tokenizer.json").exists() else folder.parent / "tokenizer"
    if not own.is_dir():
        raise ValueError(f"clip: no tokenizer in {folder} or {own}")
    logging.disable_progress_bar()  # a bar for one small file, in the middle of ours
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval().requires_grad_(False)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(own, local_files_only=True)
    named = next((f for f in (folder / "preprocessor.json", folder / "preprocessor_config.json") if f.exists()), None)
    said = json.loads(named.read_text("utf-8")) if named else {}
    half = [0.5, 0.5, 0.5]
    return ClipTowers(model, tokenizer, int(model.config.vision_config.image_size), float(model.logit_scale.exp()),
                      tuple(said.get("image_mean", half)), tuple(said.get("image_std", half)))


@metric("clip", label="CLIP score")
def clip(subject: Subject) -> list[float]:
    """100 x cosine similarity of picture and prompt, not below 0 (CLIPScore, arXiv:2104.08718, without its factor). Needs prompts."""
    silent = next((i for i, p in enumerate(subject.prompts) if not p.strip()), None)
    if silent is not None:
        raise ValueError(f"score: prompts: picture {silent} has none, and the metric 'clip' compares with the prompt; give prompts=")
    towers = ClipTowers.load()
    pairs = (towers.image(subject.image.pixels) * towers.text(subject.prompts)).sum(axis=1)
    return [float(x) for x in np.maximum(0, 100 * pairs)]
