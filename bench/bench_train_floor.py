"""LoRA training against its floor, the same network, adapter and batch in a bare torch loop: pictures a second of both, and the ratio.

    python bench/bench_train_floor.py [--model mini|FOLDER] [--batch 8] [--rounds 6] [--prior 0]

Both loops take turns in one process, a few steps each, so that whatever else the machine does meets both; medians, in CPU seconds where
there is no accelerator. The bare loop has random latents and texts at hand and does what must be done: noise, forward, loss, backward,
clip, AdamW. Ours also has the order, the stateless noise, the record, progress events, and, unless `--prior 0`, prior preservation.
"""
from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import torch

from safelight.families import Family, find
from safelight.families.sources import open_source
from safelight.ops.model import model
from safelight.recipes.denoising import Net
from safelight.recipes.lora import Plan
from safelight.recipes.shared import training_dtype
from safelight.runtime import choose_device
from safelight.sampling.draw import encode
from safelight.train import trainables
from safelight.train.lessons import Lesson
from safelight.train.loop import Training, train
from safelight.train.pictures import Pictures
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Model

STEPS = 4
CAPTIONS = ["a person with long blue hair and tan skin, pink shirt, teal background, in pixel style", "a sad person with short blonde hair"]


def loaded(named: Model) -> Family:
    """A copy of the model of its own: two adapters cannot be in one."""
    family = find(named.family)(open_source(named.source), device=choose_device(), dtype=training_dtype())
    family.for_training()
    return family


def bare(family: Family, adapter: trainables.Trainable, batch: int, text: bool) -> Iterator[None]:
    """The floor; one step a turn."""
    parameters = list(adapter.parameters.values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    side = family.size // family.factor
    x0 = torch.randn(batch, family.channels, side, side, device=family.device)
    captions = [CAPTIONS[i % 2] for i in range(batch)]
    with torch.no_grad():
        fixed = family.encode_text(captions)
    while True:
        sigma = family.sigmas[torch.randint(len(family.sigmas), (batch,))].to(family.device)
        noise = torch.randn_like(x0)
        cond = family.encode_text(captions) if text else fixed
        said = family.predict(family.noised(x0, noise, sigma), sigma, cond)
        (said - family.target(x0, noise, sigma)).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def ours(family: Family, adapter: trainables.Trainable, plan: Plan) -> Iterator[object]:
    """The library's loop on as many random latents; one step a turn."""
    side = family.size // family.factor
    texts = dict(encode(family, ["", *CAPTIONS, "a person with long blue hair and tan skin, pink shirt, teal background"]))
    latents = torch.randn(32, family.channels, side, side)
    learn, own = Pictures.held(latents, CAPTIONS * 16), Pictures.held(latents[:8], CAPTIONS * 4)
    lesson = Lesson(learn, own, Pictures(), texts, "in pixel style", family.size)
    net = Net(family, adapter, lesson, plan)
    return iter(train(Training(adapter.parameters, net.losses, plan.batches.steps, plan.optimizer, plan.batches.batch)))


def clock(family: Family) -> Callable[[], float]:
    """CPU seconds of this process, or wall seconds after the accelerator is done."""
    if family.device.type == "cpu":
        return time.process_time

    def waited() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return waited


def measured(loops: Mapping[str, Iterator[object]], rounds: int, now: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds a step of each loop, a figure a round; the round before the first warms up."""
    spent: dict[str, list[float]] = {name: [] for name in loops}
    for turn, (name, loop) in ((turn, pair) for turn in range(rounds + 1) for pair in loops.items()):
        start = now()
        for _ in range(STEPS):
            next(loop)
        spent[name] += [(now() - start) / STEPS] if turn else []
    return spent


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="mini")
    p.add_argument("--batch", type=int, default=8)
    p.add_argument("--rank", type=int, default=16)
    p.add_argument("--rounds", type=int, default=6)
    p.add_argument("--prior", type=float, default=0.0)
    p.add_argument("--no-text", action="store_true")
    a = p.parse_args()
    shape = LoraShape(rank=a.rank, text_encoder=not a.no_text)
    plan = Plan(shape, Optimizer(), Batches(steps=10**6, batch=a.batch), Objective(prior=a.prior), Watch(), 0)
    with ExitStack() as stack:
        families = [loaded(model(a.model)) for _ in range(2)]
        adapters = [stack.enter_context(trainables.adapter(f, shape, 0)) for f in families]
        loops: dict[str, Iterator[object]] = {
            "bare loop": bare(families[0], adapters[0], a.batch, shape.text_encoder), "train_lora": ours(families[1], adapters[1], plan),
        }
        spent = measured(loops, a.rounds, clock(families[0]))
    rates = {name: a.batch / statistics.median(s) for name, s in spent.items()}
    for name, rate in rates.items():
        print(f"{name:12} {rate:8.2f} pictures/s")
    print(f"ratio        {rates['train_lora'] / rates['bare loop']:8.3f}")


if __name__ == "__main__":
    main()
