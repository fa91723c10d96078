"""A trained LoRA as a file other programs read, and the proof that it holds what was trained."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from safelight.disk import place
from safelight.train.batches import generator

if TYPE_CHECKING:
    from safelight.families import Family

PROBES = 4
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Proof:
    """The largest difference between the trained network and the file read back, of outputs of unit size, and how many layers matched."""

    max_difference: float
    matched: int
    total: int


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Safetensors whose bytes depend on the content alone: the library writes metadata in a random order, here it is sorted."""
    raw = save({k: t.detach().cpu().contiguous() for k, t in sorted(tensors.items())})
    length = int.from_bytes(raw[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(raw[8 : 8 + length])}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    place(path.parent, path, lambda new: new.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :]))


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of the tensors' bytes in the order of their names: kohya's `sshs_model_hash`, deaf to metadata."""
    h = hashlib.sha256()
    raw = save({k: t.detach().cpu().contiguous() for k, t in sorted(tensors.items())})
    h.update(raw[8 + int.from_bytes(raw[:8], "little") :])
    return h.hexdigest()


NAMED = {
    ("sd", 768): ("stable-diffusion-v1", "sd_v1"), ("sd", 1024): ("stable-diffusion-v2-768-v", "sd_v2"),
    ("sdxl", 0): ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"), ("sd3", 0): ("stable-diffusion-3-medium", "sd3"),
}
"""What modelspec and kohya call what LoRAs are for, by family and, where it tells two apart, its text's width."""


def _named(family: Family) -> tuple[str, str]:
    told: Any = family.trainable()["text_encoder"].config if family.name == "sd" and family.channels == 4 else None
    width = int(told.hidden_size) if told else 0
    own = f"safelight-{family.name}-{family.channels}ch"
    return NAMED.get((family.name, width), NAMED["sd", 768] if width else (own, own))


def architecture(family: Family) -> str:
    """modelspec's name of what the LoRA is for: `stable-diffusion-v1` for SD 1.x, else the family and its channels."""
    return _named(family)[0]


def base_version(family: Family) -> str:
    """kohya's name of the same: `sd_v1`."""
    return _named(family)[1]


def modelspec(family: Family, title: str, side: int, *, kind: str = "lora") -> dict[str, str]:
    """The modelspec 1.0.0 fields of a LoRA or a `controlnet`. No date: the same training writes the same bytes."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture(family)}/{kind}",
        "modelspec.implementation": "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": {"eps": "epsilon"}.get(family.prediction, family.prediction),
    }


@torch.no_grad()
def probe(family: Family, prompts: Sequence[str]) -> Tensor:
    """(PROBES, C, h, w) float32: what the network says of fixed noise at four noise levels under the prompts, text encoder included."""
    side = family.size // family.factor
    x = torch.randn(PROBES, family.channels, side, side, generator=generator("probe"))
    sigma = family.sigmas[(torch.arange(PROBES) * (len(family.sigmas) - 1)) // PROBES]
    cond = family.encode_text([prompts[i % len(prompts)] for i in range(PROBES)])
    return family.predict(x * (1 + sigma.view(-1, 1, 1, 1)), sigma, cond).cpu()


def compare(trained: Tensor, read_back: Tensor, layers: int, matched: int) -> Proof:
    """The proof. ValueError when the file does not do what the network did."""
    return checked(Proof(float((trained - read_back).abs().max()), matched, layers))


def checked(proof: Proof) -> Proof:
    """The same. ValueError when it says that the file does not do what the network did."""
    matched, layers = proof.matched, proof.total
    if matched != layers or not proof.max_difference <= TOLERANCE:
        raise ValueError(
            f"training: the saved file is not what was trained: {matched} of {layers} layers read back, outputs differ by up to "
            f"{proof.max_difference:.2e}; expected all, within {TOLERANCE:g}. The file was not kept."
        )
    return proof
