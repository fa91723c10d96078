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
from safelight.train import batches, loop, parallel
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Reading, Trained, Training, rate, train
from safelight.train.settings import Optimizer
from tests import tiny

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


# What stops it, and what does not.


def changed(line: Line, **more: Any) -> Training:
    return Training(**{**vars(line.training), **more})


def test_the_gradient_is_clipped_and_its_length_before_is_noted() -> None:
    """The length after clipping is read off in front of the optimizer; the first length is that of a gradient computed by hand."""
    line, after = Line(optimizer={"clip": 0.25}, steps=8), list[float]()

    class Reader:
        def buffers(self) -> dict[str, Tensor]:
            return {}

        def formed(self, step: int, steps: int) -> bool:
            return True

        def before_step(self, step: int, steps: int) -> None:
            assert line.layer.weight.grad is not None
            after.append(float(line.layer.weight.grad.norm()))

        def after_step(self, step: int, steps: int) -> None:
            pass

    (wanted,) = torch.autograd.grad(sum(line.losses(0), torch.zeros(())), [line.layer.weight])
    norms = [n for _, n in last(train(changed(line, evolving=Reader()))).record["norm"]]
    assert norms[0] == pytest.approx(float(wanted.norm()), rel=1e-5)
    assert min(norms) > 0.25
    assert after == pytest.approx([0.25] * 8, rel=1e-4)


@pytest.mark.parametrize("where", ["loss", "gradient", "weights"])
def test_what_is_no_number_stops_it_and_is_not_saved(tmp_path: Path, where: str) -> None:
    line = Line(tmp_path, steps=20)

    def losses(step: int) -> Iterator[Tensor]:
        for part in line.losses(step):
            if step == 7 and where == "weights":
                line.layer.weight.data[0, 0] = math.inf
                yield (line.layer.weight[1:] ** 2).sum()
            elif step == 7:
                yield part * math.nan if where == "loss" else part + (line.layer.weight.sum() * 0).abs().sqrt()
            else:
                yield part

    broken = changed(line, losses=losses, items=lambda step: [f"{step}.png", "b.png"])
    with pytest.raises(ValueError, match=r"step (7|8) \(batch: (7|8)\.png, b\.png\).*last checkpoint, of step 7,.*lower learning rate"):
        last(train(broken))
    saved = Checkpoints(tmp_path).load()
    assert saved is not None
    assert saved.step == 7
    assert all(t.isfinite().all() for t in saved.tensors.values())


def test_a_loss_that_explodes_stops_it() -> None:
    line = Line(steps=200)

    def losses(step: int) -> Iterator[Tensor]:
        yield from ((part * (1e6 if step >= 100 else 1)) for part in line.losses(step))

    with pytest.raises(ValueError, match=r"the loss explodes, from .* at step 109"):
        last(train(changed(line, losses=losses)))
    assert last(train(Line(steps=200).training)).step == 200


def test_looks_that_bring_nothing_better_end_it(tmp_path: Path) -> None:
    """Step 20 is best by the judge: three looks later it is over, also when it was stopped in between."""
    line = Line(tmp_path, steps=90)
    judge = Judge(line)
    trained = last(train(changed(line, watch=judge, patience=3)))
    assert judge.asked == [0, 10, 20, 30, 40, 50]
    assert trained.step == 20
    assert trained.record["loss"][-1][0] == 49
    again = Line(tmp_path, steps=90)
    assert torch.equal(last(train(changed(again, watch=Judge(again), patience=3))).weights["weight"], trained.weights["weight"])
    assert len(again.norms) == 0


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    work = train(Line(tmp_path).training)
    next(work)
    work.close()
    with pytest.raises(ValueError, match=r"of other settings \(lr 0\.05, now 0\.01; steps 30, now 31\)"):
        last(train(Line(tmp_path, steps=31, optimizer={"lr": 0.01}).training))
    assert last(train(Line(tmp_path).training)).step == 30


def test_a_batch_is_too_small_for_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "share", lambda: parallel.Share(0, 4))
    with pytest.raises(ValueError, match="a batch of 3 for 4 processes"):
        next(train(changed(Line(), pictures=3)))


def test_checkpoints_take_one_percent_of_the_time_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of our own: a step takes a second, a checkpoint four."""
    now, kept = [0.0], list[int]()
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])

    class Slow(Checkpoints):
        def save(self, step: int, *args: Any) -> None:
            now[0] += 4
            kept.append(step)
            super().save(step, *args)

    line = Line(steps=1000, seconds=15.0)

    def losses(step: int) -> Iterator[Tensor]:
        now[0] += 1
        yield from line.losses(step)

    last(train(changed(line, losses=losses, checkpoints=Slow(tmp_path), seconds=15.0)))
    assert kept == [15, 415, 815, 1000]


def test_track_sees_the_record_whenever_it_has_grown() -> None:
    seen: list[tuple[int, int]] = []
    line = Line(steps=20)
    last(train(changed(line, watch=Judge(line), track=lambda record: seen.append((len(record["loss"]), len(record["held_out"]))))))
    assert seen[0] == (0, 0)
    assert seen[-1] == (20, 3)
    assert len(seen) == 1 + 20 + 3


def test_activations_computed_anew_give_the_same_gradient() -> None:
    """diffusers' own switch, on for the training alone."""
    ends, calls = [], list[bool]()
    for checkpointing in (False, True):
        torch.manual_seed(0)
        net = tiny.unet(4, 8)
        o = Optimizer(lr=1e-3, checkpointing=checkpointing)

        def losses(step: int, net: Any = net) -> Iterator[Tensor]:
            calls.append(net.is_gradient_checkpointing)
            g = batches.generator("x", step)
            x = torch.randn(2, net.config.in_channels, 8, 8, generator=g)
            text = torch.randn(2, 4, net.config.cross_attention_dim, generator=g)
            yield net(x, torch.tensor([3, 500]), text).sample.square().mean()

        ends.append(last(train(Training(dict(net.named_parameters()), losses, 2, o, networks=(net,)))).weights)
        assert not net.is_gradient_checkpointing
    assert calls == [False] * 2 + [True] * 2
    assert all(torch.allclose(ends[0][n], ends[1][n], atol=1e-6) for n in ends[0])
