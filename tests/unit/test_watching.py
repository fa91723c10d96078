"""Before the first step and along the way: preflight, metrics.jsonl, TensorBoard, what goes into the record."""
import json
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from safelight.events import Answered, Note
from safelight.families import Family
from safelight.recipes import denoising
from safelight.recipes import lora as lora_recipe
from safelight.train import preflight, trainables
from safelight.train.lessons import Lesson
from safelight.train.loop import Trained
from safelight.train.pictures import Pictures
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.train.tracking import METRICS, Tracker, lines
from tests import tiny

SHAPE = LoraShape(rank=2, targets="attention", text_encoder=False)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny.load(tiny.mini(tmp_path_factory.mktemp("m") / "m"), device=torch.device("cpu"), dtype=torch.float32)


@contextmanager
def net(family: Family, work: Path, **watch: Any) -> Iterator[denoising.Net]:
    """Six pictures to learn and three held out; five steps, a look every second."""
    z = torch.randn(9, family.channels, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = Pictures.held(z, [f"a {i}" for i in range(9)])
    with torch.no_grad():
        texts = {c: family.encode_text([c]) for c in ["", *(k.captions[0] for k in pictures.kept)]}
    lesson = Lesson(pictures.some(range(6)), Pictures(), pictures.some([6, 7, 8]), texts, "", family.size)
    watched = Watch(**{"every": 2, "samples": 0, **watch})
    plan = lora_recipe.Plan(SHAPE, Optimizer(lr=1e-2, warmup=1), Batches(steps=5, batch=3), Objective(prior=0.0), watched, 0)
    work.mkdir(exist_ok=True)
    with trainables.adapter(family, SHAPE, 0) as adapter:
        yield denoising.Net(family, adapter, lesson, plan)


def last(work: Generator[Any, Any, Trained]) -> tuple[list[Any], Trained]:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return events, stop.value


def test_metrics_are_the_record_in_lines(family: Family, tmp_path: Path) -> None:
    with net(family, tmp_path / "w") as n:
        _, trained = last(denoising.learn(n, tmp_path / "w"))
    found = [json.loads(line) for line in (tmp_path / "w" / METRICS).read_text().splitlines()]
    steps = [(0, False), (0, True), (1, True), (2, False), (2, True), (3, True), (4, False), (4, True), (5, False)]
    assert [(f["step"], "loss" in f) for f in found] == steps
    assert [[f["step"], f["loss"]] for f in found if "loss" in f] == trained.record["loss"]
    bands = [[f["step"], *band] for f in found for band in f.get("bands", ())]
    assert bands == trained.record["bands"]
    assert len(bands) == 4 * 8
    for f in found:
        if "bands" in f:
            assert f["held_out"] == pytest.approx(sum(b[1] for b in f["bands"]) / 8)
            assert f["low"] <= f["held_out"] <= f["high"]


@pytest.mark.parametrize("stop_at", [3, 7])
def test_a_stopped_run_leaves_the_same_metrics_and_the_same_hard_pictures(family: Family, tmp_path: Path, stop_at: int) -> None:
    with net(family, tmp_path / "a") as n:
        straight = last(denoising.learn(n, tmp_path / "a"))[1]
    with net(family, tmp_path / "b") as n:
        work = denoising.learn(n, tmp_path / "b")
        for _ in range(stop_at):
            next(work)
        work.close()
    with open(tmp_path / "b" / METRICS, "a") as spoilt:
        spoilt.write('{"step": 4, "loss": 1.0, "lr": 0.1}\n{"ste')  # what a killed process may leave beyond its checkpoint
    with net(family, tmp_path / "b") as n:
        events, resumed = last(denoising.learn(n, tmp_path / "b"))
    assert (tmp_path / "a" / METRICS).read_bytes() == (tmp_path / "b" / METRICS).read_bytes()
    assert resumed.record["hard"] == straight.record["hard"]
    assert all(torch.equal(resumed.weights[k], w) for k, w in straight.weights.items())
    assert not any(isinstance(e, Note) for e in events)  # the preflight is for the first start
    assert resumed.record["preflight"]["step"] > 0


def test_preflight_changes_nothing_and_says_what_to_expect(family: Family, tmp_path: Path) -> None:
    with net(family, tmp_path / "w") as n:
        parameters = n.trainable.parameters
        before, state = {k: p.detach().clone() for k, p in parameters.items()}, torch.random.get_rng_state()
        flight = denoising.expected(n)
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(torch.equal(p, before[k]) and p.grad is None for k, p in parameters.items())
        assert not n.seen.any()
        assert flight.peak is None or flight.peak > 2**24
        assert flight.seconds == pytest.approx(5 * flight.step + 5 * 3 * flight.look)  # looks at 0 (twice), 2, 4 and 5, at three pictures
        assert not flight.drawn
        events, trained = last(denoising.learn(n, tmp_path / "w"))
    assert "s a step" in next(e.text for e in events if isinstance(e, Note))
    with net(family, tmp_path / "v") as n:
        watcher = denoising.Watching(n, tmp_path / "v")
        task = denoising.shared.training(n.trainable.parameters, n.losses, watcher, plan=n.plan, work=tmp_path / "v")
        bare = last(denoising.train(task))[1]
    assert bare.record["loss"] == trained.record["loss"]


def test_preflight_alone_answers_and_trains_nothing(family: Family, tmp_path: Path) -> None:
    with net(family, tmp_path / "w", preflight=True) as n, pytest.raises(Answered, match=r"s a step, .* in all, until") as ended:
        last(denoising.learn(n, tmp_path / "w"))
    told = dict(ended.value.answer.values)
    assert told["seconds"] > 5 * told["step"] > 0
    assert told["end"] == pytest.approx(time.time() + told["seconds"], abs=600)
    assert not (tmp_path / "w" / METRICS).exists()


def test_preflight_counts_what_a_look_draws(family: Family, tmp_path: Path) -> None:
    """Its answers and its decoding are run, so their memory is counted, and their seconds at every look."""
    with net(family, tmp_path / "w", samples=3) as n:
        rows, decoded, inner = list[int](), list[int](), family.decode
        family.decode = lambda z: decoded.append(len(z)) or inner(z)  # type: ignore[method-assign, func-returns-value]
        watch = family.trainable()["unet"].register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
        try:
            flight = denoising.expected(n)
        finally:
            family.decode = inner  # type: ignore[method-assign]
            watch.remove()
        assert decoded and set(decoded) == {3} and 6 in rows  # each with its opposite
        assert flight.drawn > 0
        assert flight.seconds == pytest.approx(5 * flight.step + 5 * 3 * flight.look + 4 * flight.drawn)


def test_what_a_look_draws_may_be_too_much(family: Family, tmp_path: Path) -> None:
    def full(z: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with net(family, tmp_path / "w", samples=3) as n:
        inner, family.decode = family.decode, full  # type: ignore[method-assign, assignment]
        try:
            with pytest.raises(ValueError, match="fewer samples, or 0"):
                denoising.expected(n)
        finally:
            family.decode = inner  # type: ignore[method-assign]


def test_what_cannot_fit_is_refused_with_advice(family: Family, tmp_path: Path) -> None:
    gb, refuse = 10**9, preflight._refuse
    refuse([3 * gb, 4 * gb], gb, before=gb, free=12 * gb, at_once=8)  # 3 + 7 of 12
    with pytest.raises(ValueError, match=r"takes about 10.00 GB, and 9.00 GB are free; try at_once 6, or"):
        refuse([3 * gb, 4 * gb], gb, before=gb, free=9 * gb, at_once=8)  # 3 + 5 <= 0.95 * 9
    with pytest.raises(ValueError, match=r"2.00 GB are free; try a smaller size"):
        refuse([3 * gb, 4 * gb], gb, before=gb, free=2 * gb, at_once=8)
    with pytest.raises(ValueError, match=r"more memory than there is"):
        refuse([3 * gb, preflight.ENDLESS], gb, before=gb, free=12 * gb, at_once=8)
    refuse([None], gb, before=None, free=None, at_once=8)


def test_lines_begin_where_they_are_told() -> None:
    record: dict[str, Any] = {"loss": [[0, 2.0], [1, 1.0]], "lr": [[0, 0.1], [1, 0.2]]}
    record |= {"held_out": [[0, 3.0, 2.9, 3.1]], "bands": [[0, 0.5, 3.0, 2.9, 3.1]]}
    whole = lines(record)
    assert [line["step"] for line in whole] == [0, 0, 1]
    assert whole[0] == {"step": 0, "held_out": 3.0, "low": 2.9, "high": 3.1, "bands": [[0.5, 3.0, 2.9, 3.1]]}
    assert lines(record, 1, 1) == [{"step": 1, "loss": 1.0, "lr": 0.2}]


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record: dict[str, Any] = {"loss": [[0, 2.0]], "lr": [[0, 0.1]], "held_out": []}
    Tracker(tmp_path, str(tmp_path / "board"))(record)
    record["loss"], record["lr"] = [[0, 2.0], [1, 1.0]], [[0, 0.1], [1, 0.2]]
    again = Tracker(tmp_path, str(tmp_path / "board"))
    again(record)
    again({**record, "loss": [*record["loss"], [2, 0.5]], "lr": [*record["lr"], [2, 0.3]]})
    found = EventAccumulator(str(tmp_path / "board"))
    found.Reload()
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [(0, 2.0), (1, 1.0), (2, 0.5)]


def test_tensorboard_is_asked_for_by_name(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ValueError, match=r"tensorboard is not installed"):
            Tracker(tmp_path, "board")
