"""Every kind of optimizer: its steps are the paper's, and its whole state survives a stop; rates over the steps."""
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from safelight.train import optimizers, stepping
from safelight.train.batches import generator
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Reading, Training, rate, train
from safelight.train.optimizers import KINDS
from safelight.train.settings import Optimizer
from tests.unit.test_loop import last

RATES = {kind: {"prodigy": 1.0, "lion": 2e-3, "adafactor": 0.05}.get(kind, 1e-2) for kind in KINDS}


class Small:
    """A small network that learns a fixed function; 64 x 80 numbers are more than an 8-bit state leaves alone."""

    def __init__(self, kind: str, folder: Path | None = None, *, steps: int = 6, **more: Any) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 80), nn.Linear(80, 4, bias=False))
        o = Optimizer(kind=kind, lr=RATES[kind], warmup=2, **more.pop("optimizer", {}))
        kept = Checkpoints(folder) if folder else None
        self.training = Training(dict(self.net.named_parameters()), self.losses, steps, o, checkpoints=kept, seconds=0.0, **more)

    def losses(self, step: int) -> Iterator[Tensor]:
        x = torch.randn(32, 16, generator=generator("x", step))
        yield (self.net(x) - x[:, :4].sin()).square().mean()


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_stopped_it_ends_with_the_same_bits(tmp_path: Path, kind: str, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "SMALL", 2**20 if together else 0)
    rates = {} if kind == "prodigy" else {"0.": 4.0}
    straight = last(train(Small(kind, rates=rates).training))
    first = train(Small(kind, tmp_path, rates=rates).training)
    for _ in range(3):
        next(first)
    first.close()
    resumed = last(train(Small(kind, tmp_path, rates=rates).training))
    assert all(torch.equal(resumed.weights[n], w) for n, w in straight.weights.items())
    assert resumed.record["loss"] == straight.record["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str) -> None:
    loss = [value for _, value in last(train(Small(kind, steps=200).training)).record["loss"]]
    assert sum(loss[-10:]) < 0.3 * sum(loss[:10])


@pytest.mark.parametrize("kind", ["adamw", "adamw8bit", "lion", "schedulefree"])
def test_one_tensor_or_many_is_the_same_descent(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for small in (0, 2**20):
        monkeypatch.setattr(stepping, "SMALL", small)
        small_net = Small(kind, steps=5, rates={"2.": 0.5}, optimizer={"average": 0.0})
        ends.append(last(train(small_net.training)).weights)
    # 8-bit blocks lie elsewhere in one long tensor
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=2e-3 if kind == "adamw8bit" else 1e-6) for n in ends[0])


def moved(make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], steps: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A parameter after so many gradients, at rates that rise over the first four."""
    p = nn.Parameter(torch.randn(9000, generator=generator("p")).to(dtype))
    o = make([p])
    full = [g["lr"] for g in o.param_groups]
    for step in range(steps):
        for group, lr in zip(o.param_groups, full, strict=True):
            group["lr"] = lr * min(1, (step + 1) / 4)
        p.grad = p.detach() + 0.1 * torch.randn(9000, generator=generator("g", step)).to(dtype)
        o.step()
    if isinstance(o, optimizers.ScheduleFree):
        return o.averaged(p)
    return p.detach()


def group(ps: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": ps, "factor": 1.0}]


def gradients(p: Tensor, steps: int) -> Iterator[tuple[int, Callable[[Tensor], Tensor]]]:
    for step in range(steps):
        noise = torch.randn(9000, generator=generator("g", step)).double()
        yield step, lambda q, noise=noise: q + 0.1 * noise


def test_lion_is_algorithm_2() -> None:
    p, m = torch.randn(9000, generator=generator("p")).double(), torch.zeros(9000).double()
    for step, gradient in gradients(p, 10):
        g, lr = gradient(p), 1e-3 * min(1, (step + 1) / 4)
        p = p - lr * (torch.sign(0.9 * m + 0.1 * g) + 0.1 * p)
        m = 0.99 * m + 0.01 * g
    assert torch.allclose(moved(lambda ps: optimizers.Lion(group(ps), lr=1e-3, weight_decay=0.1), 10).double(), p, atol=1e-6)


def test_schedule_free_is_algorithm_1() -> None:
    """In the three sequences of the paper: the average x is kept here, and in the optimizer follows from the two others."""
    z = x = torch.randn(9000, generator=generator("p")).double()
    v, total = torch.zeros(9000).double(), 0.0
    for step, gradient in gradients(z, 10):
        lr = 1e-2 * min(1, (step + 1) / 4)
        y = 0.1 * z + 0.9 * x
        g = gradient(y)
        v = 0.99 * v + 0.01 * g**2
        z = z - lr * (g / ((v / (1 - 0.99 ** (step + 1))).sqrt() + 1e-8) + 0.1 * y)
        total += lr**2
        x = (1 - lr**2 / total) * x + lr**2 / total * z
    ours = moved(lambda ps: optimizers.ScheduleFree(group(ps), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1), 10)
    assert torch.allclose(ours.double(), x, atol=1e-5)


@pytest.mark.parametrize("coefficient", [1.0, 0.5])
def test_prodigy_is_algorithm_4(coefficient: float) -> None:
    """With d beside the gradients, and sums r and s as in the paper; rates that rise do not enter s."""
    p = start = torch.randn(9000, generator=generator("p")).double()
    m, v, s, r, d = torch.zeros(9000).double(), torch.zeros(9000).double(), torch.zeros(9000).double(), 0.0, 1e-6
    for step, gradient in gradients(p, 30):
        g = gradient(p)
        rate_ = d * min(1, (step + 1) / 4) * (1 - 0.99 ** (step + 1)) ** 0.5 / (1 - 0.9 ** (step + 1))
        m, v = 0.9 * m + 0.1 * d * g, 0.99 * v + 0.01 * d**2 * g**2
        r = 0.99**0.5 * r + d * rate_ * float(g @ (start - p))
        s = 0.99**0.5 * s + d * d * g
        d = max(d, coefficient * r / float(s.abs().sum()))
        p = p - rate_ * (m / (v.sqrt() + d * 1e-8) + 0.1 * p)
    o = Optimizer(kind="prodigy", lr=1.0, betas=(0.9, 0.99), weight_decay=0.1, d_coef=coefficient)
    ours = moved(lambda ps: optimizers.made(o, group(ps)), 30, torch.float64)
    assert d > 1e-5
    assert torch.allclose(ours, p, atol=1e-6)


@pytest.mark.parametrize("signed", [True, False])
def test_eight_bits_keep_seven_decades(signed: bool) -> None:
    table, _ = optimizers.codebook(signed, torch.device("cpu"))
    assert len(set(table.tolist())) == 256 and table[-1] == 1 and 0 in table
    x = torch.randn(5000, generator=generator("x")) * 10.0 ** torch.linspace(-4, 0, 5000)
    x = x if signed else x.abs()
    back = optimizers.unpacked(*optimizers.packed(x, signed=signed), x, signed=signed)
    blocks = torch.nn.functional.pad(x, (0, -5000 % 256)).view(-1, 256).abs().amax(1).repeat_interleave(256)[:5000]
    large = x.abs() > 0.1 * blocks
    assert float(((back - x).abs() / x.abs())[large].max()) < (0.075 if signed else 0.04)
    assert float(((back - x).abs() / blocks).max()) < (0.008 if signed else 0.004)


def test_eight_bits_follow_adamw() -> None:
    eight = moved(lambda ps: optimizers.AdamW8bit(group(ps), lr=1e-3, weight_decay=0.1), 50)
    full = moved(lambda ps: torch.optim.AdamW(ps, lr=1e-3, weight_decay=0.1), 50)
    start = torch.randn(9000, generator=generator("p"))
    assert float((eight - full).norm() / (full - start).norm()) < 0.03


OURS = {"use_bias_correction": True, "safeguard_warmup": True}


@pytest.mark.parametrize(("package", "name", "ours", "more"), [
    ("lion_pytorch", "Lion", optimizers.Lion, {}),
    ("prodigyopt", "Prodigy", optimizers.Prodigy, OURS),
    ("prodigyopt", "Prodigy", partial(optimizers.Prodigy, d_coef=2.0), {**OURS, "d_coef": 2.0}),
])
def test_the_authors_package_goes_the_same_way(package: str, name: str, ours: Any, more: dict[str, Any]) -> None:
    theirs = getattr(pytest.importorskip(package), name)
    known = {"lr": 1.0 if name == "Prodigy" else 1e-3, "betas": (0.9, 0.99), "weight_decay": 0.0}
    assert torch.allclose(moved(lambda ps: ours(group(ps), **known), 40), moved(lambda ps: theirs(ps, **known, **more), 40), atol=1e-6)


@pytest.mark.parametrize("kind", ["schedulefree", "adamw"])
def test_the_average_is_what_is_watched_and_kept(kind: str) -> None:
    seen: list[Tensor] = []
    small = Small(kind, steps=12, optimizer={"average": 0.9 if kind == "adamw" else 0.0}, every=4)

    def watch(step: int, record: dict[str, Any]) -> Any:
        seen.append(small.net[0].weight.detach().clone())
        yield from ()
        return Reading(10.0 - step, 0, 20)

    trained = last(train(Training(**{**vars(small.training), "watch": watch})))
    assert torch.equal(trained.weights["0.weight"], seen[-1])
    assert not torch.equal(small.net[0].weight, seen[-1])
    assert torch.equal(last(train(Small(kind, steps=12, optimizer=vars_of(small)).training)).weights["0.weight"], seen[-1])


def vars_of(small: Small) -> dict[str, Any]:
    return {"average": small.training.optimizer.average}


def test_settings_that_say_two_things_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected 0\.1 to 10"):
        Optimizer(kind="prodigy", lr=1e-4)
    with pytest.raises(ValueError, match="averages the weights by itself"):
        Optimizer(kind="schedulefree", average=0.9)
    with pytest.raises(ValueError, match="choose another optimizer"):
        last(train(Small("prodigy", rates={"0.": 4.0}).training))


@pytest.mark.parametrize(("decay", "theirs", "more", "atol"), [
    ("constant", "constant_with_warmup", {}, 1e-9), ("cosine", "cosine", {}, 1e-9), ("linear", "linear", {}, 1e-9),
    ("restarts", "cosine_with_restarts", {"num_cycles": 3}, 1e-9), ("polynomial", "polynomial", {"power": 2.0}, 1e-6),
])
def test_rates_are_those_of_diffusers(decay: Any, theirs: str, more: dict[str, Any], atol: float) -> None:
    """Beyond the warm-up, which counts from zero there: its first step does nothing."""
    o = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_scheduler(theirs, o, num_warmup_steps=10, num_training_steps=100, **more)
    ours = Optimizer(lr=1.0, warmup=10, decay=decay)
    for step in range(100):
        if step >= 10:
            assert rate(ours, step, 100) == pytest.approx(o.param_groups[0]["lr"], abs=atol)
        o.step()
        schedule.step()


def test_rex_and_the_ends() -> None:
    assert [rate(Optimizer(lr=1.0, warmup=0, decay="rex"), s, 4) for s in range(4)] == pytest.approx([1, 6 / 7, 2 / 3, 0.4])
    ends = [rate(Optimizer(lr=1.0, warmup=0, decay=d), 100, 100) for d in ("linear", "cosine", "restarts", "polynomial", "rex")]
    assert ends == pytest.approx([0.0] * 5, abs=1e-12)
    assert all(math.isclose(rate(Optimizer(kind="schedulefree", warmup=5), s, 50), 1e-3) for s in range(5, 50))
