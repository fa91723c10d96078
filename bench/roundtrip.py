"""What other programs make of our files: families x methods x layouts, read by our own reader of other programs' names and by diffusers.

Small real networks with random weights, an adapter of every method with random weights on every layer it can change. Prints a Markdown
table: keys used of all, and the largest difference of the networks' outputs from the kohya file merged into the weights.

    python bench/roundtrip.py [--files DIR]     # DIR gets the files, for a program that is not installed here
"""
from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertModel, CLIPTextModel, CLIPTextModelWithProjection

sys.path.insert(0, str(Path(__file__).parents[1]))

from safelight.patches import lora as patch_lora
from safelight.patches.lora.names import DENOISERS
from safelight.recipes import portable
from safelight.train import lora_file
from safelight.values import Blob, Patch
from tests import tiny

RANK, ALPHA, PROMPTS = 3, 1.5, ["a red apple", ""]
FAMILIES = ("mini", "sd1", "sd2", "taiyi", "sdxl", "refiner", "kolors", "sd3")
METHODS = ("LoRA", "LoCon", "DoRA", "LoHa", "LoKr", "full")


def adapter(family: Any, method: str) -> dict[str, Tensor]:
    """A kohya file of the method. LoRA changes attention alone, the others every linear layer and convolution of the transformer blocks
    and resnets, text towers included."""
    torch.manual_seed(3)
    out: dict[str, Tensor] = {}
    for name, at in patch_lora.places(family).items():
        inner = any(p in at.path for p in ("attn", "ff", "resnets", "encoder.layer")) and "embedder" not in at.path
        inner &= at.part in DENOISERS or isinstance(family.trainable()[at.part], CLIPTextModel | CLIPTextModelWithProjection | BertModel)
        attention = at.part in DENOISERS and "attn" in at.path
        if attention if method == "LoRA" else inner:
            out |= {f"{name}.{end}": t for end, t in tensors(method, at.layer.weight).items()}
    return out


def tensors(method: str, weight: Tensor) -> dict[str, Tensor]:
    """One layer's part of a kohya file."""
    rows, rest = weight.shape[0], tuple(weight.shape[1:])
    columns = weight[0].numel()
    down, up = torch.randn(RANK, *rest) * 0.1, torch.randn(rows, RANK, *[1] * (len(rest) - 1)) * 0.1
    match method:
        case "LoRA" | "LoCon":
            return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA)}
        case "DoRA":
            size = torch.rand(rows, *[1] * len(rest)) * 0.1 + weight.flatten(1).norm(dim=1).view(rows, *[1] * len(rest))
            return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(ALPHA), "dora_scale": size}
        case "LoHa":
            parts = {f"hada_w{n}_{e}": torch.randn(rows, RANK) if e == "a" else torch.randn(RANK, columns) for n in (1, 2) for e in "ab"}
            return {k: t * 0.2 for k, t in parts.items()} | {"alpha": torch.tensor(ALPHA)}
        case "LoKr":
            return {"lokr_w1": torch.randn(2, 2) * 0.1, "lokr_w2": torch.randn(rows // 2, columns // 2) * 0.1, "alpha": torch.tensor(ALPHA)}
    return {"diff": torch.randn_like(weight) * 0.02}


def drained(work: Any) -> Any:
    """The value of a generator."""
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value


def row(family: Any, name: str, method: str, folder: Path) -> str:
    """A line of the table: every layout as it is read here, the first two as diffusers reads them too."""
    file = folder / f"{name}-{method}-kohya.safetensors"
    lora_file.write(file, adapter(family, method), {})
    with patch_lora.lora(family, Patch("lora", Blob.of(file))):
        wanted = lora_file.probe(family, PROMPTS)
    cells = [name, method]
    for layout in portable.LAYOUTS:
        written = folder / f"{name}-{method}-{layout}.{'ckpt' if layout == 'diffsynth' else 'safetensors'}"
        try:
            portable.export(family, file, layout, written)
        except ValueError:
            cells += ["no names"] * (2 if layout == "diffusers" else 1)
            continue
        cells.append(ours(family, written, wanted))
        cells += [theirs(family, written, wanted)] if layout in ("kohya", "diffusers") else []
    return f"| {' | '.join(cells)} |"


def ours(family: Any, written: Path, wanted: Tensor) -> str:
    """Keys, and the largest difference, as read here."""
    if written.suffix == ".ckpt":
        held = torch.load(written, weights_only=True)
        written = written.with_suffix(".read.safetensors")
        lora_file.write(written, held, {})
    options = {"merged": False, "alpha": ALPHA}
    changes = patch_lora.read(str(written), alpha=ALPHA)
    used = sum(len(c.keys) for c in changes.values())
    with patch_lora.lora(family, Patch("lora", Blob.of(written), options=options)):
        apart = float((lora_file.probe(family, PROMPTS) - wanted).abs().max())
    return f"{used}/{used}, {apart:.1e}"


def theirs(family: Any, written: Path, wanted: Tensor) -> str:
    """The same as diffusers reads it."""
    try:
        with portable.by_diffusers(family, written) as (used, total):
            return f"{used}/{total}, {float((lora_file.probe(family, PROMPTS) - wanted).abs().max()):.1e}"
    except Exception as e:  # noqa: BLE001, whatever it raises is the finding
        return f"refused: {type(e).__name__}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=Path)
    parser.add_argument("--family", default="")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as place:
        folder = asked.files or Path(place)
        folder.mkdir(parents=True, exist_ok=True)
        print("| family | method | kohya | kohya in diffusers | diffusers | diffusers in diffusers | ComfyUI | DiffSynth |")
        print("| --- " * 8 + "|")
        for name in [asked.family] if asked.family else FAMILIES:
            family = tiny.load(tiny.LAYOUTS[name](Path(place) / name), device=torch.device("cpu"), dtype=torch.float32)
            for method in METHODS:
                print(row(family, name, method, folder), flush=True)


if __name__ == "__main__":
    main()
