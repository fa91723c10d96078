"""Saved files say where they come from, other programs can read them, and they can be made again to the same bytes."""
from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pil

from safelight import embed, engine, files, parameters, progress
from safelight.codec import ORIGIN
from safelight.graph import check
from safelight.lineage import here, trace
from safelight.op import OPS, load_ops, op
from safelight.store import Store, using
from safelight.values import Blob, Dataset, Image, Latent, Mask, Page
from safelight.workflow import workflow
from tests.small_ops import RAN, SMALL

FORMATS = ["png", "jpg", "webp"]


@pytest.fixture(autouse=True)
def ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small ops take the place of the real ones: files name ops, and what is named is looked up."""
    load_ops()
    for name in list(OPS):
        monkeypatch.delitem(OPS, name)
    for name, small in SMALL.items():
        monkeypatch.setitem(OPS, name, small)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    at = Store(tmp_path / "store")
    RAN.clear()
    with using(at):
        yield at


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    folder.mkdir()
    for i, name in enumerate(("a", "雨 b", "c")):
        Pil.fromarray(np.full((4 + i, 4, 3), 40 * i, np.uint8)).save(folder / f"{name}.png")
    return folder


def painted(album: Path, seeds: Any = (1, 2), prompt: str = "红 hair, (smile:1.2)") -> Image:
    """Pictures of a model that learnt the album."""
    lora = SMALL["learn"](SMALL["keep"](str(album), least=0), steps=3, seed=5)
    image: Image = SMALL["paint"](SMALL["wear"]("small", lora, strength=0.5), prompt, seeds=seeds)
    return image


# What is in a file.


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_tells_everything(store: Store, album: Path, tmp_path: Path, kind: str) -> None:
    image = painted(album)
    paths = image.save(tmp_path / "out" / f"x.{kind}")
    assert [p.name for p in paths] == [f"x-0.{kind}", f"x-1.{kind}"]
    texts = embed.texts_of(paths[1])
    line = "Steps: 20, Sampler: Euler a, Schedule type: Karras, CFG scale: 4, Seed: 2, Size: 8x8, Model: small"
    assert texts["parameters"].startswith(f"红 hair, (smile:1.2)\n{line}, Version: safelight ")
    graph = json.loads(texts["prompt"])
    assert [n["class_type"] for n in graph.values()] == ["net", "album", "keep", "learn", "wear", "paint"]
    assert check(graph, SMALL) == []
    assert graph["6"]["inputs"] == {"model": ["5", 0], "prompt": "红 hair, (smile:1.2)", "seeds": [1, 2], "side": 8}
    assert len(json.loads(texts["workflow"])["nodes"]) == 6
    lineage = files.why(paths[1])
    assert lineage.target == "6" and lineage.index == 1
    rows = next(iter(lineage.data["pictures"].values()))
    assert rows == [[Blob.of(album / f"{n}.png").sha256, f"{n}.png", n] for n in ("a", "c", "雨 b")]
    learn = lineage.data["nodes"]["4"]
    assert learn["settings"] == {"steps": 3, "seed": 5} and learn["about"]["sha256"] == learn["about"]["sha256"].lower()
    assert {"python", "safelight", "numpy"} <= set(lineage.data["versions"])


def test_a_png_holds_the_very_pixels(store: Store, tmp_path: Path) -> None:
    image = painted_alone()
    [path] = image.save(tmp_path / "a.png")
    with Pil.open(path) as read:
        assert (np.asarray(read) == image.bytes8()[0]).all()
    [lossless] = image.save(tmp_path / "a.webp")
    with Pil.open(lossless) as read:
        assert (np.asarray(read.convert("RGB")) == image.bytes8()[0]).all()


def painted_alone(seed: int = 3) -> Image:
    image: Image = SMALL["paint"]("small", "x", seeds=[seed])
    return image


def test_why_needs_nothing_but_the_file(store: Store, album: Path, tmp_path: Path) -> None:
    import shutil

    path = painted(album).save(tmp_path / "x")[0]
    shutil.rmtree(store.root)
    shutil.rmtree(album)
    told = str(files.why(path))
    for words in ("picture 0 of 6. paint", "4. learn v1", "seed=5", "strength=0.5", '"红 hair, (smile:1.2)"', "雨 b.png", "kept 3"):
        assert words in told, words
    assert told.count("\n   ") > 10


@pytest.mark.parametrize("kind", FORMATS)
def test_a_long_lineage_fits(store: Store, tmp_path: Path, kind: str) -> None:
    """Three thousand pictures: more than one JPEG segment, more than one of Pillow's text limits; any program can open the file."""
    rows = [[f"{i:064x}", f"{i}.png", f"caption {i} 雨" * 8] for i in range(3000)]
    [path] = painted_alone().save(tmp_path / "s.png")
    lineage = files.why(path)
    long = files.Lineage({**lineage.data, "pictures": {"k": rows}})
    files.save_image(painted_alone(), tmp_path / f"x.{kind}", 0, long)
    assert files.why(tmp_path / f"x.{kind}").data == long.data
    with Pil.open(tmp_path / f"x.{kind}") as picture:
        picture.load()
        assert picture.size == (8, 8)
    if kind != "png":
        assert json.loads(embed.texts_of(tmp_path / f"x.{kind}")["prompt"])["1"]


def test_other_programs_find_their_entries(store: Store, tmp_path: Path) -> None:
    """ComfyUI reads `prompt` from PNG texts and EXIF; AUTOMATIC1111 reads `parameters` from PNG texts and the EXIF user comment."""
    image = painted_alone()
    png, jpg = image.save(tmp_path / "a.png")[0], image.save(tmp_path / "a.jpg")[0]
    with Pil.open(png) as picture:
        assert json.loads(picture.text["prompt"]) and picture.text["parameters"].startswith("x\n")  # type: ignore[attr-defined]
    with Pil.open(jpg) as picture:
        exif = picture.getexif()
        assert json.loads(str(exif[0x0110]).removeprefix("prompt:"))
        assert exif.get_ifd(0x8769)[0x9286][8:].decode("utf-16-be").startswith("x\n")


def test_the_workflow_is_one_an_editor_draws(store: Store, album: Path) -> None:
    graph = trace(store, painted(album)).graph()
    drawn = workflow(graph)
    ids = {n["id"] for n in drawn["nodes"]}
    assert ids == {1, 2, 3, 4, 5, 6} and drawn["last_link_id"] == len(drawn["links"]) == 5
    for link, source, slot, target, place, kind in drawn["links"]:
        to = next(n for n in drawn["nodes"] if n["id"] == target)
        assert to["inputs"][place]["link"] == link and to["inputs"][place]["type"] == kind and source in ids and slot == 0
    paint = drawn["nodes"][-1]
    assert paint["widgets_values"] == ["红 hair, (smile:1.2)", "1,2", 8] and paint["pos"][0] > drawn["nodes"][0]["pos"][0]
    assert drawn["nodes"][3]["widgets_values"] == [3, 5, "fixed"]
    assert list(paint["widgets_values_named"].values()) == paint["widgets_values"], "names hold when the op gets more settings"
    assert workflow(graph) == drawn and len({tuple(n["pos"]) for n in drawn["nodes"]}) == 6


def test_an_op_that_is_not_installed_is_drawn_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(store, painted_alone()).graph()
    monkeypatch.delitem(OPS, "paint")
    drawn = workflow(graph)
    assert drawn["nodes"][1]["widgets_values"] == ["x", [3], 8] and drawn["links"] == [[1, 1, 0, 2, 0, "*"]]


# Values that Python made of values.


def test_a_choice_of_pictures_keeps_its_history(store: Store, album: Path, tmp_path: Path) -> None:
    scores = SMALL["rank"](painted(album, seeds=range(6)))
    best = scores.best(2)
    paths = best.save(tmp_path / "out")
    for path, i in zip(paths, scores.order()[:2], strict=True):
        lineage = files.why(path)
        assert lineage.index == i and lineage.data["nodes"][lineage.target]["op"] == "paint"
        assert parameters.read(embed.texts_of(path)["parameters"])["Seed"] == str(i)


def test_a_choice_that_goes_on_is_a_pick(store: Store, album: Path, tmp_path: Path) -> None:
    best = SMALL["rank"](painted(album, seeds=range(6))).best(3)
    brighter = SMALL["add"](best, by=0.1)
    [*_, path] = brighter.save(tmp_path / "out")
    graph = files.why(path).graph()
    assert [n["class_type"] for n in graph.values()][-3:] == ["paint", "pick", "add"]
    RAN.clear()
    assert files.reproduce(path) and RAN.count("pick") == 1


def test_pictures_of_unknown_origin(store: Store, tmp_path: Path) -> None:
    by_hand = Image(np.zeros((1, 4, 4, 3), np.float32), ({"prompt": "a", "seed": 1},))
    [alone] = by_hand.save(tmp_path / "alone.png")
    assert embed.texts_of(alone).keys() == {"parameters"}
    with pytest.raises(ValueError, match=r"why: .*alone\.png: no history in it"):
        files.why(alone)
    [path] = SMALL["add"](by_hand).save(tmp_path / "x.png")
    lineage = files.why(path)
    assert lineage.has_gaps and "given: Image" in str(lineage) and "prompt" not in embed.texts_of(path)
    with pytest.raises(ValueError, match="no op is known that made the Image"):
        files.reproduce(path)


def test_a_loaded_patch_tells_what_it_learnt_from(store: Store, album: Path, tmp_path: Path) -> None:
    [file] = SMALL["learn"](str(album), steps=3).save(tmp_path / "l.safetensors")
    assert [n["op"] for n in files.why(file).data["nodes"].values()] == ["album", "learn"]
    [path] = SMALL["paint"](SMALL["wear"]("small", str(file)), "x", seeds=[1]).save(tmp_path / "x.png")
    told = str(files.why(path))
    assert "2. load_patch v1" in told and "     | 2. learn v1" in told and "     |    " + Blob.of(album / "a.png").sha256 in told
    assert files.reproduce(path)


def test_values_tell_their_history_too(store: Store, album: Path) -> None:
    image = painted(album)
    assert [n["op"] for n in files.why(image).data["nodes"].values()] == ["net", "album", "keep", "learn", "wear", "paint"]


def test_the_running_op_knows_its_own_history(store: Store, album: Path) -> None:
    seen: list[Any] = []

    @op("test", registry={})
    def writes(data: Dataset) -> Page:
        """Writes a file that tells where it comes from."""
        seen.append(here())
        return Page(store.blob(b"x", ".html"))

    writes(SMALL["album"](str(album)))
    assert [n["op"] for n in seen[0].data["nodes"].values()] == ["album", "writes"] and seen[0].target == "2"
    assert "value" not in seen[0].data["nodes"]["2"]
    with pytest.raises(ValueError, match="no op is running"):
        here()


# Made again.


@pytest.mark.parametrize("kind", FORMATS)
def test_reproduce_gives_the_same_bytes(store: Store, album: Path, tmp_path: Path, kind: str) -> None:
    paths = painted(album).save(tmp_path / f"x.{kind}")
    RAN.clear()
    found = files.reproduce(paths[1])
    assert found and found.equal and str(found).endswith("equal, byte for byte")
    assert RAN == ["net", "album", "keep", "learn", "wear", "paint"]  # all of it, in a store of its own
    RAN.clear()
    assert files.reproduce(paths[0], cached=True) and set(RAN) <= {"net", "wear", "paint"} and "paint" in RAN
    assert not any((store.root / "work").iterdir())


def test_reproduce_from_a_graph_and_from_a_patch(store: Store, album: Path, tmp_path: Path) -> None:
    graph = {"l": {"op": "learn", "data": str(album)}, "m": {"op": "wear", "model": "small", "patch": "$l"},
             "p": {"op": "paint", "model": "$m", "prompt": "x", "seeds": "5..7"}}
    values = engine.finish(engine.run(graph, store, ops=SMALL))
    assert all(files.reproduce(p) for p in values["p"].save(tmp_path / "out"))


def test_what_differs_is_measured(store: Store, tmp_path: Path) -> None:
    [path] = painted_alone().save(tmp_path / "x.png")
    with Pil.open(path) as picture:
        pixels = np.asarray(picture).copy()
    pixels[0, 0, 0] ^= 3
    texts = embed.texts_of(path)
    changed = tmp_path / "y.png"
    Pil.fromarray(pixels).save(changed)
    changed.write_bytes(embed.png_with_texts(changed.read_bytes(), texts))
    found = files.reproduce(changed)
    assert not found and found.largest in (1, 3)
    assert found.share == pytest.approx(1 / 192) and "of 255 at most" in str(found)
    old = json.loads(texts["safelight"])
    old["versions"]["numpy"] = "1.0"
    relabelled = tmp_path / "z.png"
    with Pil.open(path) as picture:
        picture.save(relabelled)
    relabelled.write_bytes(embed.png_with_texts(relabelled.read_bytes(), texts | {"safelight": json.dumps(old)}))
    found = files.reproduce(relabelled)
    assert found.largest == 0 and "the same pixels, other metadata (numpy was 1.0 and is" in str(found)


def test_a_run_that_is_stopped_while_reproducing_leaves_nothing(store: Store, tmp_path: Path) -> None:
    [path] = painted_alone().save(tmp_path / "x.png")
    store.close()
    total = sum(1 for _ in files.reproduction(path, store))
    for n in range(1, total):
        work = files.reproduction(path, store)
        for _ in range(n):
            next(work)
        work.close()
        assert not any((store.root / "work").iterdir()) and not any((store.root / "pins").iterdir())


def test_nothing_left_of_a_history(tmp_path: Path) -> None:
    plain = tmp_path / "plain.jpg"
    Pil.new("RGB", (4, 4)).save(plain)
    with pytest.raises(ValueError, match="no history in it; Safelight did not write it"):
        files.why(plain)
    (tmp_path / "x.txt").write_text("words")
    with pytest.raises(ValueError, match="not a picture"):
        files.why(tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError):
        files.why(tmp_path / "none.png")
    cut = tmp_path / "cut.png"
    Pil.new("RGB", (64, 64)).save(cut)
    cut.write_bytes(cut.read_bytes()[:60])
    with pytest.raises(ValueError, match="cut short"):
        files.why(cut)


# Other values.


def test_a_dataset_is_a_folder_that_reads_back(store: Store, album: Path, tmp_path: Path) -> None:
    data = SMALL["keep"](str(album), least=Path(album / "a.png").stat().st_size + 1)
    written = data.save(tmp_path / "set")
    assert {p.name for p in written} == {*(r.name for r in data), "metadata.jsonl", "dropped.json", "lineage.json"}
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert [(r["file_name"], r["text"]) for r in rows] == [(r.name, r.caption) for r in data]
    assert [d["name"] for d in json.loads((tmp_path / "set" / "dropped.json").read_text())] == [r.name for r in data.rows if r.dropped]
    assert [n["op"] for n in files.why(tmp_path / "set").data["nodes"].values()] == ["album", "keep"]
    [table] = data.save(tmp_path / "t.jsonl")
    assert all(Path(json.loads(line)["file_name"]).is_file() for line in table.read_text().splitlines())
    assert data.save(tmp_path / "set") == written  # again, onto itself


def test_patches_scores_pages_and_masks(store: Store, album: Path, tmp_path: Path) -> None:
    patch = SMALL["learn"](str(album))
    assert patch.save(tmp_path / "l.safetensors") == [tmp_path / "l.safetensors"]
    assert patch.save(tmp_path / "p")[0].read_bytes() == (tmp_path / "l.safetensors").read_bytes()
    scores = SMALL["rank"](painted(album, seeds=[1, 2]))
    told = json.loads(scores.save(tmp_path / "s.json")[0].read_text())
    assert len(told["scores"]) == 2 and told["pictures"][0]["seed"] == 1 and ORIGIN not in told["pictures"][0]
    assert files.why(tmp_path / "s.json").data["nodes"][files.why(tmp_path / "s.json").target]["op"] == "rank"
    with open(scores.save(tmp_path / "s.csv")[0], encoding="utf-8-sig", newline="") as f:
        assert [row["seed"] for row in csv.DictReader(f)] == ["1", "2"]
    page = SMALL["tell"](str(album))
    [html] = page.save(tmp_path / "page")
    assert html.read_text().startswith("<pre>") and files.why(html).data["nodes"]["2"]["op"] == "tell"
    assert files.reproduce(html)
    Mask(np.ones((2, 4, 4), np.float32)).save(tmp_path / "m")
    with Pil.open(tmp_path / "m" / "1.png") as picture:
        assert picture.mode == "L" and picture.getextrema() == (255, 255)
    sheet = Page(store.blob(painted_alone().save(tmp_path / "q.png")[0]), "image/png")
    assert sheet.save(tmp_path / "sheet")[0].suffix == ".png"


def test_values_that_are_no_files(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save: got a Latent, expected one of Image"):
        Latent(torch.zeros(1, 4, 8, 8)).save(tmp_path / "x")


def test_nobody_sees_half_a_file(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [path] = painted_alone(1).save(tmp_path / "x.png")
    before = path.read_bytes()

    def full(self: Path, data: bytes) -> int:
        with open(self, "wb") as f:
            f.write(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        painted_alone(2).save(tmp_path / "x.png")
    monkeypatch.undo()
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


# AUTOMATIC1111's text.


@pytest.mark.parametrize("info", [
    {"prompt": "a cat", "seed": 1, "steps": 20, "sampler": "dpmpp_2m", "schedule": "karras", "cfg": 7.0, "size": [512, 768]},
    {"prompt": "two\nlines", "negative": "bad, worse", "seed": 2**63, "denoise": 0.6, "model": "a, b: c"},
    {"prompt": "", "seed": 0},
])
def test_parameters_come_back(info: dict[str, Any]) -> None:
    back = parameters.read(parameters.write(info, "safelight 0.1"))
    assert back["prompt"] == info["prompt"] and back["negative"] == info.get("negative", "") and back["Seed"] == str(info["seed"])
    assert back.get("Model") == info.get("model") and back["Version"] == "safelight 0.1"
    if "size" in info:
        assert back["Size"] == "512x768" and back["Sampler"] == "DPM++ 2M" and back["Schedule type"] == "Karras"
    assert ("Denoising strength" in back) == ("denoise" in info)


def test_parameters_of_others() -> None:
    pairs = 'Steps: 28, Sampler: Euler a, CFG scale: 7, Seed: 3, Size: 512x512, Lora hashes: "a: 1"'
    back = parameters.read(f"masterpiece\nNegative prompt: lowres,\nbad hands\n{pairs}")
    assert back["negative"] == "lowres,\nbad hands" and back["Lora hashes"] == "a: 1" and back["Steps"] == "28"
    assert parameters.read("only words")["prompt"] == "only words" and parameters.write({"file": "x"}) == ""


def test_progress_is_silent_without_a_terminal(store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    SMALL["add"]("0.5")
    assert capfd.readouterr() == ("", "")


def test_progress_on_a_terminal_shows_bars_and_time_left(store: Store) -> None:
    import io

    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=120)
    image = SMALL["grey"]("0.5")
    progress.watch(engine.call(SMALL["slow"], {"image": image, "seconds": 0.3}, store), console)
    progress.watch(engine.call(SMALL["add"], {"image": image, "steps": 40}, store), console)
    progress.watch(engine.call(SMALL["add"], {"image": image, "steps": 40}, store), console)
    shown = out.getvalue()
    for words in ("slow", "left", "add:", "added", "kept from before"):
        assert words in shown
