"""What is shown at a step, and how: order, cuts, captions, noise; what the shelf keeps; what the loss counts."""
import math
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil
from safetensors.torch import load_file, save_file
from torch import Tensor

from safelight.data.folder import read_folder
from safelight.engine import finish
from safelight.families import Family
from safelight.families.sources import open_source
from safelight.pictures import read, square
from safelight.recipes import denoising, shared
from safelight.recipes import lora as lora_recipe
from safelight.store import Store, using
from safelight.train import batches, cache, held_out, objectives, trainables
from safelight.train.batches import Order
from safelight.train.captions import captioned, varied
from safelight.train.lessons import Lesson
from safelight.train.pictures import Ahead, Cut, Kept, Pictures
from safelight.train.settings import Batches, LoraShape, Objective, Optimizer, Watch
from safelight.values import Blob, Caption, Dataset, Model, Row
from tests import tiny

LOAD: dict[str, Any] = {"device": torch.device("cpu"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module", params=["mini", "sdxl", "flow"])
def family(request: pytest.FixtureRequest, folder: Path) -> Family:
    return tiny.load(tiny.LAYOUTS[request.param](folder / request.param), **LOAD)


@pytest.fixture(scope="module")
def flow(folder: Path) -> Family:
    return tiny.load(tiny.flow(folder / "flow alone"), **LOAD)


@pytest.fixture(scope="module")
def sd1(folder: Path) -> Family:
    return tiny.load(tiny.sd1(folder / "sd1"), **LOAD)


def pixels(width: int, height: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def row(path: Path, array: np.ndarray[Any, Any], *captions: str, **info: Any) -> Row:
    Pil.fromarray(array).save(path)
    return Row(Blob.of(path), path.name, array.shape[1], array.shape[0], tuple(Caption("file", c) for c in captions), "", info)


# Order.


def test_a_batch_is_of_one_group_and_all_are_shown_as_often_as_they_count() -> None:
    groups = ((0, 1, 2, 2, 2, 3, 4), (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), (16,))
    order = Order(groups, 4, 3)
    batches_ = [order(step) for step in range(600)]
    assert all(any(set(b) <= set(g) for g in groups) for b in batches_)
    for upto in (5, 50, 600):
        shown = Counter(i for b in batches_[:upto] for i in b)
        for g in groups:
            counts = Counter(g)
            assert max(shown[i] / counts[i] for i in counts) - min(shown[i] / counts[i] for i in counts) <= 1
            assert abs(sum(shown[i] for i in counts) - upto * 4 * len(g) / 19) <= 12
    assert [order(step) for step in (7, 599, 7)] == [batches_[7], batches_[599], batches_[7]]
    assert [Order(groups, 4, 4)(s) for s in range(20)] != batches_[:20]


def test_one_group_goes_on_as_shuffled_epochs() -> None:
    assert [i for s in range(5) for i in Order((tuple(range(10)),), 4, 7)(s)] == [i for s in range(5) for i in batches.items(7, s, 4, 10)]
    with pytest.raises(ValueError, match="nothing to draw from"):
        Order((), 4, 0)(0)


# Cuts.


@pytest.mark.parametrize(("width", "height", "side"), [(90, 61, 32), (61, 90, 32), (64, 64, 64), (20, 31, 32)])
def test_the_middle_square_is_what_it_was(width: int, height: int, side: int) -> None:
    picture = pixels(width, height)
    assert np.array_equal(Cut(side, side).of(picture), square(picture, side))
    assert np.array_equal(Cut(side, side, mirrored=True).of(picture), square(picture, side)[:, ::-1])


def test_windows_and_what_is_told_of_them() -> None:
    """100 x 60 to 48 x 48: a window of 60 x 60, anywhere along 40 pixels; told in pixels of the resized picture (80 x 48)."""
    picture = pixels(100, 60)
    left, right = Cut(48, 48, x=0.0), Cut(48, 48, x=0.999)
    assert (left.window(100, 60), right.window(100, 60)) == ((0, 0, 60, 60), (39, 0, 60, 60))
    assert not np.array_equal(left.of(picture), right.of(picture))
    assert Cut(48, 48, x=0.75).told(100, 60).tolist() == [60, 100, 0, 24, 48, 48]
    assert Cut(48, 48, x=0.75, mirrored=True).told(100, 60).tolist() == [60, 100, 0, 8, 48, 48]
    assert Cut(80, 48).told(100, 60).tolist() == [60, 100, 0, 0, 48, 80]


def test_buckets_crops_and_mirrors_by_the_settings(tmp_path: Path) -> None:
    wide = row(tmp_path / "a.png", pixels(96, 48), "a fox")
    assert shared.cut_of(wide, ["a fox"], Batches(), side=64, factor=8) == [Cut(64, 64)]
    assert [(c.width, c.height) for c in shared.cut_of(wide, ["a fox"], Batches(buckets=True), side=64, factor=8)] == [(80, 48)]
    crops = shared.cut_of(wide, ["a fox"], Batches(crops=3, flip=True), side=64, factor=8)
    assert [c.mirrored for c in crops] == [False] * 3 + [True] * 3
    assert len({c.x for c in crops}) == 3
    assert crops == shared.cut_of(replace(wide, name="b"), ["a fox"], Batches(crops=3, flip=True), side=64, factor=8)
    for said in ("a fox on the left", "a sign that reads STOP"):
        assert not any(c.mirrored for c in shared.cut_of(wide, ["a fox", said], Batches(flip=True), side=64, factor=8))


# The shelf.


def test_the_cache_is_never_stale_and_is_shared_by_content(sd1: Family, folder: Path, tmp_path: Path) -> None:
    shelf = cache.Shelf(tmp_path / "shelf")
    vae = open_source(folder / "sd1").fingerprint("vae")
    first, cut = row(tmp_path / "a.png", pixels(50, 40)), Cut(32, 32)

    def made(r: Row, c: Cut = cut, eye: str = vae, masked: bool = False) -> bool:
        work = cache.pictures(sd1, eye, [(r, c)], shelf, masked=masked)
        return sum(1 for _ in work) > 0

    assert made(first)
    assert not made(first)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert not made(Row(Blob.of(tmp_path / "elsewhere" / "b.png"), "b.png", 50, 40))
    one = pixels(50, 40)
    one[3, 3, 0] ^= 1
    assert made(row(tmp_path / "pixel.png", one))
    exif = Pil.Exif()
    exif[0x0112] = 3  # upside down
    Pil.fromarray(pixels(50, 40)).save(tmp_path / "exif.png", exif=exif)
    assert made(Row(Blob.of(tmp_path / "exif.png"), "exif.png", 50, 40))
    assert [made(first, c) for c in (Cut(32, 40), Cut(32, 32, x=0.1), Cut(32, 32, mirrored=True))] == [True] * 3
    copy = tiny.sd1(tmp_path / "copy")
    file = next((copy / "vae").glob("*.safetensors"))
    weights = load_file(file)
    assert open_source(copy).fingerprint("vae") == vae
    next(iter(weights.values())).view(-1)[0] += 1e-3
    save_file(weights, file)
    changed = open_source(copy).fingerprint("vae")
    assert changed != vae
    assert made(first, eye=changed)
    Pil.fromarray(pixels(50, 40)[..., 0]).save(tmp_path / "mask.png")
    told = replace(first, info={"mask": vars(Blob.of(tmp_path / "mask.png"))})
    assert [made(first, masked=True), made(told, masked=True), made(told, masked=True)] == [True, True, False]
    Pil.fromarray(255 - pixels(50, 40)[..., 0]).save(tmp_path / "mask.png")
    other = replace(first, info={"mask": vars(Blob.of(tmp_path / "mask.png"))})
    assert made(other, masked=True)
    keys = {Dataset((r,)).key for r in (first, told, other, replace(first, info={"repeats": 3}), replace(first, info={"repeats": 1}))}
    assert len(keys) == 4


def test_captions_are_kept_by_text_and_encoder(sd1: Family, tmp_path: Path) -> None:
    shelf = cache.Shelf(tmp_path)

    def made(text: str, ear: str) -> int:
        return sum(1 for _ in cache.texts(sd1, ear, [text], shelf))

    assert [made("a fox", "e"), made("a fox", "e"), made("a fox ", "e"), made("a fox", "f")] == [1, 0, 1, 1]


def test_masks_come_from_a_file_or_from_transparency(sd1: Family, tmp_path: Path) -> None:
    shelf, array = cache.Shelf(tmp_path / "s"), pixels(64, 32)
    mask = np.zeros((32, 64), np.uint8)
    mask[:, 32:] = 255
    Pil.fromarray(mask).save(tmp_path / "m.png")
    told = row(tmp_path / "a.png", array, mask=vars(Blob.of(tmp_path / "m.png")))
    clear = row(tmp_path / "b.png", np.dstack([array, mask]))
    for r in (told, clear):
        [key] = finish(cache.pictures(sd1, "v", [(r, Cut(64, 32))], shelf, masked=True))
        found = cache.there(shelf, key)["mask"]
        assert found.shape == (1, 8, 16)
        assert torch.equal(found, torch.cat([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)], dim=2))
    Pil.fromarray(mask[:, :40]).save(tmp_path / "m.png")
    told = replace(told, info={"mask": vars(Blob.of(tmp_path / "m.png"))})
    with pytest.raises(ValueError, match=r"the mask of a.png is 40 x 32, the picture 64 x 32"):
        finish(cache.pictures(sd1, "v", [(told, Cut(64, 32))], shelf, masked=True))


def test_a_table_may_name_masks(tmp_path: Path) -> None:
    row(tmp_path / "a.png", pixels(64, 32))
    row(tmp_path / "m.png", pixels(64, 32, 1))
    (tmp_path / "metadata.csv").write_text("file_name,text,mask\na.png,a fox,m.png\n")
    [found] = finish(read_folder(tmp_path / "metadata.csv")).kept
    assert found.info["mask"]["sha256"] == Blob.of(tmp_path / "m.png").sha256
    (tmp_path / "metadata.csv").write_text("file_name,text,mask\na.png,a fox,nowhere.png\n")
    lost = finish(read_folder(tmp_path / "metadata.csv"))
    assert "mask" not in lost.kept[0].info
    assert "nowhere.png" in lost.info["problems"][0]


def test_pictures_are_read_ahead_by_a_thread() -> None:
    begun = {n: threading.Event() for n in range(9)}

    def make(step: int) -> int:
        begun[step].set()
        if step == 5:
            raise ValueError("a broken file")
        return step * step

    ahead = Ahead(make)
    assert ahead(1) == 1
    assert begun[2].wait(5)
    assert begun[3].wait(5)
    assert not begun[4].is_set()
    assert [ahead(2), ahead(7), ahead(3)] == [4, 49, 9]
    with pytest.raises(ValueError, match="a broken file"):
        ahead(5)


def test_nothing_stays_in_memory(sd1: Family, tmp_path: Path) -> None:
    """Pictures and texts hold keys; what was read is let go."""
    shelf = cache.Shelf(tmp_path / "s")
    rows = [row(tmp_path / f"{i}.png", pixels(32, 32, i)) for i in range(3)]
    keys = finish(cache.pictures(sd1, "v", [(r, Cut(32, 32)) for r in rows], shelf))
    kept = Pictures(shelf, [Kept(r.name, ("x",), (key,), (8, 8)) for r, key in zip(rows, keys, strict=True)])
    assert kept.read(1)["latent"].data_ptr() != kept.read(1)["latent"].data_ptr()
    shelf._path(keys[2]).unlink()
    with pytest.raises(RuntimeError, match=r"2.png vanished"):
        kept.read(2)


def test_a_latent_does_not_depend_on_what_was_encoded_with_it(sd1: Family, tmp_path: Path) -> None:
    """Encoders round otherwise in a batch; a run that was stopped while it encoded goes on with fewer, and must end with the same."""
    rows = [row(tmp_path / f"{i}.png", pixels(64, 64, i)) for i in range(5)]
    wanted, whole, parts = [(r, Cut(64, 64)) for r in rows], cache.Shelf(tmp_path / "a"), cache.Shelf(tmp_path / "b")
    keys = finish(cache.pictures(sd1, "v", wanted, whole))
    finish(cache.pictures(sd1, "v", wanted[4:], parts))
    assert finish(cache.pictures(sd1, "v", wanted, parts)) == keys
    assert all(torch.equal(whole.get(k)["latent"], parts.get(k)["latent"]) for k in keys)  # type: ignore[index]


def test_a_picture_drawn_is_known_by_those_drawn_with_it(sd1: Family, folder: Path, tmp_path: Path) -> None:
    shelf, model = cache.Shelf(tmp_path / "s"), Model("sd", str(folder / "sd1"), "")

    def keys(captions: list[str]) -> list[str]:
        return [kept.keys[0] for kept in finish(denoising.own_pictures(sd1, model, captions, 16, shelf)).kept]

    first = keys(["a"] * 9)
    shelf._path(first[3]).unlink()
    assert keys(["a"] * 9) == first and shelf.has(first[3])
    other = keys(["a"] * 8 + ["b"])
    assert other[:8] == first[:8] and other[8] != first[8]
    assert not set(keys(["b"] + ["a"] * 7)) & set(first)


# Captions.


def test_captions_vary_but_for_what_must_stay() -> None:
    caption = "a fox, red, snow, night, in ink"
    made = [varied(caption, "in ink", batches.generator("t", n), keep=1, shuffle=True, drop=0.5) for n in range(400)]
    parts = [m.split(", ") for m in made]
    assert all(p[0] == "a fox" and "in ink" in p and len(set(p)) == len(p) for p in parts)
    assert {i for p in parts for i, w in enumerate(p) if w == "in ink"} == {1, 2, 3, 4}
    assert sum("red" in p for p in parts) / 400 == pytest.approx(0.5, abs=0.08)
    assert varied(caption, "", batches.generator("t", 0), keep=1, shuffle=False, drop=0.0) == caption
    assert varied(caption, "", batches.generator("t", 3), keep=9, shuffle=True, drop=1.0) == caption


def test_a_picture_may_have_several_captions() -> None:
    r = Row(Blob("", "a"), "a", 1, 1, (Caption("folder", "fox"), Caption("file", "a fox"), Caption("tagger", "fox, snow")))
    assert captioned(r, "t", several=True) == ("fox, snow", "a fox")
    assert captioned(r, "t") == ("fox, snow",)
    assert captioned(replace(r, captions=r.captions[:1]), "t", several=True) == ("fox",)
    assert captioned(replace(r, captions=()), "t", several=True) == ("t",)


# Objectives, against their closed forms.


@pytest.mark.parametrize("prediction", ["eps", "v", "flow"])
@pytest.mark.parametrize(("weigh", "wanted"), [
    ("min_snr", lambda snr: snr.clamp(max=5)), ("soft_min_snr", lambda snr: 5 * snr / (5 + snr)), ("snr", lambda snr: snr),
    ("debiased", lambda snr: snr**0.5),
])
def test_weights_are_those_of_x0(prediction: str, weigh: Any, wanted: Any) -> None:
    sigma = torch.tensor([0.05, 0.3, 0.7, 0.95], dtype=torch.float64)
    snr = ((1 - sigma) / sigma) ** 2 if prediction == "flow" else sigma**-2
    x0_error = {"eps": sigma, "v": sigma / (1 + sigma**2).sqrt(), "flow": sigma}[prediction]
    got = objectives.weight(Objective(weigh=weigh, min_snr=5.0), prediction, sigma)
    assert torch.allclose(got, wanted(snr) * x0_error**2)
    if (prediction, weigh) == ("eps", "snr"):
        assert torch.allclose(got, torch.ones(4, dtype=torch.float64))  # DDPM's simple loss


def test_times_have_the_densities_of_the_paper() -> None:
    u = (torch.arange(4000) + 0.5) / 4000
    normal = torch.logit(objectives.times(Objective(times="logit_normal", mean=0.5, spread=1.5), u).double())
    assert float(normal.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(normal.std()) == pytest.approx(1.5, abs=0.02)
    t = objectives.times(Objective(times="mode", spread=1.29), u).double()
    back = 1 - u.double() - 1.29 * (torch.cos(math.pi / 2 * u.double()) ** 2 - 1 + u.double())
    assert torch.allclose(t, back.clamp(0, 1), atol=1e-6)
    assert float(objectives.times(Objective(shift=3.0), torch.tensor([0.5]))[0]) == pytest.approx(0.75)
    part = objectives.times(Objective(lowest=0.2, highest=0.4), u)
    assert (float(part.min()), float(part.max())) == pytest.approx((0.2, 0.4), abs=1e-3)
    assert torch.equal(objectives.times(Objective(), u), u)


def test_distances() -> None:
    error, t, sigma = torch.tensor([-3.0, 1e-3]).view(2, 1, 1, 1), torch.tensor([0.5, 0.5]), torch.tensor([1.0, 1.0])

    def by(**changes: Any) -> list[float]:
        return objectives.distance(Objective(**changes), error, t, sigma).flatten().tolist()

    assert by() == pytest.approx([9, 1e-6])
    assert by(loss="l1") == pytest.approx([3, 1e-3])
    c = {"constant": 0.01, "time": 0.1, "snr": 0.99 / 4 + 0.01}
    for falls, value in c.items():
        got = by(loss="huber", huber=0.01, huber_falls=falls)
        assert got[0] == pytest.approx(2 * value * (math.sqrt(9 + value**2) - value), rel=1e-5)
        assert got[1] == pytest.approx(1e-6, rel=0.05)


def test_what_lies_outside_a_mask_counts_less() -> None:
    off = torch.ones(2, 3, 4, 4)
    off[:, :, :2] = 5
    mask = torch.zeros(2, 1, 4, 4)
    mask[0, :, :2] = 1
    mask[1, :, 2:] = 1
    assert objectives.mean(Objective(unmasked=0.0), off, mask).tolist() == [5, 1]
    assert objectives.mean(Objective(unmasked=0.5), off, mask).tolist() == pytest.approx([(5 + 0.5) / 1.5, (1 + 2.5) / 1.5])
    assert objectives.mean(Objective(unmasked=1.0), off, mask).tolist() == objectives.mean(Objective(), off, None).tolist() == [3, 3]


def test_noise_has_the_spectrum_that_was_asked_for() -> None:
    plain = batches.noise(1, 2, [3, 1], (2, 32, 32))
    assert torch.equal(plain[1], batches.noise(1, 2, 4, (2, 32, 32))[1])
    coarse = batches.pyramid(1, 2, list(range(8)), (2, 32, 32), 0.6)
    assert torch.allclose(coarse.std(dim=(1, 2, 3)), torch.ones(8), atol=1e-5)
    blocks = torch.nn.functional.avg_pool2d(coarse, 8).std(), torch.nn.functional.avg_pool2d(batches.noise(1, 2, 8, (2, 32, 32)), 8).std()
    assert blocks[0] > 2 * blocks[1]


# The net.


def lesson_of(family: Family, latents: Sequence[Tensor], captions: Sequence[str], **more: Any) -> Lesson:
    held = {str(i): {"latent": z, "size": torch.tensor([90.0, 70, 3, 5, 8 * z.shape[1], 8 * z.shape[2]])} for i, z in enumerate(latents)}
    kept = [Kept(f"{i}.png", (c,), (str(i),), (z.shape[1], z.shape[2])) for i, (z, c) in enumerate(zip(latents, captions, strict=True))]
    pictures = Pictures(held, kept)
    with torch.no_grad():
        texts = {c: family.encode_text([c]) for c in {"", *captions}}
    return Lesson(pictures, Pictures(), pictures.some(more.get("held", [])), texts, "", family.size)


def net_of(family: Family, adapter: Any, lesson: Lesson, *, objective: dict[str, Any] | None = None, rank: int = 0, world: int = 1,
           **batch: Any) -> denoising.Net:
    b = Batches(**{"batch": 6, "drop": 0.0, **batch})
    plan = lora_recipe.Plan(LoraShape(rank=2), Optimizer(), b, Objective(prior=0.0, **(objective or {})), Watch(), 0)
    return denoising.Net(family, adapter, lesson, plan, rank=rank, world=world)


def latents(family: Family, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    return [torch.randn(family.channels, h, w, generator=torch.Generator().manual_seed(i)) for i, (h, w) in enumerate(shapes)]


def test_shares_and_pieces_of_a_batch_add_up_to_it(family: Family) -> None:
    shapes = [(8, 8), (8, 8), (4, 16), (4, 16), (16, 4)]
    lesson = lesson_of(family, latents(family, shapes), [f"a {i}" for i in range(5)])
    how = {"noise_offset": 0.1, "perturb": 0.1, "loss": "huber", "min_snr": 5.0}
    with trainables.adapter(family, LoraShape(rank=2, text_encoder=False), 0) as adapter, torch.no_grad():
        for step in range(3):
            [whole] = net_of(family, adapter, lesson, objective=how).losses(step)
            pieces = list(net_of(family, adapter, lesson, objective=how, at_once=4).losses(step))
            assert len(pieces) == 2
            ranks = [p for r in range(4) for p in net_of(family, adapter, lesson, objective=how, rank=r, world=4).losses(step)]
            assert float(torch.stack(pieces).sum()) == pytest.approx(float(whole), rel=1e-5)
            assert float(torch.stack(ranks).sum()) / 4 == pytest.approx(float(whole), rel=1e-5)


def test_captions_are_dropped_as_often_as_asked(sd1: Family) -> None:
    lesson = lesson_of(sd1, latents(sd1, [(8, 8)] * 4), [f"a {i}" for i in range(4)])
    course = net_of(sd1, None, lesson, drop=0.3).course
    empty = [s.caption == "" for step in range(200) for s in course.slots(step)]
    assert sum(empty) / len(empty) == pytest.approx(0.3, abs=0.03)
    assert course.slots(5) == course.slots(5)


def test_sizes_are_told_to_families_that_take_them(family: Family) -> None:
    lesson = lesson_of(family, latents(family, [(8, 8)] * 6), ["a fox"] * 6)
    with trainables.adapter(family, LoraShape(rank=2, text_encoder=False), 0) as adapter, torch.no_grad():
        net = net_of(family, adapter, lesson)
        [part] = net.course.parts(0, [range(6)])
        said = net.errors(part)
        cond = net.cond(["a fox"] * 6)
        if family.name == "sdxl":
            cond.extras["time_ids"] = part.sizes  # type: ignore[index]
        x, target = family.noised(part.x0, part.noise, part.sigma), family.target(part.x0, part.noise, part.sigma)
        wanted = (family.predict(x, part.sigma, cond) - target).square().mean(dim=(1, 2, 3))
        assert torch.allclose(said, wanted, rtol=1e-5)
        blind = net.errors(replace(part, sizes=None))
        assert torch.equal(blind, said) == (family.name != "sdxl")


def test_the_net_reads_the_mask_of_each_picture(flow: Family) -> None:
    lesson = lesson_of(flow, latents(flow, [(8, 8)] * 2), ["a fox"] * 2)
    mask = torch.zeros(1, 8, 8)
    mask[:, :3] = 1
    assert isinstance(lesson.learn.shelf, dict)
    lesson.learn.shelf["1"]["mask"] = mask  # the other one has none and counts in full
    with trainables.adapter(flow, LoraShape(rank=2, text_encoder=False), 0) as adapter, torch.no_grad():
        net = net_of(flow, adapter, lesson, objective={"unmasked": 0.25})
        [part] = net.course.parts(0, [range(6)])
        said = flow.predict(flow.noised(part.x0, part.noise, part.sigma), part.sigma, net.cond(["a fox"] * 6))
        off = (said - flow.target(part.x0, part.noise, part.sigma)).square().mean(dim=1)  # (B, h, w)
        for slot, rows, got in zip(part.slots, off, net.errors(part), strict=True):
            wanted = (3 * rows[:3].mean() + 0.25 * 5 * rows[3:].mean()) / (3 + 0.25 * 5) if slot.item else rows.mean()
            assert float(got) == pytest.approx(float(wanted), rel=1e-4)


def test_the_picture_that_does_not_belong_is_found(flow: Family) -> None:
    """Five pictures of one thing and one of another, under the same caption, trained for a few steps."""
    same, other = latents(flow, [(8, 8)] * 2)
    lesson = lesson_of(flow, [*[same + 0.1 * z for z in latents(flow, [(8, 8)] * 7)[2:]], other], ["a fox"] * 6)
    with trainables.adapter(flow, LoraShape(rank=4), 0) as adapter:
        net = net_of(flow, adapter, lesson)
        optimizer = torch.optim.AdamW(adapter.parameters.values(), lr=3e-2)
        for step in range(25):
            for loss in net.losses(step):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            net.after_step(step, 25)
    found = held_out.hard(net.seen)
    assert found[0][0] == 5
    assert found[0][1] > 1.1 > found[1][1]
    assert sum(times for _, _, times in found) == 25 * 6


def test_hard_is_relative_to_what_is_usual_at_a_noise_level() -> None:
    seen = torch.zeros(3, 2, 2)
    seen[:, 0] = torch.tensor([1.0, 10.0])  # an easy level: 0.1 each
    seen[0, 1] = torch.tensor([4.0, 2.0])  # a hard level, where only picture 0 was: as hard as is usual there
    seen[2, 0, 0] = 2.0  # twice the usual loss at the easy level
    ranked = held_out.hard(seen)
    assert [i for i, _, _ in ranked] == [2, 0, 1]
    assert ranked[0][1] == pytest.approx(1.5)
    assert ranked[1] == (0, pytest.approx((10 * 0.75 + 2) / 12, abs=1e-3), 12)


def test_kept_pictures_know_shape_captions_and_repeats(folder: Path, tmp_path: Path) -> None:
    model = tiny.model(tiny.sd1(tmp_path / "sd1"))
    family = tiny.load(tmp_path / "sd1", **LOAD)
    rows = [row(tmp_path / "a.png", pixels(96, 48), "a fox", repeats=3), row(tmp_path / "b.png", pixels(40, 40, 1), "an owl")]
    with using(Store(tmp_path / "store")):
        found = finish(shared.kept(family, model, rows, [("a fox",), ("an owl", "owl")], Batches(buckets=True, crops=2, flip=True), side=64,
                                 shelf=cache.Shelf(tmp_path / "shelf")))
    assert [(k.shape, k.repeats, len(k.keys), k.captions) for k in found.kept] == [
        ((12, 20), 3, 4, ("a fox",)), ((16, 16), 1, 4, ("an owl", "owl"))]
    assert found.groups() == ((0, 0, 0), (1,))
    first, mirrored = found.read(0, 0), found.read(0, 2)
    assert first["latent"].shape == (family.channels, 12, 20)
    assert first["size"].tolist()[:2] == [48, 96]
    assert not torch.equal(first["latent"], mirrored["latent"])
    assert torch.allclose(first["latent"], family.encode_image(torch.from_numpy(
        shared.cut_of(rows[0], ["a fox"], Batches(buckets=True, crops=2), side=64, factor=4)[0].of(read(rows[0].picture.path))
        .astype(np.float32) / 255)[None])[0], atol=1e-5)
