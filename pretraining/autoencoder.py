"""Train a small autoencoder from nothing, in an order that lets the denoiser start at once.

The latents are fixed first: principal components of 8 x 8 x 3 patches, scaled by 1 / sqrt(std) ("half whitening", so fine detail stays
quieter than form) and to rms 1. They cost seconds. The encoder then learns to give those latents, and the decoder to paint the picture
from them, beside the denoiser's training. Layout: diffusers' AutoencoderKL (Rombach et al. 2022, arXiv:2112.10752), scaling factor 1.

    python -m pretraining.autoencoder DATA OUT --minutes 30

A denoiser leaves latents softer than any picture's. When one is there, `--through MODEL` sends half of the latents through it, noised and
denoised in one step, so that the decoder learns to paint sharp pictures from those as well.
"""
from __future__ import annotations

import argparse
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from pretraining.shards import Mixture, Shards, unit
from safelight.disk import place

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.families import Family

log = logging.getLogger(__name__)
FACTOR, CHANNELS, RATE = 8, 16, 1.2e-3
SHARES = {"person": 0.5, "scene": 0.2, "object": 0.3}


def patches(x: Tensor) -> Tensor:
    """(B, 3, H, W) -> (B, H/8, W/8, 192)."""
    from torch.nn.functional import pixel_unshuffle

    return pixel_unshuffle(x, FACTOR).permute(0, 2, 3, 1)


def fit_pca(shards: Shards, *, seed: int = 0, pictures: int = 3000) -> dict[str, Tensor]:
    """`mean` (192,), `down` (192, 16) and `up` (16, 192): z = (p - mean) @ down has rms 1, p ~ mean + z @ up."""
    import torch

    index = Mixture(shards, SHARES, seed=seed).batch(0, pictures)
    p = patches(unit(shards.pixels(index))).reshape(-1, FACTOR * FACTOR * 3)
    mean = p.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((p - mean).T))
    std, basis = values[-CHANNELS:].clamp(min=1e-8).sqrt().flip(0), vectors[:, -CHANNELS:].flip(1)
    scale = std.rsqrt()
    scale = scale / (std * scale).square().mean().sqrt()
    log.info("principal components keep %.2f %% of the variance", 100 * values[-CHANNELS:].sum() / values.sum())
    return {"mean": mean, "down": (basis * scale).contiguous(), "up": (basis / scale).T.contiguous()}


def encode(x: Tensor, pca: dict[str, Tensor]) -> Tensor:
    """(B, 3, H, W) in [-1, 1] -> (B, 16, H/8, W/8)."""
    return ((patches(x) - pca["mean"]) @ pca["down"]).permute(0, 3, 1, 2)


def new_model() -> Any:
    """AutoencoderKL f8 c16, 3.8 M parameters; the log-variance is fixed (the latents are the mean)."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(32, 64, 128, 128),
        layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=2, sample_size=128, scaling_factor=1.0, mid_block_add_attention=False,
        use_quant_conv=False, use_post_quant_conv=False)
    out = model.encoder.conv_out
    with torch.no_grad():
        out.weight[CHANNELS:] = 0
        out.bias[CHANNELS:] = -12.0
    return model


def _gradients(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def decoder_loss(y: Tensor, x: Tensor) -> Tensor:
    """L1 + L1 of the picture's gradients + squared error: flat areas flat, lines where they are."""
    from torch.nn.functional import l1_loss, mse_loss

    edges = sum(l1_loss(a, b) for a, b in zip(_gradients(y), _gradients(x), strict=True))
    return l1_loss(y, x) + edges + mse_loss(y, x)


def psnr(model: Any, x: Tensor, z: Tensor) -> float:
    """Of what the decoder makes of z; dB on pictures in [-1, 1], peak 2."""
    import torch

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        error = ((model.decoder(z).float().clamp(-1, 1) - x) ** 2).mean()
    return float(10 * torch.log10(4 / error))


@dataclass(frozen=True)
class Crops:
    """What is learned from: crops of pictures, their latents, and the latents that the decoder is shown for them."""

    shards: Shards
    pca: dict[str, Tensor]
    seed: int
    through: Family | None = None
    batch: int = 12
    side: int = 64

    @cached_property
    def mixture(self) -> Mixture:
        """Which pictures a step has."""
        return Mixture(self.shards, SHARES, seed=self.seed)

    def draw(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """(x, z, shown) of a step: they follow from the seed and the step alone."""
        import torch

        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        index = self.mixture.batch(step, self.batch)
        x = unit(self.shards.pixels(index))
        z = encode(x, self.pca)
        shown = z + torch.randn(z.shape, generator=g) * torch.rand(len(z), 1, 1, 1, generator=g) * 0.1
        if self.through:
            half = len(z) // 2
            shown[:half] = self.softened(self.through, z[:half], index[:half], g)
        i, j = (int(torch.randint(0, (x.shape[-1] - self.side) // FACTOR + 1, (), generator=g)) for _ in range(2))
        n = self.side // FACTOR
        x = x[..., i * FACTOR:i * FACTOR + self.side, j * FACTOR:j * FACTOR + self.side]
        return x, z[..., i:i + n, j:j + n], shown[..., i:i + n, j:j + n]

    def softened(self, through: Family, z: Tensor, index: Any, g: Any) -> Tensor:
        """The latents as the denoiser leaves them, from noise of up to half of its levels, told the picture's caption."""
        import torch

        level = torch.randint(len(through.sigmas) // 30, len(through.sigmas) // 2, (len(z),), generator=g)
        noisy = through.noised(z, torch.randn(z.shape, generator=g), through.sigmas[level])
        with torch.no_grad():
            cond = through.encode_text(self.shards.captions(index, Random(int(level.sum()))))
            return through.denoise(noisy, through.sigmas[level], cond).float()


def train(data: Path, out: Path, *, minutes: float, through: Path | None = None, batch: int = 12, seed: int = 0) -> None:
    """Fit the latents if `out`/pca.safetensors is not there, then train for `minutes` of wall time; goes on from `out`/last.pt,
    or from the weights in `out` alone."""
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import mse_loss

    shards = Shards.open(data)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pca.safetensors").exists():
        save_file(fit_pca(shards), out / "pca.safetensors")
    torch.manual_seed(seed)
    model, family = new_model(), _family(through) if through else None
    if (out / "diffusion_pytorch_model.safetensors").exists():
        model.load_state_dict(load_file(out / "diffusion_pytorch_model.safetensors"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    step = 0
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    crops = Crops(shards, load_file(out / "pca.safetensors"), seed, family, batch)
    start = time.monotonic()
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / 50) * (1 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        x, z, shown = crops.draw(step)
        with torch.autocast("cpu", torch.bfloat16):
            loss = decoder_loss(model.decoder(shown).float(), x)
            if step % 3 == 0:
                loss = loss + mse_loss(model.encoder(x)[:, :CHANNELS].float(), z) * 3
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log.info("step %d loss %.4f %s", step, loss.item(), _quality(model, crops))
        if step % 200 == 0:
            _save(out, model, optimizer, step)
    _save(out, model, optimizer, step)


def _quality(model: Any, crops: Crops) -> str:
    """On 40 held-out pictures: the decoder from true latents, encoder and decoder, and the decoder from what a denoiser leaves."""
    import torch

    index = Mixture(crops.shards, SHARES, seed=crops.seed + 1, held_out=True).batch(0, 40)
    x = unit(crops.shards.pixels(index))
    z = encode(x, crops.pca)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        guess = model.encoder(x)[:, :CHANNELS].float()
    told = f"psnr decoder {psnr(model, x, z):.2f} both {psnr(model, x, guess):.2f} encoder mse {float(((guess - z) ** 2).mean()):.4f}"
    if crops.through is None:
        return told
    soft = crops.softened(crops.through, z, index, torch.Generator().manual_seed(crops.seed))
    return f"{told} softened {psnr(model, x, soft):.2f}"


def _family(folder: Path) -> Family:
    import torch

    from safelight.families import find
    from safelight.families.sources import open_source

    parts = open_source(folder)
    return find(parts.family)(parts, device=torch.device("cpu"), dtype=torch.bfloat16)


def _save(out: Path, model: Any, optimizer: Any, step: int) -> None:
    import torch

    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    place(out, out / "last.pt", lambda new: torch.save(state, new))
    model.save_pretrained(out)


def main() -> None:
    """The command above."""
    import torch

    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--through", type=Path, metavar="MODEL", help="a model folder whose denoiser softens half of the latents")
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(a.threads)
    train(a.data, a.out, minutes=a.minutes, through=a.through)


if __name__ == "__main__":
    main()
