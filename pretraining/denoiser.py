"""Train a text-to-image diffusion model from nothing, on a CPU if that is what there is.

v-prediction (Salimans & Ho 2022, arXiv:2202.00512) on the latents of `pretraining.autoencoder`, zero terminal SNR (Lin et al. 2023,
arXiv:2305.08891), the text encoder of `pretraining.clip` trained along. One single-threaded rank a core beats one process on all cores.
Order, noise and timesteps come from (seed, step, rank) alone, so a run that was killed goes on exactly where its checkpoint stands.

    python -m pretraining.denoiser DATA MINI --ranks 2 --minutes 120

MINI holds vae/pca.safetensors, clip/ and tokenizer/; unet/ and text_encoder/ (the moving average, float16) are written there. When they are
there already without a last.pt, training begins from them instead of from nothing.
"""
from __future__ import annotations

import argparse
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np

from pretraining.shards import Mixture, Shards, unit
from safelight.disk import place
from safelight.embedded import people, tokenizer

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
STEPS = 1000


@dataclass(frozen=True)
class Plan:
    """What one run does. It ends after `minutes` of wall time, or at step `steps` when that is given; over its last part, `decay`, the rate
    falls. `high` bends timesteps towards noise: t = 1000 u^high, 1 is uniform. `mouth` weighs the loss where a person's mouth is, a
    twentieth of the latents that carries a whole attribute. `widths` are the U-Net's, at 16, 8 and 4 pixels."""

    minutes: float
    steps: int = 0
    ranks: int = 2
    batch: int = 24
    lr: float = 1e-3
    text_lr: float = 0.5
    warmup: int = 200
    decay: float = 0.25
    high: float = 0.65
    drop: float = 0.1
    ema: float = 0.999
    seed: int = 0
    people: float = 0.72
    scenes: float = 0.08
    objects: float = 0.2
    mouth: float = 5.0
    widths: tuple[int, int, int] = (128, 192, 224)


def alphas_cumprod() -> Tensor:
    """(1000,) of the scaled-linear schedule 0.00085 to 0.012, shifted and scaled so that the last is zero."""
    import torch

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64) ** 2
    root = torch.cumprod(1 - betas, 0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return (root**2).float()


def new_unet(widths: tuple[int, int, int]) -> Any:
    """UNet2DConditionModel for (16, 16, 16) latents; text enters at 8 x 8 and 4 x 4."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    unet = UNet2DConditionModel(
        sample_size=16, in_channels=16, out_channels=16, block_out_channels=widths, layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192, attention_head_dim=4, norm_num_groups=32)
    unet.set_attn_processor(AttnProcessor())  # the fused kernel's backward is slow on a CPU
    return unet


def latents(shards: Shards, mini: Path, cache: Path) -> Any:
    """(N, 16, 16, 16) float16, memory-mapped; made once from the pictures."""
    import torch
    from safetensors.torch import load_file

    from pretraining.autoencoder import encode

    if not cache.exists():
        pca = load_file(mini / "vae" / "pca.safetensors")

        def fill(new: Path) -> None:
            out = np.lib.format.open_memmap(new, mode="w+", dtype=np.float16, shape=(len(shards), 16, 16, 16))
            for i in range(0, len(shards), 500):
                out[i:i + 500] = encode(unit(shards.pixels(np.arange(i, min(i + 500, len(shards))))), pca).to(torch.float16).numpy()
            out.flush()

        place(mini, cache, fill)
    return np.load(cache, mmap_mode="r")


@dataclass(frozen=True)
class Batch:
    """Latents `x0` and `noise` (B, 16, 16, 16), timesteps `t` (B,), captions, and the loss's weight at each place (B, 1, 16, 16)."""

    x0: Tensor
    noise: Tensor
    t: Tensor
    captions: list[str]
    weight: Tensor | float = 1.0


def _rate(plan: Plan, step: int, done: float) -> float:
    return plan.lr * min(1.0, (step + 1) / plan.warmup) * (1.0 if done < 1 - plan.decay else max(0.01, (1 - done) / plan.decay))


class _Run:
    """One rank's networks, optimizer and moving average."""

    def __init__(self, mini: Path, plan: Plan, rank: int) -> None:
        import torch
        from safetensors.torch import load_file
        from transformers import CLIPModel, PreTrainedTokenizerFast

        from safelight.train.flat import Flat

        torch.manual_seed(plan.seed)
        self.mini, self.plan, self.rank, self.step = mini, plan, rank, 0
        self.tok = PreTrainedTokenizerFast.from_pretrained(mini / "tokenizer")
        self.unet, self.abar = new_unet(plan.widths), alphas_cumprod()
        clip = CLIPModel.from_pretrained(mini / "clip")
        clip.set_attn_implementation("eager")
        self.text = clip.text_model
        if (mini / "unet").exists():
            self.unet.load_state_dict(load_file(mini / "unet" / "diffusion_pytorch_model.safetensors"))
            text = load_file(mini / "text_encoder" / "model.safetensors")
            self.text.load_state_dict({k.removeprefix("text_model."): t for k, t in text.items()})
        self.flats = [Flat(net.parameters()) for net in (self.unet, self.text)]
        self.ema = [f.weights.data.clone() for f in self.flats]
        groups = [{"params": [f.weights], "lr": plan.lr} for f in self.flats]
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        if (mini / "last.pt").exists():
            state = torch.load(mini / "last.pt", weights_only=True)
            for flat, weights in zip(self.flats, state["weights"], strict=True):
                flat.load(weights)
            self.ema, self.step = state["ema"], state["step"]
            self.optimizer.load_state_dict(state["optimizer"])

    def loss(self, batch: Batch) -> Tensor:
        """(B,) mean squared error of v, weighted."""
        import torch

        ids = self.tok(batch.captions, padding="max_length", truncation=True, max_length=tokenizer.LENGTH, return_tensors="pt")["input_ids"]
        a, s = (part.sqrt().view(-1, 1, 1, 1) for part in (self.abar[batch.t], 1 - self.abar[batch.t]))
        with torch.autocast("cpu", torch.bfloat16):
            v = self.unet(a * batch.x0 + s * batch.noise, batch.t, self.text(ids).last_hidden_state).sample
        out: Tensor = ((v.float() - (a * batch.noise - s * batch.x0)).square() * batch.weight).mean((1, 2, 3))
        return out

    def update(self, rate: float, norm: float = 1.0) -> None:
        """Average the gradients over ranks, one AdamW step, moving average."""
        import torch
        import torch.distributed as dist

        for flat, group, share in zip(self.flats, self.optimizer.param_groups, (1.0, self.plan.text_lr), strict=True):
            if self.plan.ranks > 1:
                dist.all_reduce(flat.grads)
                flat.grads.div_(self.plan.ranks)
            torch.nn.utils.clip_grad_norm_([flat.weights], norm)
            group["lr"] = rate * share
        self.optimizer.step()
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        for ema, flat in zip(self.ema, self.flats, strict=True):
            ema.lerp_(flat.weights.data, 1 - keep)
            flat.grads.zero_()
        self.step += 1

    def save(self, name: str) -> None:
        """Everything that resuming needs, atomically."""
        import torch

        weights = [f.weights.data for f in self.flats]
        state = {"weights": weights, "ema": self.ema, "optimizer": self.optimizer.state_dict(), "step": self.step}
        place(self.mini, self.mini / name, lambda new: torch.save(state, new))

    def export(self) -> None:
        """unet/, text_encoder/ and scheduler/ of the moving average, float16, in the diffusers layout."""
        import copy

        import torch
        from diffusers import DDIMScheduler
        from transformers import CLIPTextModel

        from safelight.train.flat import Flat

        unet, text = copy.deepcopy(self.unet), CLIPTextModel(self.text.config)
        text.load_state_dict(self.text.state_dict())
        for module, ema in ((unet, self.ema[0]), (text, self.ema[1])):
            Flat(module.parameters()).load(ema)
        unet.to(torch.float16).save_pretrained(self.mini / "unet")
        text.to(torch.float16).save_pretrained(self.mini / "text_encoder")
        DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction", rescale_betas_zero_snr=True,
            timestep_spacing="trailing", steps_offset=1, clip_sample=False, set_alpha_to_one=True).save_pretrained(self.mini / "scheduler")


def _held_out(run: _Run, shards: Shards, z: Any) -> dict[str, float]:
    """v-MSE of the moving average on 96 fixed pictures a kind at three noise levels, and how much worse an empty caption is (`gain`)."""
    import torch

    out = {}
    live = [f.weights.data.clone() for f in run.flats]
    for flat, ema in zip(run.flats, run.ema, strict=True):
        flat.load(ema)
    for kind in [k for k in ("person", "object") if len(shards.of_kind(k))]:
        index = Mixture(shards, {kind: 1.0}, seed=run.plan.seed + 77, held_out=True).batch(0, 96)
        x0 = torch.from_numpy(z[index].astype(np.float32))
        noise = torch.randn(x0.shape, generator=torch.Generator().manual_seed(7))
        captions = shards.captions(index, Random(7))
        with torch.inference_mode():
            for t in (500, 800, 950):
                a, b = (float(run.loss(Batch(x0, noise, torch.full((96,), t), c)).mean()) for c in (captions, [""] * 96))
                out[f"{kind}@{t}"] = round(a, 4)
                out[f"{kind}@{t} gain"] = round(b - a, 4)
    for flat, weights in zip(run.flats, live, strict=True):
        flat.load(weights)
    return out


def draw_batch(shards: Shards, z: Any, mix: Mixture, plan: Plan, place: tuple[int, int]) -> Batch:
    """The batch of `place` (step, rank): pictures, captions, noise and timesteps follow from the plan's seed and the place alone."""
    import torch

    step, rank = place
    index = mix.batch(step, plan.batch, rank)
    g = torch.Generator().manual_seed((plan.seed * 1_000_003 + step) * 64 + rank)
    x0 = torch.from_numpy(z[index].astype(np.float32))
    noise = torch.randn(x0.shape, generator=g)
    t = (torch.rand(plan.batch, generator=g) ** plan.high * STEPS).long().clamp(max=STEPS - 1)
    weight = torch.ones(plan.batch, 1, 16, 16)
    weight[[shards.rows[i]["kind"] == "person" for i in index], :, people.MOUTH[0], people.MOUTH[1]] = plan.mouth
    return Batch(x0, noise, t, shards.captions(index, Random(f"{plan.seed}/{step}/{rank}"), drop=plan.drop), weight)


def rank_main(rank: int, data: Path, mini: Path, plan: Plan) -> None:
    """One rank's whole run; rank 0 logs, saves and exports. `last.pt` is where the rate begins to fall, from where a longer run goes on."""
    import torch
    import torch.distributed as dist

    logging.basicConfig(level=logging.INFO if rank == 0 else logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(1)
    if plan.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{mini.absolute()}/rendezvous", rank=rank, world_size=plan.ranks)
    shards, run = Shards.open(data), _Run(mini, plan, rank)
    z = np.load(mini / "latents.npy", mmap_mode="r")
    mix = Mixture(shards, {"person": plan.people, "scene": plan.scenes, "object": plan.objects}, seed=plan.seed)
    start, first, running, falling = time.monotonic(), run.step, 0.0, False
    while (done := run.step / plan.steps if plan.steps else _agreed((time.monotonic() - start) / 60 / plan.minutes, plan.ranks)) < 1:
        if rank == 0 and not falling and done >= 1 - plan.decay:
            run.save("last.pt")
        falling = done >= 1 - plan.decay
        loss = run.loss(draw_batch(shards, z, mix, plan, (run.step, rank))).mean()
        loss.backward()
        running += loss.item()
        run.update(_rate(plan, run.step, done))
        if rank == 0 and run.step % 50 == 0:
            pace = (run.step - first) * plan.batch * plan.ranks / (time.monotonic() - start)
            log.info("step %d loss %.4f lr %.1e %.1f pictures/s", run.step, running / 50, _rate(plan, run.step, done), pace)
            running = 0.0
        if rank == 0 and run.step % 500 == 0:
            log.info("held out %s", json.dumps(_held_out(run, shards, z)))
            run.save("falling.pt" if falling else "last.pt")
            run.export()
    if rank == 0:
        log.info("held out %s", json.dumps(_held_out(run, shards, z)))
        run.save("final.pt")
        run.export()


def _agreed(done: float, ranks: int) -> float:
    """Rank 0's word, so that all ranks stop at the same step."""
    import torch
    import torch.distributed as dist

    word = torch.tensor([done], dtype=torch.float64)
    if ranks > 1:
        dist.broadcast(word, 0)
    return float(word)


def main() -> None:
    """The command above."""
    from torch.multiprocessing.spawn import spawn

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("mini", type=Path)
    numbers = {"minutes": float, "steps": int, "ranks": int, "batch": int, "lr": float, "decay": float, "high": float, "seed": int}
    for name, kind in numbers.items():
        p.add_argument(f"--{name}", type=kind, default=None)
    a = vars(p.parse_args())
    data, mini = a.pop("data"), a.pop("mini")
    plan = Plan(**({"minutes": 120.0} | {k: v for k, v in a.items() if v is not None}))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    latents(Shards.open(data), mini, mini / "latents.npy")
    (mini / "rendezvous").unlink(missing_ok=True)
    if plan.ranks == 1:
        rank_main(0, data, mini, plan)
    else:
        spawn(rank_main, (data, mini, plan), nprocs=plan.ranks)


if __name__ == "__main__":
    main()
