"""The judge of `bench/embedded.py`: a small convolutional network that reads attributes off real renders.

    python bench/embedded_classifier.py DATA bench/assets/attributes.safetensors --minutes 8
"""
from __future__ import annotations

import argparse
import logging
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from pretraining.shards import Shards, unit
from safelight.embedded import vocabulary as v

log = logging.getLogger(__name__)
HEADS = {
    "kind": ["person", "scene", "object"],
    "hair colour": list(v.HAIR_COLOURS), "hair style": list(v.HAIR_STYLES), "glasses": list(v.GLASSES),
    "expression": list(v.EXPRESSIONS), "beard": list(v.BEARDS), "clothes colour": list(v.CLOTHES_COLOURS), "skin": list(v.SKINS),
    "background": list(v.BACKGROUNDS), "scene": list(v.SCENES), "time": list(v.TIMES), "object": list(v.OBJECTS),
}
SHARES = {"person": 0.65, "scene": 0.1, "object": 0.25}


class Classifier(nn.Module):
    """(B, 3, 128, 128) in [-1, 1] -> logits a head."""

    def __init__(self) -> None:
        super().__init__()
        widths, layers = (3, 32, 64, 96, 128, 128), []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()]
            layers += [nn.Conv2d(b, b, 3, 1, 1), nn.BatchNorm2d(b), nn.ReLU()] if b >= 64 else []
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(128 * 16, 256), nn.ReLU())
        self.heads = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(256, len(values)) for name, values in HEADS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (B, values) by head."""
        features = self.body(x)
        return {name: self.heads[name.replace(" ", "_")](features) for name in HEADS}


def labels(rows: list[dict[str, str]]) -> dict[str, Tensor]:
    """(B,) value numbers a head, -100 where a picture has none."""
    return {name: torch.tensor([values.index(r[name]) if r.get(name) in values else -100 for r in rows]) for name, values in HEADS.items()}


def _soften(x: Tensor, rng: np.random.Generator) -> Tensor:
    """A decoder's softness and a sampler's grain, so that the judge looks at form and colour, not at crisp edges."""
    if rng.random() < 0.5:
        k = int(rng.choice([2, 4]))
        x = interpolate(avg_pool2d(x, k), scale_factor=k, mode="bilinear")
    return x + torch.randn_like(x) * rng.uniform(0, 0.08)


def train(data: Path, out: Path, minutes: float, batch: int = 64, lr: float = 2e-3) -> None:
    """Train on all shards of `data` for `minutes`; the last 1,000 pictures of each kind are never trained on."""
    torch.manual_seed(0)
    shards, rng, model = Shards.open(data), np.random.default_rng(0), Classifier()
    pools = {k: shards.of_kind(k) for k in HEADS["kind"]}
    held = np.concatenate([p[-200:] for p in pools.values()])
    pools = {k: p[:-1000] for k, p in pools.items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    start, step = time.monotonic(), 0
    while (done := (time.monotonic() - start) / 60 / minutes) < 1:
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * max(0.01, 1 - done)
        index = np.concatenate([rng.choice(pools[k], int(batch * share)) for k, share in SHARES.items()])
        y = labels([shards.rows[i] for i in index])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(_soften(unit(shards.pixels(index)), rng))
        loss = sum(cross_entropy(logits[n].float(), y[n], ignore_index=-100) for n in HEADS if bool((y[n] >= 0).any()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        if step % 100 == 0:
            log.info("step %d loss %.3f held out %s", step, loss.item(), accuracy(model, shards, held))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: t.half() if t.is_floating_point() else t for k, t in model.state_dict().items()}, out)
    log.info("final %s", accuracy(model, shards, held))


def accuracy(model: Classifier, shards: Shards, index: np.ndarray) -> dict[str, float]:
    """Share right a head on pictures of the shards."""
    got = predict(model, shards.pixels(index))
    y = labels([shards.rows[i] for i in index])
    return {n: round(float((got[n][y[n] >= 0] == y[n][y[n] >= 0]).float().mean()), 3) for n in HEADS}


def predict(model: Classifier, raw: np.ndarray) -> dict[str, Tensor]:
    """(B,) value numbers a head for (B, 128, 128, 3) uint8."""
    model.eval()
    with torch.inference_mode():
        out = {n: [] for n in HEADS}
        for i in range(0, len(raw), 100):
            for n, logits in model(unit(raw[i:i + 100])).items():
                out[n].append(logits.argmax(1))
    model.train()
    return {n: torch.cat(parts) for n, parts in out.items()}


def load(path: Path) -> Classifier:
    """The trained judge."""
    model = Classifier()
    model.load_state_dict({k: t.float() if t.is_floating_point() else t for k, t in load_file(path).items()})
    return model.eval()


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("data", type=Path)
    p.add_argument("out", type=Path)
    p.add_argument("--minutes", type=float, default=8)
    a = p.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    train(a.data, a.out, a.minutes)
