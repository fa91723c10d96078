"""The loop: steps, rates, averages, looks, checkpoints, and what stops it."""
import math
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from safelight.events import Event, Progress
from safelight.train import batches
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Reading, Trained, Training, rate, train
from safelight.train.settings import Optimizer

# The loop.

TARGET = torch.linspace(-1, 1, 12).view(3, 4)


class Line:
    """A least-squares fit with noise that depends on the step: something small that a loop can train."""

    def __init__(self, folder: Path | None = None, **settings: Any) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3, bias=False)
        self.optimizer = Optimizer(**{"lr": 0.05, "warmup": 3, **settings.pop("optimizer", {})})
        self.norms: list[float] = []
        self.training = Training(
            dict(self.layer.named_parameters()), self.losses, optimizer=self.optimizer,
            checkpoints=Checkpoints(folder) if folder else None, **{"steps": 30, "seconds": 0.0, "every": 10, **settings},
        )

    def losses(self, step: int) -> Iterator[Tensor]:
        for part in range(2):
            x = torch.randn(8, 4, generator=batches.generator("x", step, part))
            yield (self.layer(x) - x @ TARGET.T).square().mean() / 2


def last(work: Generator[Event, None, Trained]) -> Trained:
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]


def test_the_loop_fits_and_says_how_far_it_is() -> None:
    line = Line(steps=150)
    events = list(train(line.training))
    assert [e.step for e in events if isinstance(e, Progress)] == list(range(1, 151))
    assert all(e.total == 150 for e in events if isinstance(e, Progress))
    assert torch.allclose(line.layer.weight, TARGET, atol=0.05)


@pytest.mark.parametrize("stop_at", [1, 4, 17, 29])
@pytest.mark.parametrize("average", [0.0, 0.9])
def test_closed_anywhere_it_ends_with_the_same_bits(tmp_path: Path, stop_at: int, average: float) -> None:
    straight = last(train(Line(optimizer={"average": average}).training))
    first = train(Line(tmp_path, optimizer={"average": average}).training)
    for _ in range(stop_at):
        next(first)
    first.close()
    saved = Checkpoints(tmp_path).load()
    assert saved is not None
    assert saved.step == stop_at
    resumed = last(train(Line(tmp_path, optimizer={"average": average}).training))
    assert resumed.weights.keys() == straight.weights.keys()
    assert all(torch.equal(resumed.weights[n], straight.weights[n]) for n in straight.weights)
    assert resumed.record["loss"] == straight.record["loss"]


def test_the_optimizer_has_the_settings_it_was_given(tmp_path: Path) -> None:
    line = Line(optimizer={"lr": 0.02, "betas": (0.5, 0.75), "weight_decay": 0.3, "decay": "constant", "warmup": 0, "clip": 0.0}, steps=2)
    twin = nn.Linear(4, 3, bias=False)
    twin.load_state_dict(line.layer.state_dict())
    reference = torch.optim.AdamW(twin.parameters(), lr=0.02, betas=(0.5, 0.75), weight_decay=0.3)
    for step in range(2):
        x = [torch.randn(8, 4, generator=batches.generator("x", step, part)) for part in range(2)]
        loss = sum((twin(a) - a @ TARGET.T).square().mean() / 2 for a in x)
        reference.zero_grad()
        loss.backward()  # type: ignore[union-attr]
        reference.step()
    assert torch.allclose(last(train(line.training)).weights["weight"], twin.weight, atol=1e-6)


def test_rates_by_name(tmp_path: Path) -> None:
    still, moved = Line(rates={"wei": 0.0}, optimizer={"weight_decay": 0.0}), Line()
    before = still.layer.weight.detach().clone()
    assert torch.equal(last(train(still.training)).weights["weight"], before)
    assert not torch.equal(last(train(moved.training)).weights["weight"], before)


def test_clipping_acts_on_the_trained_weights() -> None:
    """The gradient that reaches the optimizer is no longer than the clip; AdamW's first steps would hide that, so it is read off."""
    seen: list[float] = []

    def louder(grads: Any) -> None:
        for g in grads:
            g.mul_(1000)

    for clip, largest in ((0.5, 0.5), (0.0, None)):
        line = Line(optimizer={"clip": clip}, steps=3)
        loud = Training(**{**vars(line.training), "reduce": louder})
        step = torch.optim.AdamW.step

        def spy(self: torch.optim.AdamW, *a: Any, step: Any = step, line: Line = line, **k: Any) -> Any:
            assert line.layer.weight.grad is not None
            seen.append(float(line.layer.weight.grad.norm()))
            return step(self, *a, **k)

        with pytest.MonkeyPatch.context() as patching:
            patching.setattr(torch.optim.AdamW, "step", spy)
            last(train(loud))
        assert len(seen) == 3
        assert all(n <= largest + 1e-4 for n in seen) if largest else all(n > 10 for n in seen)
        seen.clear()


def test_a_loss_that_is_no_number_stops_with_advice() -> None:
    line = Line()
    line.training = Training(**{**vars(line.training), "losses": lambda step: iter([line.layer.weight.sum() * math.nan])})
    with pytest.raises(ValueError, match="a lower learning rate"):
        last(train(line.training))


@pytest.mark.parametrize("decay", ["constant", "cosine", "linear"])
def test_learning_rate(decay: Any) -> None:
    o = Optimizer(lr=1.0, warmup=10, decay=decay)
    rates = [rate(o, s, 110) for s in range(110)]
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert rates[10] == 1.0
    assert rates[60] == pytest.approx({"constant": 1.0, "cosine": 0.5, "linear": 0.5}[decay])
    assert rates[-1] == pytest.approx({"constant": 1.0, "cosine": 0.0, "linear": 0.0}[decay], abs=0.011)


class Judge:
    """A watcher that finds step 20 best, and remembers when it was asked and with which weights."""

    def __init__(self, line: Line) -> None:
        self.line, self.asked = line, list[int]()
        self.weights: dict[int, Tensor] = {}

    def __call__(self, step: int, record: dict[str, Any]) -> Generator[Event, None, Reading]:
        self.asked.append(step)
        self.weights[step] = self.line.layer.weight.detach().clone()
        record["notes"] = [[step, "seen"]]
        yield Progress(what="look")
        loss = abs(step - 20) + 1.0
        return Reading(loss, loss - 0.1, loss + 0.1)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_the_best_step_is_kept(tmp_path: Path, average: float) -> None:
    line = Line(steps=35, optimizer={"average": average})
    judge = Judge(line)
    line.training = Training(**{**vars(line.training), "watch": judge})
    trained = last(train(line.training))
    assert judge.asked == [0, 10, 20, 30, 35]
    assert trained.step == 20
    assert torch.equal(trained.weights["weight"], judge.weights[20])
    assert not torch.equal(trained.weights["weight"], line.layer.weight)
    assert [row[0] for row in trained.record["held_out"]] == judge.asked
    assert trained.record["notes"] == [[s, "seen"] for s in judge.asked]


def test_the_best_step_survives_a_stop(tmp_path: Path) -> None:
    straight = Line(steps=35)
    straight.training = Training(**{**vars(straight.training), "watch": Judge(straight)})
    wanted = last(train(straight.training))
    asked: list[int] = []
    for stop_at in (4, 13, 22, 31, 100):
        line = Line(tmp_path, steps=35)
        judge = Judge(line)
        line.training = Training(**{**vars(line.training), "watch": judge})
        work = train(line.training)
        got = next((stop.value for _ in range(stop_at) if (stop := _next(work))), None)
        work.close()
        asked += judge.asked
    assert got is not None
    assert got.step == 20
    assert torch.equal(got.weights["weight"], wanted.weights["weight"])
    assert got.record["held_out"] == wanted.record["held_out"]


def _next(work: Generator[Event, None, Trained]) -> StopIteration | None:
    try:
        next(work)
    except StopIteration as stop:
        return stop
    return None


# Checkpoints.


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path)
    assert store.load() is None
    store.save(3, {"a": torch.arange(4.0)}, {"loss": [[1, 2.0]]})
    half = tmp_path / ".new-99999"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = Checkpoints(tmp_path).load()
    assert found is not None
    assert (found.step, found.record) == (3, {"loss": [[1, 2.0]]})
    store.save(3, {"a": torch.zeros(1)}, {})
    store.save(9, {"a": torch.zeros(1)}, {})
    assert [p.name for p in tmp_path.iterdir()] == ["000000002"]
