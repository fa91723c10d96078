"""Put what the pretraining recipes made into one folder in diffusers layout: float16, a model_index.json, at most 64 MB.

    python -m pretraining.assemble MINI src/safelight/embedded/weights
"""
from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)
LIMIT = 64_000_000
PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "clip": "model"}
COPIED = ("tokenizer", "scheduler")
INDEX = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.30.0",
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "feature_extractor": [None, None], "safety_checker": [None, None], "requires_safety_checker": False,
}


def assemble(mini: Path, out: Path) -> int:
    """Write `out` anew beside itself and put it in place, its README.md kept; returns its bytes. What was there stands as
    `out`.before until the new is in its place. ValueError when it is over the limit."""
    from safetensors.torch import load_file, save_file

    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    for part, name in PARTS.items():
        (fresh / part).mkdir(parents=True)
        config = json.loads((mini / part / "config.json").read_text())
        if part in {"text_encoder", "clip"}:
            config["dtype"] = "float32"  # else transformers loads float16, and a pipeline without a dtype mixes the two
        (fresh / part / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tensors = load_file(mini / part / f"{name}.safetensors")
        half = {k: t.half().contiguous() if t.is_floating_point() else t for k, t in tensors.items()}
        save_file(half, fresh / part / f"{name}.safetensors", metadata={"format": "pt"})
    shutil.copy(mini / "vae" / "pca.safetensors", fresh / "vae" / "components.safetensors")
    for part in COPIED:
        shutil.copytree(mini / part, fresh / part)
    (fresh / "model_index.json").write_text(json.dumps(INDEX, indent=2) + "\n")
    if (out / "README.md").exists():
        shutil.copy(out / "README.md", fresh)
    size = sum(p.stat().st_size for p in fresh.rglob("*") if p.is_file())
    if size > LIMIT:
        raise ValueError(f"assemble: {fresh} has {size:,} bytes; expected at most {LIMIT:,}; make a part smaller")
    before = out.with_name(out.name + ".before")
    shutil.rmtree(before, ignore_errors=True)
    if out.exists():
        os.replace(out, before)
    os.replace(fresh, out)
    shutil.rmtree(before, ignore_errors=True)
    return size


def main() -> None:
    """The command above."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("mini", type=Path)
    p.add_argument("out", type=Path)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    log.info("%s: %.1f MB", a.out, assemble(a.mini, a.out) / 1e6)


if __name__ == "__main__":
    main()
