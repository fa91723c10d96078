"""LoRA training against its peers: pictures a second and peak memory, the same model, pictures and settings, as ratios of one run.

    python bench/bench_train.py --waits [--shape small|sd15] [--batch 4] [--steps 8]
    python bench/bench_train.py [--shape small|sd15] [--batch 4] [--steps 6] [--rounds 2] [--diffusers SCRIPT] [--kohya DIR]
        [--diffusers-python PYTHON] [--kohya-python PYTHON]

Each trains a LoRA of rank 16 on the attention of the U-Net alone, AdamW, in a process of its own, in turns. SCRIPT is diffusers' example
`train_text_to_image_lora.py`, run in its default float32 and with bfloat16; DIR a checkout of kohya's sd-scripts with `train_network.py`,
run in bfloat16 with its latents cached, on the `sd15` shape, the only one it knows. The floor is a bare torch loop on the same network in
bfloat16 with peft's layers, latents and texts at hand. A step's time is the median between the ends of the last optimizer steps, memory
the most until then. `small` is 35 million parameters at 256 pixels, `sd15` Stable Diffusion 1.5's shape at 512; weights are random. Neither
peer's files are part of this project.

With --waits: the share of a step's wall time in which the loop waits for its next batch, once where nothing was encoded before, and once
from latents that are there, and on the disk alone.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

ROOM = Path("out/bench-train")
RANK = 16
SHAPES: dict[str, dict[str, Any]] = {
    "small": {"unet": (64, 128, 256, 256), "vae": (32, 64, 96, 96), "text": 256, "layers": 5, "size": 256},
    "sd15": {"unet": (320, 640, 1280, 1280), "vae": (128, 256, 512, 512), "text": 768, "layers": 12, "size": 512},
}
CAPTIONS = ("a smiling girl with purple hair in ink style", "a red house under a blue sky in ink style", "an old man in ink style")


def written(name: str) -> Path:
    """A diffusers folder of the shape with random weights and CLIP's own words, and beside it the same in one file."""
    folder, s = ROOM / name, SHAPES[name]
    if (folder / "model_index.json").exists():
        return folder
    from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from safelight.families.clip_words import clip_folder

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=s["unet"], cross_attention_dim=s["text"], attention_head_dim=8, sample_size=s["size"] // 8)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=s["vae"],
        layers_per_block=2, latent_channels=4, sample_size=s["size"])
    words = CLIPTokenizer.from_pretrained(clip_folder("<|endoftext|>"))
    text = CLIPTextModel(CLIPTextConfig(
        vocab_size=49408, hidden_size=s["text"], intermediate_size=4 * s["text"], num_hidden_layers=s["layers"],
        num_attention_heads=s["text"] // 64, bos_token_id=49406, eos_token_id=49407))
    levels = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)
    StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=words, unet=unet, scheduler=levels, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False).save_pretrained(folder)
    return folder


def words(folder: Path) -> None:
    """CLIP's own words, as kohya's scripts look for them and older transformers read them."""
    from safelight.families.clip_words import merges, vocabulary

    folder.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (folder / "vocab.json").write_text(json.dumps(vocabulary()))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges()))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **marks}))


def pictures(size: int, count: int = 24) -> Path:
    """Soft random pictures with captions, as an imagefolder."""
    folder = ROOM / f"pictures-{size}"
    if not (folder / "metadata.jsonl").exists():
        (folder / "10_ink").mkdir(parents=True, exist_ok=True)
        rows, source = [], np.random.default_rng(0)
        for i in range(count):
            small = Image.fromarray(source.integers(0, 255, (9, 9, 3), dtype=np.uint8))
            name, said = f"10_ink/{i}.png", CAPTIONS[i % len(CAPTIONS)]
            small.resize((size + 32, size), Image.Resampling.BICUBIC).save(folder / name)
            (folder / name).with_suffix(".txt").write_text(said)
            rows.append(json.dumps({"file_name": name, "text": said}))
        (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


def of_ours(folder: Path, data: Path, a: argparse.Namespace) -> None:
    """Train by the library: encode once, then the loop."""
    import safelight as sl
    from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch

    shape = LoraShape(rank=RANK, targets="attention", text_encoder=False)
    batches = Batches(steps=a.steps + 2, batch=a.batch, drop=0.0)
    watch = Watch(held_out=0.0, every=10**6, samples=0)
    sl.train_lora(sl.model(str(folder)), sl.folder(str(data)), shape=shape, optimizer=Optimizer(lr=1e-4, warmup=0), batches=batches,
                  objective=Objective(prior=0.0), watch=watch, seed=a.seed)


def of_waits(folder: Path, data: Path, a: argparse.Namespace) -> None:
    """Print what the loop waits for batches, in two trainings one after the other; nothing is encoded before the first."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from safelight.train.pictures import Ahead

    shutil.rmtree(ROOM / "waits", ignore_errors=True)
    os.environ["SAFELIGHT_HOME"] = str((ROOM / "waits").resolve())
    ends: list[float] = []
    waits: list[float] = []
    give = Ahead.__call__

    def waited(self: Ahead[Any], step: int) -> Any:
        begun = time.perf_counter()
        given = give(self, step)
        waits.append(time.perf_counter() - begun)
        return given

    Ahead.__call__ = waited  # type: ignore[method-assign]
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    for name in ("nothing encoded before", "from encoded latents"):
        for kept in (ROOM / "waits").rglob("*.safetensors"):
            with open(kept, "rb") as file:  # what lies in memory of it is forgotten
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        of_ours(folder, data, a)
        whole, lost = ends[-1] - ends[-a.steps - 2], sum(waits[-a.steps - 1 :])  # the steps between the first and the last end
        print(f"{name:23} {lost / whole:.3%} of a step's {whole / (a.steps + 1):.3f} s are waited for its batch "
              f"({1000 * max(waits[-a.steps - 1 :]):.2f} ms at most)", flush=True)
        a.seed += 1


def of_floor(folder: Path, data: Path, a: argparse.Namespace) -> None:
    """Train by a bare loop: peft's layers over the network in bfloat16, latents and texts at hand."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor
    from peft import LoraConfig

    net = UNet2DConditionModel.from_pretrained(folder / "unet", dtype=torch.bfloat16).requires_grad_(False)
    net.set_attn_processor(AttnProcessor())
    net.to(memory_format=torch.channels_last)
    net.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    parameters = [p for p in net.parameters() if p.requires_grad]
    for p in parameters:
        p.data = p.data.float()
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    side, width = SHAPES[a.shape]["size"] // 8, SHAPES[a.shape]["text"]
    x0, text = torch.randn(a.batch, 4, side, side), torch.randn(a.batch, 77, width).bfloat16()
    levels = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    kept = (1 - levels).cumprod(0)
    for _ in range(a.steps + 2):
        t = torch.randint(1000, (a.batch,))
        noise, share = torch.randn_like(x0), kept[t].view(-1, 1, 1, 1)
        x = (share.sqrt() * x0 + (1 - share).sqrt() * noise).bfloat16()
        said = net(x, t, encoder_hidden_states=text, return_dict=False)[0]
        (said.float() - noise).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def commands(folder: Path, data: Path, a: argparse.Namespace, turn: int) -> dict[str, list[str]]:
    """What is run, by name: a python, a script, its arguments."""
    size, steps = str(SHAPES[a.shape]["size"]), str(a.steps + 2)
    same = ["--shape", a.shape, "--batch", str(a.batch), "--steps", str(a.steps), "--seed", f"{os.getpid()}{turn}"]
    runs = {name: [sys.executable, __file__, "--one", name, *same] for name in ("ours", "floor")}
    if a.diffusers:
        example = [
            a.diffusers_python, a.diffusers, "--pretrained_model_name_or_path", folder, "--train_data_dir", data, "--resolution", size,
            "--center_crop", "--train_batch_size", a.batch, "--max_train_steps", steps, "--rank", RANK, "--learning_rate", "1e-4",
            "--output_dir", ROOM / "diffusers", "--checkpointing_steps", "100000", "--report_to", "tensorboard", "--caption_column", "text",
        ]
        runs["diffusers float32"] = [str(x) for x in example]
        runs["diffusers bfloat16"] = [str(x) for x in (*example, "--mixed_precision", "bf16")]
    if a.kohya and a.shape == "sd15":
        words(ROOM / "words" / "openai_clip-vit-large-patch14")
        network = [
            a.kohya_python, a.kohya / "train_network.py", "--pretrained_model_name_or_path", folder, "--train_data_dir", data,
            "--resolution", size, "--train_batch_size", a.batch, "--max_train_steps", steps, "--network_module", "networks.lora",
            "--network_dim", RANK, "--network_alpha", RANK, "--network_train_unet_only", "--cache_latents", "--mixed_precision", "bf16",
            "--learning_rate", "1e-4", "--optimizer_type", "AdamW", "--caption_extension", ".txt", "--output_dir", ROOM / "kohya",
            "--output_name", "peer", "--tokenizer_cache_dir", ROOM / "words", "--sdpa",
            "--max_data_loader_n_workers", "0", "--save_precision", "float",
        ]
        runs["kohya bfloat16"] = [str(x) for x in network]
    return runs


def run(name: str, command: list[str]) -> tuple[float, float, float]:
    """(wall seconds a step, CPU seconds a step, peak GB) of one process."""
    out, log = (ROOM / f"{name.replace(' ', '-')}.{end}" for end in ("json", "log"))
    out.unlink(missing_ok=True)
    here = {**os.environ, "SAFELIGHT_HOME": str((ROOM / "home").resolve()), "HF_HUB_OFFLINE": "1"}
    clocked = [command[0], str(Path(__file__).with_name("clocked.py")), str(out), *command[1:]]
    with open(log, "wb") as said:
        subprocess.run(clocked, env=here, stdout=said, stderr=said, check=False)
    told = json.loads(out.read_text()) if out.exists() else {"ends": []}
    if len(told["ends"]) < 5:
        raise SystemExit(f"bench_train: {name} did not train; see {log}")
    wall, cpu = (statistics.median(np.diff(told[kind])[-min(4, len(told[kind]) - 3) :]) for kind in ("ends", "cpu"))
    return float(wall), float(cpu), float(told["peak"])


def main() -> None:
    """Take turns and print medians and ratios."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--shape", choices=SHAPES, default="small")
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--steps", type=int, default=8)
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--diffusers", type=Path, metavar="SCRIPT")
    p.add_argument("--diffusers-python", default=sys.executable)
    p.add_argument("--kohya", type=Path, metavar="DIR")
    p.add_argument("--kohya-python", default=sys.executable)
    p.add_argument("--only", nargs="*", help="of ours, floor, diffusers float32, ...; all without it")
    p.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    p.add_argument("--waits", action="store_true", help="how long the loop waits for batches; nothing else is run")
    p.add_argument("--one", choices=("ours", "floor"), help=argparse.SUPPRESS)
    a = p.parse_args()
    folder, data = written(a.shape), pictures(SHAPES[a.shape]["size"], 24 if a.shape == "small" else 6)
    if a.waits:
        return of_waits(folder, data, a)
    if a.one:
        return {"ours": of_ours, "floor": of_floor}[a.one](folder, data, a)
    seen: dict[str, list[tuple[float, float, float]]] = {}
    for turn in range(a.rounds):
        for name, command in commands(folder, data, a, turn).items():  # another seed, or ours would be there already
            if a.only and name not in a.only:
                continue
            seen.setdefault(name, []).append(run(name, command))
    for name, values in seen.items():
        wall, cpu, peak = (statistics.median(v[i] for v in values) for i in range(3))
        mine = seen.get("ours", values)
        less = [statistics.median(o[i] / v[i] for o, v in zip(mine, values, strict=True)) for i in range(3)]
        print(f"{name:19} {a.batch / wall:7.3f} pictures/s, {cpu:7.2f} CPU s a step, peak {peak:.2f} GB; "
              f"ours is {1 / less[0]:.2f} times as fast (CPU {1 / less[1]:.2f}), memory {less[2]:.2f}", flush=True)
    return None


if __name__ == "__main__":
    main()
