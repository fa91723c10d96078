"""The parts of training: batches, objectives, the loop, checkpoints, cache, adapters, files."""
import json
import math
from collections.abc import Generator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors import safe_open
from torch import Tensor, nn

from safelight.events import Event, Progress
from safelight.families import Family
from safelight.families.joining import join, repeats
from safelight.patches import lora as lora_patch
from safelight.recipes import denoising
from safelight.recipes import lora as lora_recipe
from safelight.train import batches, cache, held_out, lora_file, objectives, trainables
from safelight.train.captions import found_trigger, frequencies, without
from safelight.train.checkpoints import Checkpoints
from safelight.train.lessons import Lesson
from safelight.train.loop import Reading, Trained, Training, rate, train
from safelight.train.pictures import Cut, Pictures
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Blob, Patch, Row
from tests import tiny
from tests.patching import look, same


@pytest.fixture(scope="module", params=["mini", "sd1", "flow"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    return tiny.load(tiny.LAYOUTS[request.param](tmp_path_factory.mktemp("m") / "m"), device=torch.device("cpu"), dtype=torch.float32)


# Batches.


def test_an_epoch_sees_every_item_once_and_epochs_differ() -> None:
    drawn = [i for step in range(10) for i in batches.items(7, step, 4, 10)]
    epochs = [drawn[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(e) == list(range(10)) for e in epochs)
    assert epochs[0] != epochs[1]
    assert batches.items(7, 3, 4, 10) == drawn[12:16]
    assert batches.items(8, 3, 4, 10) != drawn[12:16]


def test_noise_is_a_function_of_seed_step_and_slot() -> None:
    a, b = batches.noise(0, 5, 4, (3, 8, 8)), batches.noise(0, 5, 2, (3, 8, 8))
    assert torch.equal(a[:2], b)
    assert not torch.equal(a[0], a[1])
    assert not torch.equal(batches.noise(0, 6, 2, (3, 8, 8)), b)
    assert abs(float(batches.noise(1, 1, 16, (16, 16)).std()) - 1) < 0.05


@pytest.mark.parametrize("power", [0.0, 2.0])
def test_times_are_stratified_and_have_the_density_they_should(power: float) -> None:
    every = torch.stack([batches.times(3, step, 8, power) for step in range(200)])
    parts = (every ** (1 + power) * 8 - 1e-4).long().sort(dim=1).values
    assert (parts == torch.arange(8)).float().mean() > 0.99
    for q in (0.25, 0.5, 0.75):
        assert float(every.quantile(q)) == pytest.approx(q ** (1 / (1 + power)), abs=0.02)


@pytest.mark.parametrize(("batch", "part"), [(8, 0.25), (3, 0.25), (1, 0.3), (5, 0.0)])
def test_shares_are_whole_and_right_on_average(batch: int, part: float) -> None:
    counts = [batches.share(step, batch, part) for step in range(1000)]
    assert sum(counts) == pytest.approx(1000 * batch * part, abs=1)
    assert max(counts) - min(counts) <= 1


# Objectives.


def test_min_snr_weighs_the_error_of_x0(family: Family) -> None:
    """weight * (error of the output)^2 = min(SNR, gamma) * (error of x0)^2, for a network that is off by a known amount."""
    torch.manual_seed(0)
    sigma = family.sigmas[[30, 200, 500, 800, 950]]
    shape = (5, family.channels, 4, 4)
    x0, noise, off = torch.randn(shape), torch.randn(shape), torch.randn(shape)
    s = sigma.view(-1, 1, 1, 1)
    if family.prediction == "eps":
        error, snr = s * off, sigma**-2
    elif family.prediction == "v":
        error, snr = off * s / (1 + s**2).sqrt(), sigma**-2
    else:
        error, snr = s * off, ((1 - sigma) / sigma) ** 2
    wanted = snr.clamp(max=5) * error.square().mean(dim=(1, 2, 3))
    said = family.target(x0, noise, sigma) + off
    square = (said - family.target(x0, noise, sigma)).square().mean(dim=(1, 2, 3))
    got = objectives.weight(Objective(min_snr=5.0), family.prediction, sigma) * square
    assert torch.allclose(got, wanted, rtol=1e-3)
    assert torch.equal(objectives.weight(Objective(), family.prediction, sigma), torch.ones(5))


def test_known_min_snr_figures() -> None:
    assert float(objectives.weight(Objective(min_snr=5.0), "eps", torch.tensor([1.0]))) == 1.0
    assert float(objectives.weight(Objective(min_snr=5.0), "eps", torch.tensor([0.1]))) == pytest.approx(0.05)
    assert float(objectives.weight(Objective(min_snr=5.0), "v", torch.tensor([1.0]))) == pytest.approx(0.5)
    assert float(objectives.weight(Objective(min_snr=5.0), "v", torch.tensor([0.1]))) == pytest.approx(5 / 101)


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
    with pytest.raises(ValueError, match="lower the learning rate"):
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


# Cache.


def pictures(folder: Path, n: int, side: int = 40) -> list[Row]:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(n):
        path = folder / f"{i}.png"
        Pil.fromarray(rng.integers(0, 255, (side, side + 6, 3), dtype=np.uint8)).save(path)
        rows.append(Row(Blob.of(path), path.name, side + 6, side))
    return rows


def drain(work: Generator[Event, None, Any]) -> tuple[list[Event], Any]:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return events, stop.value


def encoded(family: Family, rows: list[Row], shelf: cache.Shelf, vae: str = "vae a", **cut: Any) -> tuple[int, list[Tensor]]:
    """How many were encoded, and the latents."""
    events, keys = drain(cache.pictures(family, vae, [(row, Cut(**{"width": 32, "height": 32, **cut})) for row in rows], shelf))
    return sum(e.step == e.total for e in events) and events[-1].total, [cache.there(shelf, key)["latent"] for key in keys]


def test_latents_are_made_once_and_never_stale(family: Family, tmp_path: Path) -> None:
    rows, shelf = pictures(tmp_path, 10), cache.Shelf(tmp_path / "shelf")
    made, first = encoded(family, rows, shelf)
    assert made == 10
    assert first[0].shape == (family.channels, 32 // family.factor, 32 // family.factor)
    again, second = encoded(family, rows, shelf)
    assert not again
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    changes: list[dict[str, Any]] = [{"vae": "vae b"}, {"width": 64}, {"x": 0.2}, {"y": 0.7}, {"mirrored": True}]
    assert [encoded(family, rows, shelf, **change)[0] for change in changes] == [10] * len(changes)
    Pil.fromarray(np.zeros((40, 46, 3), np.uint8)).save(tmp_path / "0.png")
    made, third = encoded(family, [Row(Blob.of(tmp_path / "0.png"), "0.png", 46, 40), *rows[1:]], shelf)
    assert made == 1
    assert all(torch.equal(a, b) for a, b in zip(third[1:], first[1:], strict=True))
    assert not torch.equal(third[0], first[0])


def test_texts_are_what_the_encoder_says(family: Family, tmp_path: Path) -> None:
    shelf = cache.Shelf(tmp_path / "shelf")
    prompts = ["a red apple", "a girl with purple hair, " * 9, ""]
    events, found = drain(cache.texts(family, "te", prompts, shelf))
    assert len(events) == 3
    for p in prompts:
        assert torch.equal(found[p].tokens, family.encode_text([p]).tokens)
    assert not drain(cache.texts(family, "te", prompts, shelf))[0]


# Held-out loss.


def test_the_split_follows_content(tmp_path: Path) -> None:
    rows = pictures(tmp_path, 20)
    kept, held = held_out.split(rows, 0.1, 0)
    assert len(held) == 2
    assert sorted(kept + held) == list(range(20))
    shuffled = rows[::-1]
    again = held_out.split(shuffled, 0.1, 0)[1]
    assert {shuffled[i].picture for i in again} == {rows[i].picture for i in held}
    twice = [*rows, rows[held[0]]]
    assert {held[0], 20} <= set(held_out.split(twice, 0.1, 0)[1])
    assert held_out.split(rows, 0.0, 0)[1] == []
    assert held_out.split(rows[:3], 0.1, 0)[1] == []


def test_the_interval_is_that_of_the_change() -> None:
    first = torch.tensor([[1.0, 5.0, 9.0, 3.0]] * 2, dtype=torch.float64).T
    same_change = held_out.reading(first - 0.5, first)
    assert same_change.loss == pytest.approx(4.0)
    assert same_change.low == pytest.approx(same_change.high)
    change = torch.tensor([0.1, 0.9, 0.3, 0.7], dtype=torch.float64)
    now = torch.stack([first[:, 0] - change, first[:, 1] - 1], dim=1)
    first_band, second_band = held_out.bands(now, first, torch.tensor([0.5, 9.0]))
    half = 3.182 * float(change.std()) / 2
    assert first_band == pytest.approx((0.5, 4.0, 4.0 - half, 4.0 + half), rel=1e-3)
    assert second_band == pytest.approx((9.0, 3.5, 3.5, 3.5))
    both = held_out.reading(now, first)
    assert (both.loss, both.high - both.loss) == pytest.approx((3.75, half / 2), rel=1e-3)


def test_held_out_sees_all_levels_with_fixed_noise(family: Family) -> None:
    seen: list[tuple[int, Tensor, Tensor]] = []

    def errors(i: int, noise: Tensor, sigma: Tensor) -> Tensor:
        seen.append((i, noise, sigma))
        return sigma

    judge = held_out.HeldOut([(family.channels, 4, 4)] * 2 + [(family.channels, 2, 8)], family.sigmas, 5)
    assert torch.equal(judge.losses(errors), judge.losses(errors))
    assert torch.equal(seen[1][1], seen[4][1])
    assert seen[2][1].shape == (held_out.STRATA, family.channels, 2, 8)
    assert (seen[0][2].diff() > 0).all()
    assert len(seen[0][2]) == held_out.STRATA


# Adapters and files.


def test_an_adapter_starts_as_nothing_trains_in_float32_and_goes(family: Family, tmp_path: Path) -> None:
    before, plain = look(family), lora_file.probe(family, ["a red apple"])
    with trainables.adapter(family, LoraShape(rank=2), 0) as adapter:
        assert torch.equal(lora_file.probe(family, ["a red apple"]), plain)
        assert all(p.dtype == torch.float32 and p.requires_grad for p in adapter.parameters.values())
        trained = {id(p) for p in adapter.parameters.values()}
        assert all(p.requires_grad == (id(p) in trained) for net in family.trainable().values() for p in net.parameters())
        torch.manual_seed(1)
        adapter.load({n: torch.randn_like(p) * 0.1 for n, p in adapter.parameters.items()})
        changed = lora_file.probe(family, ["a red apple"])
        assert not torch.allclose(changed, plain, atol=1e-2)
        with adapter.off():
            assert torch.equal(lora_file.probe(family, ["a red apple"]), plain)
        assert all(p.requires_grad for p in adapter.parameters.values())
        assert torch.equal(lora_file.probe(family, ["a red apple"]), changed)
    assert same(look(family), before)


def test_the_same_seed_starts_the_same(family: Family) -> None:
    starts = []
    for seed in (0, 0, 1):
        torch.randn(3)
        with trainables.adapter(family, LoraShape(rank=2), seed) as adapter:
            starts.append({n: p.detach().clone() for n, p in adapter.parameters.items()})
    assert all(torch.equal(starts[0][n], starts[1][n]) for n in starts[0])
    assert any(not torch.equal(starts[0][n], starts[2][n]) for n in starts[0])


@pytest.mark.parametrize("shape", [LoraShape(rank=3, alpha=1.5), LoraShape(rank=2, targets="attention", text_encoder=False)])
@pytest.mark.parametrize("merged", [True, False])
def test_the_file_holds_what_was_trained(family: Family, tmp_path: Path, shape: LoraShape, merged: bool) -> None:
    path = tmp_path / "lora.safetensors"
    with trainables.adapter(family, shape, 0) as adapter:
        torch.manual_seed(2)
        weights = {n: torch.randn_like(p) * 0.05 for n, p in adapter.parameters.items()}
        adapter.load(weights)
        trained = lora_file.probe(family, ["a red apple", "night city"])
        layers = len(adapter.layers)
        lora_file.write(path, adapter.file(weights), {"ss_network_dim": str(shape.rank)})
    with lora_patch.lora(family, Patch("lora", Blob.of(path), options={"merged": merged})):
        found = len(lora_patch.match(family, lora_patch.read(str(path)), str(path))) if merged else layers
        proof = lora_file.compare(trained, lora_file.probe(family, ["a red apple", "night city"]), layers, found)
    assert proof.max_difference < 1e-5
    assert proof.matched == proof.total == layers
    with pytest.raises(ValueError, match="not what was trained"):
        lora_file.compare(trained, trained + 1e-3, layers, layers)
    with pytest.raises(ValueError, match="layers read back"):
        lora_file.compare(trained, trained, layers, layers - 1)


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    tensors = {f"k{i}": torch.full((3,), float(i)) for i in range(9)}
    metadata = {f"m{i}": f"值 {i}" for i in range(30)}
    for name in ("a", "b"):
        lora_file.write(tmp_path / name, dict(reversed(tensors.items())) if name == "b" else tensors, metadata)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as f:
        assert f.metadata() == metadata
        assert torch.equal(f.get_tensor("k4"), tensors["k4"])
    assert int.from_bytes((tmp_path / "a").read_bytes()[:8], "little") % 8 == 0
    assert json.loads(json.dumps(metadata)) == metadata
    assert lora_file.tensor_hash(tensors) == lora_file.tensor_hash(dict(reversed(tensors.items())))


def test_a_preset_that_fits_nothing_is_refused(family: Family) -> None:
    with pytest.raises(ValueError, match="there are no parameters"):
        last(train(Training({}, lambda step: iter(()), 1, Optimizer())))


# Captions.


@pytest.mark.parametrize(
    ("captions", "trigger"),
    [
        (["a fox, in ink style", "two owls, on a tree, in ink style"], "in ink style"),
        (["sks dog, on grass", "sks dog, in a car"], "sks dog"),
        (["一只猫，水墨风", "两只狗，水墨风"], "水墨风"),
        (["a red apple", "a green apple"], ""),
        (["a, same", "a, same"], ""),
        (["in ink style", "a fox, in ink style"], ""),
        ([], ""),
    ],
)
def test_the_trigger_is_what_captions_share(captions: list[str], trigger: str) -> None:
    assert found_trigger(captions) == trigger


@pytest.mark.parametrize(
    ("caption", "left"),
    [
        ("a fox, in ink style", "a fox"), ("in ink style, a fox", "a fox"), ("a fox in ink style on snow", "a fox on snow"),
        ("in ink style", ""), ("a fox", "a fox"), ("", ""),
    ],
)
def test_captions_without_the_trigger(caption: str, left: str) -> None:
    assert without(caption, "in ink style") == left
    assert without(caption, "") == caption


def test_frequencies_count_parts() -> None:
    assert frequencies(["a, b", "b, c", ""]) == {"a": 1, "b": 2, "c": 1}


def test_conditions_of_different_lengths_join(family: Family) -> None:
    prompts = ["a red apple", "a girl with purple hair, " * 9]
    alone = [family.encode_text([p]) for p in prompts]
    assert torch.allclose(join(alone, repeated=repeats(family)).tokens, family.encode_text(prompts).tokens, atol=1e-5)


# The LoRA recipe's loss.


def net(family: Family, adapter: trainables.Trainable, **changes: Any) -> denoising.Net:
    plan = lora_recipe.Plan(LoraShape(rank=2), Optimizer(), Batches(batch=8, drop=0.0), Objective(**changes), Watch(), 0)
    shape = (6, family.channels, 8, 8)
    latents, own = (torch.randn(shape, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    said, quiet = [f"a {i}, in ink" for i in range(6)], [f"a {i}" for i in range(6)]
    with torch.no_grad():
        texts = {c: family.encode_text([c]) for c in ("", *said, *quiet)}
    learn, before = Pictures.held(latents, said), Pictures.held(own, quiet)
    lesson = Lesson(learn, before, Pictures(), texts, "in ink", family.size)
    return denoising.Net(family, adapter, lesson, plan)


def test_pictures_without_the_trigger_are_held_to_the_model_before(family: Family) -> None:
    with trainables.adapter(family, LoraShape(rank=2), 0) as adapter:
        quiet, plain = net(family, adapter, prior=0.5), net(family, adapter, prior=0.0)
        slots = quiet.course.slots(3)
        assert [("in ink" in s.caption) for s in slots] == [True] * 4 + [False] * 4
        assert [s.pictures is quiet.lesson.own for s in slots] == [False] * 6 + [True] * 2
        before = float(next(iter(quiet.losses(3))).detach())
        alone = float(next(iter(plain.losses(3))).detach())
        assert 0 < before < alone  # the quiet half starts at no error at all
        adapter.load({n: torch.full_like(p, 0.05) for n, p in adapter.parameters.items()})
        assert float(next(iter(quiet.losses(3))).detach()) > before
        next(iter(quiet.losses(3))).backward()
        assert all(p.grad is not None for p in adapter.parameters.values())


def test_a_step_is_a_function_of_its_number(family: Family) -> None:
    with trainables.adapter(family, LoraShape(rank=2), 0) as adapter:
        losses = [float(next(iter(net(family, adapter, prior=0.25, min_snr=5.0).losses(step))).detach()) for step in (4, 5, 4)]
    assert losses[0] == losses[2] != losses[1]
