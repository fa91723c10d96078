"""How long it takes to put another adapter on a warm model: milliseconds from one lease's end to the next one's start, file and all.

    python bench/bench_lora_switch.py [--model mini|FOLDER] [--rank 12] [--rounds 12] [--dtype bfloat16|float32]

Two LoRAs of random weights on every layer of the U-Net are written once (float16, the rank decides their size) and put on in turn. The
first two switches are not counted. Beside it: diffusers' `unload_lora_weights` and `load_lora_weights`, same files, same networks.
"""
from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from safetensors.torch import save_file

from safelight.families import Family
from safelight.op import load_ops
from safelight.patches.lora import match, places, read
from safelight.patches.lora.names import Names
from safelight.runtime import choose_device, choose_dtype, lease
from safelight.values import Blob, Model, Patch


def written(family: Family, path: Path, rank: int, seed: int) -> Patch:
    """A LoRA on every layer of the U-Net."""
    torch.manual_seed(seed)
    tensors = {}
    for name, place in places(family).items():
        if place.part == "unet":
            shape = place.layer.get_parameter("weight").shape
            tensors[f"{name}.lora_down.weight"] = (torch.randn(rank, *shape[1:]) * 0.01).half()
            tensors[f"{name}.lora_up.weight"] = (torch.randn(shape[0], rank, *[1] * (len(shape) - 2)) * 0.01).half()
            tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    save_file(tensors, path)
    return Patch("lora", Blob.of(path))


def milliseconds(work: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """By the clock, and of processor time, which a busy machine does not change much: medians of the rounds after the first two."""
    taken = []
    for i in range(rounds + 2):
        start = time.perf_counter(), time.process_time()
        work(i)
        taken.append(((time.perf_counter() - start[0]) * 1000, (time.process_time() - start[1]) * 1000))
    wall, cpu = (statistics.median(column) for column in zip(*taken[2:], strict=True))
    return wall, cpu


def ours(base: Model, patches: list[Patch], dtype: torch.dtype, rounds: int) -> dict[str, tuple[float, float]]:
    """The whole switch in both forms, and the parts of it."""

    def switch(merged: bool) -> Callable[[int], object]:
        def work(i: int) -> None:
            worn = base.with_patch(Patch("lora", patches[i % 2].weights, options={"merged": merged}))
            with lease(worn, dtype=dtype):
                pass

        return work

    found = {"switch, merged": milliseconds(switch(True), rounds), "switch, beside": milliseconds(switch(False), rounds)}
    path = patches[0].weights.path
    with lease(base, dtype=dtype) as family:
        changes = read(path)
        found["  read the file"] = milliseconds(lambda _: read(path), rounds)
        found["  table of names"] = milliseconds(lambda _: Names(family), rounds)
        found["  table and match"] = milliseconds(lambda _: match(family, changes, path), rounds)
    return found


def theirs(base: Model, patches: list[Patch], dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """diffusers: take the old one out, read and put in the new one (not merged)."""
    with lease(base, dtype=dtype) as held:
        family: Any = held
        parts: dict[str, Any] = {part: held.trainable()[part] for part in ("vae", "text_encoder", "unet")}
        parts |= {"tokenizer": family.text.tokenizer, "scheduler": None, "safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)

        def work(i: int) -> None:
            pipeline.unload_lora_weights()
            pipeline.load_lora_weights(patches[i % 2].weights.path)

        return milliseconds(work, rounds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rank", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--dtype", default="")
    a = parser.parse_args()
    logging.set_verbosity_error()
    dtype = getattr(torch, a.dtype) if a.dtype else choose_dtype(choose_device())
    base: Model = load_ops()["model"](a.model)
    with tempfile.TemporaryDirectory() as folder:
        with lease(base, dtype=dtype) as family:
            patches = [written(family, Path(folder) / f"{i}.safetensors", a.rank, i) for i in range(2)]
            layers = sum(p.part == "unet" for p in places(family).values())
        size = Path(patches[0].weights.path).stat().st_size / 1e6
        print(f"{a.model} in {dtype}, {layers} layers, rank {a.rank}, {size:.1f} MB, {torch.get_num_threads()} threads; medians in ms")
        found = ours(base, patches, dtype, a.rounds)
        found["diffusers, unload and load"] = theirs(base, patches, dtype, a.rounds)
    print(f"{'':28s} {'clock':>8s} {'processor':>10s}")
    for name, (wall, cpu) in found.items():
        print(f"{name:28s} {wall:8.1f} {cpu:10.1f}")
    ratios = [ours / theirs for ours, theirs in zip(found["switch, merged"], found["diffusers, unload and load"], strict=True)]
    print(f"{'ratio, merged':28s} {ratios[0]:8.3f} {ratios[1]:10.3f}")


if __name__ == "__main__":
    main()
