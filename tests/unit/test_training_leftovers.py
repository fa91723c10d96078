"""What decides bits is in the key, what would go on silently is refused, and what is kept has the form that was asked for."""
from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from torch import nn

import safelight as sl
from safelight.cli import compat_kohya
from safelight.computing import computing
from safelight.engine import finish
from safelight.families import Family, attention, memory
from safelight.families.latents import HELD, Autoencoder
from safelight.ops import train as ops
from safelight.recipes import denoising, dreambooth, shared, textual_inversion
from safelight.recipes.lora import Plan
from safelight.recipes.lora import train_lora as recipe
from safelight.recipes.teaching import Plan as Teaching
from safelight.reporting.story import Story
from safelight.reporting.training import training
from safelight.scoring import clip
from safelight.store import Store, using
from safelight.train import cache, held_out, trainables
from safelight.train.checkpoints import Checkpoints
from safelight.train.loop import Reading, Training, train
from safelight.train.methods import Subject, Token
from safelight.train.pictures import Cut
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.train.trainables.methods import adalora, lora_drop
from safelight.values import Blob, Caption, Dataset, Model, Row
from tests import tiny
from tests import towers as small

LOAD: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for make in (tiny.sd1, tiny.sd3):
        make(folder / make.__name__)
    return folder


@pytest.fixture(scope="module")
def sd1(models: Path) -> Family:
    return tiny.load(models / "sd1", **LOAD)


def row(path: Path, side: int, seed: int, *captions: str) -> Row:
    Pil.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)).save(path)
    return Row(Blob.of(path), path.name, side, side, tuple(Caption("file", c) for c in captions))


# Keys.


def test_latents_from_tiles_are_others_and_the_best_there_are_are_taken(
    sd1: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    r, shelf = row(tmp_path / "a.png", 160, 0, "x"), cache.Shelf(tmp_path / "shelf")
    wanted = [(r, Cut(160, 160)), (r, Cut(160, 160)), (r, Cut(32, 32))]
    pixel = HELD * 8 * 4  # bytes of the widest layer, as the autoencoder counts
    with monkeypatch.context() as short:
        short.setattr(memory, "free", lambda _: 140 * 140 * pixel)
        tiled, again, tiny_ = finish(cache.pictures(sd1, "v", wanted, shelf))
        assert sd1.tile == 0 and tiled == again, "the small one, which came last, fits"
    assert finish(cache.pictures(sd1, "v", wanted, shelf)) == [tiled, again, tiny_], "a run goes on with what it began with"
    other = cache.Shelf(tmp_path / "other")
    whole = finish(cache.pictures(sd1, "v", wanted, other))
    assert whole[0] != tiled and whole[2] == tiny_
    apart = cache.there(other, whole[0])["latent"] - cache.there(shelf, tiled)["latent"]
    assert apart.abs().max() > 1e-4, "other bits under another key"
    shelf.put(whole[0], cache.there(other, whole[0]))
    assert finish(cache.pictures(sd1, "v", wanted, shelf))[0] == whole[0]


def test_what_decides_bits_is_in_the_keys(sd1: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r, model = row(tmp_path / "a.png", 32, 0, "x"), Model("sd", "", "f")

    def keys() -> tuple[str, str, str]:
        shelf = cache.Shelf(tmp_path / "shelf")
        texts = finish(cache.texts(sd1, "t", ["x"], shelf))
        own = finish(denoising.own_pictures(sd1, model, ["x"], 16, shelf))
        return finish(cache.pictures(sd1, "v", [(r, Cut(32, 32))], shelf))[0], texts.keyed["x"], own.kept[0].keys[0]

    first, threads = keys(), torch.get_num_threads()
    assert keys() == first
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    assert not set(keys()) & set(first)
    monkeypatch.undo()
    monkeypatch.setattr(attention, "wanted", lambda device, dtype: True)
    monkeypatch.setattr(attention, "fast", lambda device, dtype: torch.no_grad())
    assert not set(keys()) & set(first)
    with computing(compile="inductor"):
        assert keys() == first, "a compiler attends in its own way"


# Resuming.


def test_the_precision_is_part_of_a_runs_folder(models: Path, tmp_path: Path) -> None:
    model, data = tiny.model(models / "sd1"), Dataset((row(tmp_path / "a.png", 32, 0, "x"),))
    with using(Store(tmp_path / "store")):
        plain = ops._place("train_lora", model, data, "plan")[0]
        with computing(dtype="bfloat16"):
            assert ops._place("train_lora", model, data, "plan")[0] != plain
        assert ops._place("train_lora", model, data, "plan")[0] == plain


def test_a_run_does_not_go_on_in_another_precision(models: Path, tmp_path: Path) -> None:
    """Not even where nobody named one: the same folder on a machine that would choose another."""
    rows = tuple(row(tmp_path / f"{i}.png", 32, i, f"a {i}") for i in range(3))
    plan = Plan(LoraShape(rank=2, targets="attention", text_encoder=False), Optimizer(), Batches(steps=3, batch=2), Objective(prior=0.0),
                Watch(held_out=0.0, samples=0), 0)

    def run(dtype: str) -> Iterator[Any]:
        with using(Store(tmp_path / "store")), computing(dtype=dtype):
            yield from recipe(tiny.model(models / "sd1"), Dataset(rows), plan, tmp_path / "run", "{}")

    (tmp_path / "run").mkdir()
    work = run("float32")
    while Checkpoints(tmp_path / "run" / "checkpoints").load() is None:
        if getattr(next(work), "what", "") == "train":
            work.close()  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"of other settings \(dtype 'torch.float32', now 'torch.bfloat16'\)"):
        finish(run("bfloat16"))  # type: ignore[arg-type]


# What is kept.


class Falling:
    """What evolves until a step."""

    def __init__(self, until: int) -> None:
        self.until = until

    def formed(self, step: int, steps: int) -> bool:
        return step >= self.until

    def buffers(self) -> dict[str, torch.Tensor]:
        return {}

    def before_step(self, step: int, steps: int) -> None:
        pass

    after_step = before_step


@pytest.mark.parametrize(("until", "patience", "kept", "end"), [(0, 0, 2, 8), (5, 0, 7, 8), (5, 2, 7, 8), (0, 2, 2, 4)])
def test_only_weights_in_their_form_are_kept(until: int, patience: int, kept: int, end: int) -> None:
    readings = {0: 5.0, 1: 4.0, 2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 3.0, 7: 2.5, 8: 2.6}
    p = nn.Parameter(torch.ones(2))

    def watch(step: int, record: dict[str, Any]) -> Generator[Any, None, Reading]:
        yield from ()
        return Reading(readings[step], 0.0, 9.0)

    o, falling = Optimizer(warmup=0), Falling(until)
    trained = finish(train(Training(
        {"p": p}, lambda step: [p.square().sum()], 8, o, watch=watch, every=1, evolving=falling, patience=patience)))
    assert (trained.step, trained.record["held_out"][-1][0]) == (kept, end)


@pytest.mark.parametrize(("method", "before", "after"), [("adalora", 6, 7), ("lora-drop", 1, 2)])
def test_methods_say_when_they_have_their_form(sd1: Family, method: str, before: int, after: int) -> None:
    with trainables.adapter(sd1, LoraShape(rank=2, method=method, targets="attention", text_encoder=False), 0) as adapter:
        assert isinstance(adapter, adalora.Allocating | lora_drop.Dropping)
        assert (adapter.formed(before, 10), adapter.formed(after, 10)) == (False, True)
        for step in range(after):
            for q in (q for q in adapter.parameters.values() if q.requires_grad):
                q.grad = torch.randn_like(q)
                q.data += 0.01 * torch.randn_like(q)
            adapter.before_step(step, 10)
            adapter.after_step(step, 10)
        if isinstance(adapter, adalora.Allocating):
            file = adapter.file({k: q.detach() for k, q in adapter.parameters.items()})
            ranks = sum(len(t) for name, t in file.items() if name.endswith("lora_down.weight"))
            assert int(adapter.mask.sum()) == adapter.target
            assert ranks <= adapter.target + len(adapter.layers), "a layer that has none keeps one of zeros"
        else:
            assert not adapter.book["open"]


# Captions, copies, sizes.


def test_a_new_name_does_not_hide_what_a_mirror_would_make_wrong(tmp_path: Path) -> None:
    flips = Batches(flip=True)
    rows = [row(tmp_path / f"{i}.png", 32, i, *said) for i, said in enumerate([("a sign that says no",), ("a cat",), ()])]
    for word in ("<new>", "sks"):
        named = [shared.called(r, word, Caption("token", word)) for r in rows]
        assert [r.caption for r in named] == [word] * 3
        cuts = [shared.cut_of(r, [word], flips, side=32, factor=4) for r in named]
        assert [len(some) for some in cuts] == [1, 2, 2]
    labelled = replace(rows[1], captions=(Caption("folder", "left"), *rows[1].captions))
    assert len(shared.cut_of(labelled, ["a cat"], flips, side=32, factor=4)) == 2, "a folder's name tells nothing of the picture"


@pytest.mark.parametrize(("text", "there"), [("a sks cat", True), ("photo of sks, on white", True), ("a task", False), ("一个sks人", True)])
def test_a_word_stands_by_itself(text: str, there: bool) -> None:
    assert shared.has("sks", text) is there


def test_several_captions_teach_nothing_without_the_word(sd1: Family, models: Path, tmp_path: Path) -> None:
    rows = [row(tmp_path / "0.png", 32, 0, "a cat", "a sks cat", "a sks cat, on white"), row(tmp_path / "1.png", 32, 1, "a dog", "red")]
    plan = Teaching(Subject(instance="a sks cat", class_name="a cat"), Optimizer(), Batches(several=True, steps=2, batch=2),
                    Objective(prior=0.0, trigger="sks"), Watch(held_out=0.0), 0)
    model = tiny.model(models / "sd1")
    with using(Store(tmp_path / "store")):
        called = Dataset(tuple(shared.called(r, "sks", Caption("dreambooth", "a sks cat")) for r in rows))
        taught = finish(dreambooth.prepare("op", sd1, model, called, plan, subject=plan.shape))
        assert [k.captions for k in taught.learn.kept] == [("a sks cat, on white", "a sks cat"), ("a sks cat",)]
        spoken = finish(textual_inversion.prepare("op", sd1, model, Dataset(tuple(rows)), replace(plan, shape=Token(token="sks"))))
        assert spoken.learn.kept[0].captions == ("a sks cat, on white", "a sks cat")
        assert len(spoken.learn.kept[1].captions) == len(textual_inversion.PHRASES)


@pytest.mark.parametrize("wrong", [{"rank": 4}, {"alpha": 2.0}, {"method": "loha"}, {"targets": "attention"}])
def test_the_whole_model_has_no_lora_to_shape(wrong: Any) -> None:
    with pytest.raises(ValueError, match=f"whole trains the denoiser itself, and {next(iter(wrong))}"):
        Subject(whole=True, **wrong)
    Subject(whole=True, text_encoder=False)


def test_copies_alone_cannot_be_held_out_and_learned(models: Path, sd1: Family, tmp_path: Path) -> None:
    rows = [row(tmp_path / f"{i}.png", 32, i // 2, "x") for i in range(4)]
    with pytest.raises(ValueError, match=r"the 4 pictures are copies of 2.*expected held_out 0, or other"):
        held_out.split(rows, 0.75, 0)
    same = [replace(rows[0], name=str(i)) for i in range(4)]
    plan = Plan(LoraShape(), Optimizer(), Batches(), Objective(), Watch(), 0)
    with using(Store(tmp_path / "store")) as _, pytest.raises(ValueError, match=r"the 4 pictures are copies of 1,"):
        finish(denoising.prepare("op", sd1, tiny.model(models / "sd1"), Dataset(tuple(same)), plan))
    assert not list((tmp_path / "store").rglob("*.safetensors")), "before anything is encoded"
    assert held_out.split(same, 0.0, 0) == ([0, 1, 2, 3], [])


@pytest.mark.parametrize(("layout", "size", "fits"), [("sd3", 36, False), ("sd3", 40, True), ("sd1", 36, True), ("sd1", 34, False)])
def test_sides_are_whole_patches(models: Path, tmp_path: Path, layout: str, size: int, fits: bool) -> None:
    family = tiny.load(models / layout, **LOAD)
    data = Dataset((row(tmp_path / "a.png", 64, 0, "x"),))
    if fits:
        assert finish(shared.check("op", family, data, size)) == size
        return
    with pytest.raises(ValueError, match=f"op: size {size}; expected a multiple of {8 if layout == 'sd3' else 4}"):
        finish(shared.check("op", family, data, size))


# kohya's Prodigy.


def settings(*args: str, kind: str = "Prodigy") -> tuple[dict[str, Any], list[str], list[str]]:
    given = {**compat_kohya.DEFAULTS, "optimizer_type": kind, "optimizer_args": list(args), "learning_rate": 1.0, "unet_lr": 1.0,
             "text_encoder_lr": 1.0}
    job = compat_kohya.job(given, 10, {})
    return job.knobs, job.problems, job.notes


def test_prodigys_arguments_are_taken_as_far_as_ours_has_them() -> None:
    same = ("decouple=True", "use_bias_correction=True", "safeguard_warmup=True")
    knobs, problems, notes = settings("d_coef=0.5", "weight_decay=0.1", *same)
    assert (knobs["d_coef"], knobs["weight_decay"], knobs["kind"], problems) == (0.5, 0.1, "prodigy", [])
    assert not [n for n in notes if "Prodigy" in n]
    assert [n for n in settings("d_coef=2")[2] if "Prodigy" in n] == [
        "Prodigy: use_bias_correction is True here", "Prodigy: safeguard_warmup is True here"]
    assert "use_bias_correction=False: expected" in settings("use_bias_correction=False")[1][0]
    assert "d0=1e-05: expected" in settings("d0=1e-05")[1][0]
    assert "d_coef=2: expected weight_decay, betas" in settings("d_coef=2", kind="AdamW")[1][0]
    with pytest.raises(ValueError, match="d_coef 2 is for prodigy"):
        Optimizer(d_coef=2.0)


# The report.


def test_doubtful_captions_are_in_the_report(tmp_path: Path) -> None:
    data = Dataset((row(tmp_path / "odd.png", 32, 0, "a cat"),))
    record = {"loss": [[0, 1.0], [1, 0.5]], "doubtful": [[9, "odd.png", "a <dog>", 8.25], [9, "fine.png", "a cat", 1.5]]}
    said = training(Story("x", data=data, record=record))
    assert "Captions that do not fit" in said and "8.2 deviations" in said and "a &lt;dog&gt;" in said and said.count("<img") == 1
    assert "fine.png" not in said
    assert "Captions that do not fit" not in training(Story("x", data=data, record={"loss": [[0, 1.0], [1, 0.5]]}))


# The CLIP that judges.


def test_drift_and_diversity_are_measured_in_the_clip_that_is_given(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(2):
        small.write(tmp_path / str(i), seed=i)
    monkeypatch.setattr(clip, "embedded", lambda: tmp_path / "0" / "clip")
    model, rows = tiny.model(models / "sd1"), [row(tmp_path / "a.png", 32, 0, "a sks cat")]
    weak = sl.Patch("lora", Blob("", ""), strength=0.0)
    monkeypatch.setattr(dreambooth, "_drawn", lambda who, prompts: drawn(len(prompts), len(who.patches)))
    subject = Subject(judged=3)

    def numbers(judge: str) -> dict[str, float]:
        found: dict[str, float] = finish(dreambooth.measured(model, weak, rows, replace(subject, judge=judge)))[0]
        return found

    usual = numbers("")
    assert numbers(str(tmp_path / "0" / "clip")) == usual
    assert numbers(str(tmp_path / "1" / "clip")) != usual
    given = {"subject": replace(subject, judge=str(tmp_path / "1" / "clip"))}
    before = ops._judge(given)
    assert before and not ops._judge({"subject": subject})
    small.write(tmp_path / "1", seed=7)
    assert ops._judge(given) != before, "the key is by content"


def drawn(n: int, patched: int) -> Generator[Any, Any, sl.Image]:
    yield from ()
    return sl.Image(np.random.default_rng(patched).random((n, 32, 32, 3), dtype=np.float32), tuple({"prompt": "x"} for _ in range(n)))


def test_a_folder_that_is_no_clip_is_refused_before_the_training(models: Path, tmp_path: Path) -> None:
    plan = Teaching(Subject(judge=str(models / "sd1" / "text_encoder")), Optimizer(), Batches(), Objective(), Watch(), 0)
    with pytest.raises(ValueError, match="a network of the type 'clip_text_model'; expected 'clip'"):
        next(dreambooth.train_dreambooth(Model("sd", "nowhere", ""), Dataset(()), plan, tmp_path, "{}"))


def test_an_autoencoder_says_how_it_worked(sd1: Any) -> None:
    images: Autoencoder = sd1.images
    images.encode(torch.rand(1, 160, 160, 3), free=0)
    assert sd1.tile == 128
    images.decode(torch.rand(1, 4, 8, 8))
    assert sd1.tile == 0
