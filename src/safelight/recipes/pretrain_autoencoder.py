"""Train a small autoencoder from nothing, in an order that lets the denoiser start at once.

The latents are fixed first: principal components of 8 x 8 x 3 patches, scaled by 1 / sqrt(std) ("half whitening", so fine detail stays
quieter than form) and to rms 1. They cost seconds. The encoder then learns to give those latents, and the decoder to paint the picture
from them, beside the denoiser's training. Layout: diffusers' AutoencoderKL (Rombach et al. 2022, arXiv:2112.10752), scaling factor 1.

    python -m safelight.recipes.pretrain_autoencoder DATA OUT --minutes 30
"""
from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.disk import place
from safelight.embedded.shards import Mixture, Shards, unit

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
FACTOR, CHANNELS = 8, 16
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


def psnr(model: Any, x: Tensor, z: Tensor) -> tuple[float, float, float]:
    """(decoder on the true latents, encoder and decoder, encoder's squared error); dB on pictures in [-1, 1], peak 2."""
    import torch

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        guess = model.encoder(x)[:, :CHANNELS].float()
        a, b = (((model.decoder(latent).float().clamp(-1, 1) - x) ** 2).mean() for latent in (z, guess))
    return float(10 * torch.log10(4 / a)), float(10 * torch.log10(4 / b)), float(((guess - z) ** 2).mean())


def train(data: Path, out: Path, *, minutes: float, batch: int = 12, crop: int = 64, lr: float = 1.2e-3, seed: int = 0) -> None:
    """Fit the latents if `out`/pca.safetensors is not there, then train for `minutes` of wall time; goes on from `out`/last.pt,
    or from the weights in `out` alone."""
    import torch
    from safetensors.torch import load_file, save_file
    from torch.nn.functional import mse_loss

    shards, torch_seed = Shards.open(data), torch.Generator().manual_seed(seed)
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "pca.safetensors").exists():
        save_file(fit_pca(shards), out / "pca.safetensors")
    pca = load_file(out / "pca.safetensors")
    torch.manual_seed(seed)
    model = new_model()
    if (out / "diffusion_pytorch_model.safetensors").exists():
        model.load_state_dict(load_file(out / "diffusion_pytorch_model.safetensors"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
    first = 0
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        torch_seed.manual_seed(seed + first)
    mix = Mixture(shards, SHARES, seed=seed)
    held = unit(shards.pixels(Mixture(shards, SHARES, seed=seed + 1, held_out=True).batch(0, 40)))
    start, step = time.monotonic(), first
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * (1 if done < 0.4 else max(0.02, (1 - done) / 0.6))
        x = unit(shards.pixels(mix.batch(step, batch)))
        i, j = (int(torch.randint(0, (x.shape[-1] - crop) // FACTOR + 1, (), generator=torch_seed)) * FACTOR for _ in range(2))
        x = x[..., i:i + crop, j:j + crop]
        z = encode(x, pca)
        noisy = z + torch.randn(z.shape, generator=torch_seed) * torch.rand(batch, 1, 1, 1, generator=torch_seed) * 0.1
        with torch.autocast("cpu", torch.bfloat16):
            loss = decoder_loss(model.decoder(noisy).float(), x)
            if step % 3 == 0:
                loss = loss + mse_loss(model.encoder(x)[:, :CHANNELS].float(), z) * 3
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 100 == 0:
            quality = psnr(model, held, encode(held, pca))
            log.info("step %d loss %.4f psnr decoder %.2f both %.2f encoder mse %.4f", step, loss.item(), *quality)
        if step % 200 == 0:
            _save(out, model, optimizer, step)
    _save(out, model, optimizer, step)


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
    p.add_argument("--threads", type=int, default=1)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(a.threads)
    train(a.data, a.out, minutes=a.minutes)


if __name__ == "__main__":
    main()
