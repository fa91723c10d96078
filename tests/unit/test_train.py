"""The parts of training: batches, objectives, the loop, checkpoints, cache, adapters, files."""
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors import safe_open
from torch import Tensor

from safelight.events import Event
from safelight.families import Family
from safelight.families.joining import join, repeats
from safelight.patches import lora as lora_patch
from safelight.recipes import denoising
from safelight.recipes import lora as lora_recipe
from safelight.train import batches, cache, held_out, lora_file, objectives, trainables
from safelight.train.captions import found_trigger, frequencies, without
from safelight.train.lessons import Lesson
from safelight.train.loop import Training, train
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
    every = torch.stack([objectives.times(Objective(towards_noise=power), batches.times(3, step, 8)) for step in range(200)])
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
    sigmas = torch.tensor([0.5, 9.0])
    same_change = held_out.reading(first - 0.5, first, sigmas)
    assert same_change.loss == pytest.approx(4.0)
    assert same_change.low == pytest.approx(same_change.high)
    change = torch.tensor([0.1, 0.9, 0.3, 0.7], dtype=torch.float64)
    now = torch.stack([first[:, 0] - change, first[:, 1] - 1], dim=1)
    first_band, second_band = held_out.reading(now, first, sigmas).bands
    half = 3.182 * float(change.std()) / 2
    assert first_band == pytest.approx((0.5, 4.0, 4.0 - half, 4.0 + half), rel=1e-3)
    assert second_band == pytest.approx((9.0, 3.5, 3.5, 3.5))
    both = held_out.reading(now, first, sigmas)
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
        drain(train(Training({}, lambda step: iter(()), 1, Optimizer())))


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
