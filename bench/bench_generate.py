"""Drawing against diffusers and against the bare network: seconds a step, cold start, peak memory, as ratios of one run.

    python bench/bench_generate.py [--model mini|FOLDER] [--size 512] [--steps 4] [--rounds 4] [--float32] [--cold]
    python -m bench.bench_generate --comfy URL --comfy-models DIR

Without a folder a model of the shape of SD 1.5 (860 M parameters, random weights, float16 on disk) is written below out/bench-generate
once. A step is one guided step, two rows of the U-Net. Three take turns in one process, so that whatever else the machine does meets all:
ours (dtype and layout as the runtime chooses), diffusers' pipeline in the same dtype and channels_last, its best, and the U-Net alone.
diffusers in float32, as most run it on a CPU, comes after, with `--float32`. `--comfy` adds a running ComfyUI (start it with
`--cpu --bf16-unet`), which finds a checkpoint of that shape written into its models folder; its step is the difference between a long and a
short prompt. `--whole` times a whole warm picture instead: text, steps, decoding. `--cold` starts a process each, from nothing to a picture
of one step, and tells wall seconds and peak memory of the whole process; with `--comfy-home` ComfyUI's too.
"""
from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from safelight import runtime
from safelight.embedded import WEIGHTS
from safelight.ops.model import model as named
from safelight.sampling.draw import Shot, starts, walk
from safelight.sampling.settings import Guidance, Sampling, Size

PROMPT = "a smiling girl with long purple hair"


def write_sd15(folder: Path) -> Path:
    """A diffusers folder of SD 1.5's shape with random weights; the embedded model's tokenizer, in 77 tokens."""
    if (folder / "model_index.json").exists():
        return folder
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

    torch.manual_seed(0)
    widths = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64}
    UNet2DConditionModel(**widths).half().save_pretrained(folder / "unet")
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=4, sample_size=512).half().save_pretrained(folder / "vae")
    words = PreTrainedTokenizerFast.from_pretrained(WEIGHTS / "tokenizer", model_max_length=77)
    words.save_pretrained(folder / "tokenizer")
    CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=77, bos_token_id=1, eos_token_id=3, pad_token_id=0)).half().save_pretrained(folder / "text_encoder")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False,
                  steps_offset=1).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({
        "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "scheduler": ["diffusers", "DDIMScheduler"], "feature_extractor": [None, None], "safety_checker": [None, None]}))
    return folder


def pipeline(folder: Path, dtype: torch.dtype) -> Any:
    """diffusers' pipeline with the U-Net and the VAE in channels_last."""
    from diffusers import StableDiffusionPipeline  # here, so that a cold start of ours does not read it

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)
    return pipe


def ours(family: Any, side: int, steps: int) -> Callable[[], None]:
    """The library's way from noise to a latent."""
    start = starts(family, Size(side, side), 1, None, None)[0][0]
    shot = Shot(PROMPT, 7, Sampling(steps=steps, sampler="ddim"), Guidance(scale=7.5), start)

    def run() -> None:
        for _ in walk(family, [shot], previews=False):
            pass

    return run


def bare(family: Any, side: int, steps: int) -> Callable[[], None]:
    """The U-Net's forward passes and nothing else, in the family's dtype and layout."""
    z = torch.randn(2, family.channels, side // family.factor, side // family.factor)
    x = z.to(family.device, family.dtype).to(memory_format=torch.channels_last)
    text = family.encode_text(["", PROMPT]).tokens.to(family.dtype)

    @torch.no_grad()
    def run() -> None:
        for t in range(steps):
            family.trainable()["unet"](x, torch.full((2,), 900 - t), encoder_hidden_states=text, return_dict=False)

    return run


def theirs(pipe: Any, side: int, steps: int) -> Callable[[], None]:
    """diffusers' way to a latent."""
    return lambda: pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, height=side, width=side, output_type="latent")


def our_picture(family: Any, side: int, steps: int) -> Callable[[], None]:
    """The library's way from a prompt to pixels."""
    from safelight.sampling.draw import draw

    start = starts(family, Size(side, side), 1, None, None)[0][0]
    shot = Shot(PROMPT, 7, Sampling(steps=steps, sampler="ddim"), Guidance(scale=7.5), start)

    def run() -> None:
        for _ in draw(family, [shot], previews=False):
            pass

    return run


def their_picture(pipe: Any, side: int, steps: int) -> Callable[[], None]:
    """diffusers' way to pixels."""
    return lambda: pipe(PROMPT, num_inference_steps=steps, guidance_scale=7.5, height=side, width=side)


def comfy(url: str, models: Path, side: int, steps: int, whole: bool) -> Callable[[], float]:
    """Seconds a step of a ComfyUI server: three times the steps less the steps, so that what is not a step falls out; or a step's share of
    a whole picture."""
    from bench.parity.compare import Server
    from tests.checkpoints import FULL, checkpoint, networks

    file = models / "checkpoints" / "safelight-bench-sd15.safetensors"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        checkpoint(file, FULL["sd1"], networks(FULL["sd1"]), half=True)
    server, seeds = Server(url), itertools.count(time.time_ns() % 2**40)

    def drawn(count: int) -> float:
        sampler = {"model": ["m", 0], "positive": ["p", 0], "negative": ["n", 0], "latent_image": ["e", 0], "seed": next(seeds),
                   "steps": count, "cfg": 7.5, "sampler_name": "ddim", "scheduler": "normal", "denoise": 1.0}
        texts = {node: {"clip": ["m", 1], "text": text} for node, text in (("p", PROMPT), ("n", ""))}
        words = {node: {"class_type": "CLIPTextEncode", "inputs": given} for node, given in texts.items()}
        began = time.perf_counter()
        server.draw(words | {
            "m": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": file.name}},
            "e": {"class_type": "EmptyLatentImage", "inputs": {"width": side, "height": side, "batch_size": 1}},
            "s": {"class_type": "KSampler", "inputs": sampler},
            "d": {"class_type": "VAEDecode", "inputs": {"samples": ["s", 0], "vae": ["m", 2]}},
            "i": {"class_type": "SaveImage", "inputs": {"images": ["d", 0], "filename_prefix": "safelight-bench"}},
        })
        return time.perf_counter() - began

    return (lambda: drawn(steps) / steps) if whole else lambda: (drawn(3 * steps) - drawn(steps)) / (2 * steps)


def clocked(run: Callable[[], None], steps: int) -> Callable[[], float]:
    """Seconds a step."""

    def clock() -> float:
        began = time.perf_counter()
        run()
        return (time.perf_counter() - began) / steps

    return clock


def turns(folder: Path, a: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step of each, one value a round."""
    side, steps = a.size, a.steps
    with runtime.lease(named(str(folder)), holder="bench") as family:
        mine, other = (our_picture, their_picture) if a.whole else (ours, theirs)
        runs = {"ours": clocked(mine(family, side, steps), steps)}
        runs["diffusers"] = clocked(other(pipeline(folder, family.dtype), side, steps), steps)
        if not a.whole:
            runs["bare U-Net"] = clocked(bare(family, side, steps), steps)
        if a.float32:
            runs["diffusers float32"] = clocked(other(pipeline(folder, torch.float32), side, steps), steps)
        if a.comfy:
            runs["ComfyUI"] = comfy(a.comfy, a.comfy_models, side, steps, a.whole)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn, (name, run) in ((t, r) for t in range(a.rounds + 1) for r in runs.items()):
            took = run()
            if turn:  # the first is a warm-up
                seconds[name].append(took)
        return seconds


def cold(who: str, folder: Path, side: int) -> None:
    """One process' whole life: read the files, draw one step, decode."""
    if who == "ours":
        from safelight.sampling.draw import draw

        with runtime.lease(named(str(folder)), holder="bench") as family:
            shot = Shot(PROMPT, 7, Sampling(steps=1), Guidance(scale=7.5), starts(family, Size(side, side), 1, None, None)[0][0])
            for _ in draw(family, [shot], previews=False):
                pass
    else:
        pipeline(folder, runtime.choose_dtype(runtime.choose_device()))(PROMPT, num_inference_steps=1, height=side, width=side)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)


def cold_comfy(home: Path, models: Path, side: int) -> tuple[float, float]:
    """Wall seconds from starting ComfyUI to its first picture, and its peak memory in GB."""
    room = models.parent
    (room / "paths.yaml").write_text(f"bench:\n  base_path: {models.resolve()}\n  checkpoints: checkpoints\n")
    began = time.perf_counter()
    command = [home.parent / "venv/bin/python", "main.py", "--cpu", "--port", "8197", "--front-end-root", home.parent / "front",
               "--extra-model-paths-config", room / "paths.yaml"]
    server = subprocess.Popen(command, cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not answers("http://127.0.0.1:8197/queue"):
            time.sleep(0.05)
        comfy("http://127.0.0.1:8197", models, side, 1, True)()
        took = time.perf_counter() - began
        peak = next(line for line in Path(f"/proc/{server.pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    finally:
        server.terminate()
        server.wait()
    return took, float(peak.split()[1]) / 1e6


def answers(url: str) -> bool:
    """Whether a server is there."""
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


def print_cold(folder: Path, a: argparse.Namespace) -> None:
    """Each in turn, round by round, and the median ratios."""
    seen: dict[str, list[tuple[float, float]]] = {}
    for _ in range(a.rounds):
        for who in ("ours", "diffusers"):
            began = time.perf_counter()
            done = subprocess.run([sys.executable, __file__, "--model", folder, "--size", str(a.size), "--one", who],
                                  check=True, capture_output=True, text=True)
            seen.setdefault(who, []).append((time.perf_counter() - began, float(done.stdout.split()[-1])))
        if a.comfy_home:
            seen.setdefault("ComfyUI", []).append(cold_comfy(a.comfy_home, a.comfy_models, a.size))
    for who, runs in seen.items():
        ratios = [[o / t for o, t in zip(one, this, strict=True)] for one, this in zip(seen["ours"], runs, strict=True)]
        took, peak = (statistics.median(r[i] for r in runs) for i in (0, 1))
        less = [statistics.median(r[i] for r in ratios) for i in (0, 1)]
        print(f"{who}: {took:.1f} s, peak {peak:.2f} GB; ours / this {less[0]:.3f}, {less[1]:.3f}")


def main() -> None:
    """Print medians and the ratios."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path)
    p.add_argument("--size", type=int, default=512)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--rounds", type=int, default=4)
    p.add_argument("--float32", action="store_true")
    p.add_argument("--cold", action="store_true")
    p.add_argument("--whole", action="store_true")
    p.add_argument("--comfy-home", type=Path, metavar="DIR", help="a ComfyUI, its python in DIR/../venv, its pages in DIR/../front")
    p.add_argument("--comfy", metavar="URL")
    p.add_argument("--comfy-models", type=Path, metavar="DIR")
    p.add_argument("--one", choices=("ours", "diffusers"), help=argparse.SUPPRESS)
    a = p.parse_args()
    folder = WEIGHTS if a.model == Path("mini") else a.model or write_sd15(Path("out/bench-generate/sd15"))
    if a.one:
        return cold(a.one, folder, a.size)
    if a.cold:
        return print_cold(folder, a)
    seconds = turns(folder, a)
    for name, values in seconds.items():
        ratios = [o / v for o, v in zip(seconds["ours"], values, strict=True)]
        took = f"{statistics.median(values) * a.steps:.2f} s a picture" if a.whole else f"{statistics.median(values):.3f} s a step"
        print(f"{name}: {took}; ours / this {statistics.median(ratios):.3f}")
    return None


if __name__ == "__main__":
    main()
