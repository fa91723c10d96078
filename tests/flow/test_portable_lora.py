"""A saved LoRA does in diffusers what it does here."""
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from safelight.train import lora_file, trainables
from safelight.train.settings import LoraShape
from tests import tiny


@pytest.mark.parametrize("layout", ["sd1", "mini"])
@pytest.mark.parametrize("targets", ["attention", "full"])
def test_diffusers_reads_our_file_to_the_same_output(tmp_path: Path, layout: str, targets: str) -> None:
    family: Any = tiny.load(tiny.LAYOUTS[layout](tmp_path / "m"), device=torch.device("cpu"), dtype=torch.float32)
    file = tmp_path / "lora.safetensors"
    with trainables.adapter(family, LoraShape(rank=3, alpha=1.5, targets=targets, text_encoder=targets == "full"), 0) as adapter:
        torch.manual_seed(2)
        weights = {n: torch.randn_like(p) * 0.05 for n, p in adapter.parameters.items()}
        adapter.load(weights)
        lora_file.write(file, adapter.file(weights), {})
        ours = lora_file.probe(family, ["a red apple", ""])
    plain = lora_file.probe(family, ["a red apple", ""])
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    networks = family.trainable()
    parts = networks["vae"], networks["text_encoder"], family.text.tokenizer, networks["unet"], scheduler
    pipeline = StableDiffusionPipeline(*parts, None, None, requires_safety_checker=False)
    pipeline.load_lora_weights(file)
    theirs = lora_file.probe(family, ["a red apple", ""])
    assert float((ours - plain).abs().max()) > 1e-2
    assert float((ours - theirs).abs().max()) < 1e-5
