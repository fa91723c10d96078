"""Something small that several processes can train: a recipe, which the processes of a crew import by its name."""
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from safelight.spec import Work
from safelight.train import parallel
from safelight.train.batches import generator
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Reading, Training, train
from safelight.train.settings import Optimizer

STEPS, BATCH = 10, 8


class Net(nn.Module):
    """Two blocks in a list, as transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x.tanh())
        return self.last(x)  # type: ignore[no-any-return]


def recipe(folder: Path, kind: str, die: int) -> Work[dict[str, Any]]:
    """Every slot's input is a function of step and slot. The second process dies at step `die`."""
    made, share, looks = Net(), parallel.share(), list[int]()
    parallel.shard(made)

    def errors(step: int, slots: range) -> Tensor:
        x = torch.stack([torch.randn(8, generator=generator("x", step, slot)) for slot in slots])
        return (made(x) - x[:, :4].sin()).square().mean(1)  # type: ignore[no-any-return]

    def losses(step: int) -> Iterator[Tensor]:
        if share.rank == 1 and step == die:
            os._exit(3)
        yield errors(step, range(share.rank, BATCH, share.world)).sum() * share.world / BATCH

    @torch.no_grad()
    def watch(step: int, record: dict[str, Any]) -> Work[Reading]:
        looks.append(step)
        yield from ()
        loss = float(errors(10**6, range(BATCH)).mean())
        return Reading(loss, loss, loss)

    o = Optimizer(kind=kind, lr=2e-3, warmup=2)  # type: ignore[arg-type]
    task = Training(dict(made.named_parameters()), losses, STEPS, o, pictures=BATCH, checkpoints=Checkpoints(folder / "kept"), watch=watch,
                    every=5, seconds=0.0)
    trained = yield from train(task)
    held = sum(parallel.local(p).numel() for p in made.parameters())
    return {**trained.record, "looks": looks, "held": held, "end": torch.cat([t.flatten() for t in trained.weights.values()])}
