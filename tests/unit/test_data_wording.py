"""Captions after they were written: layers chosen, words replaced, tags drawn, tokens counted."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image as Pil

import safelight as sl
from safelight.data.captions import choose, edit, kind_of
from safelight.data.tokens import ruler
from safelight.data.wording import TagEdit, replacer
from safelight.events import Note
from safelight.runtime import lease
from safelight.spec import Work
from safelight.values import Blob, Caption, Dataset, Row
from tests import tiny


def row(name: str, *layers: tuple[str, str], dropped: str = "") -> Row:
    return Row(Blob(name, name * 8), name, 64, 64, tuple(Caption(by, text) for by, text in layers), dropped)


def finished(work: Work[Dataset]) -> tuple[Dataset, list[str]]:
    notes = []
    try:
        while True:
            event = next(work)
            if isinstance(event, Note):
                notes.append(event.text)
    except StopIteration as stop:
        return stop.value, notes


@pytest.mark.parametrize(("by", "kind"), [
    ("human", "human"), ("human+reword", "human"), ("wd14", "machine"), ("blip+edit_tags+reword", "machine"), ("template", "machine"),
    ("file", "source"), ("metadata+flip", "source"), ("folder", "source"), ("pexels", "source"),
])
def test_kinds(by: str, kind: str) -> None:
    assert kind_of(Caption(by, "x")) == kind


def test_the_newest_of_the_first_kind_is_taken_up_and_nothing_is_lost() -> None:
    data = Dataset((
        row("a", ("human", "h1"), ("file", "f"), ("human", "h2"), ("wd14", "w")), row("b", ("file", "f"), ("blip", "b"), ("wd14", "w")),
        row("c", ("file", "f")), row("d"), row("e", ("human", "x"), ("file", "y"), dropped="too small")))
    out, notes = finished(choose(data, ["human", "blip", "source"]))
    assert [r.caption for r in out.rows] == ["h2", "b", "f", "", "y"]
    assert all(new.captions[:len(old.captions)] == old.captions for new, old in zip(out.rows, data.rows, strict=True))
    assert out.rows[2] is data.rows[2] and notes == [
        "choose_caption: in use, by human then blip then source: 1 human, 1 blip, 1 file, 1 none of them"]
    with pytest.raises(ValueError, match="order is empty"):
        finished(choose(data, []))


def test_an_edit_is_a_layer_named_after_the_one_below() -> None:
    data = Dataset((row("a", ("wd14", "red fox")), row("b", ("wd14", "cat")), row("c", ("file", "red"), dropped="blank")))
    once = edit(data, "reword", lambda text, _: text.replace("red", "blue"))
    assert once.rows[0].captions == (Caption("wd14", "red fox"), Caption("wd14+reword", "blue fox"))
    assert once.rows[1:] == data.rows[1:]
    again = edit(once, "reword", lambda text, _: text.upper())
    assert [c.by for c in again.rows[0].captions] == ["wd14", "wd14+reword", "wd14+reword"]


@pytest.mark.parametrize(("find", "replace", "regex", "text", "expected"), [
    ("girl", "woman", False, "1girl, girls", "1woman, womans"),
    (r"\bgirl\b", "woman", True, "1girl, girl", "1girl, woman"),
    ("a.b", "x", False, "a.b acb", "x acb"),
    (r"(\w+) hair", r"hair of \1", True, "red hair, hat", "hair of red, hat"),
    ("red", r"\1", False, "red hat", r"\1 hat"),
    ("hat", "", False, "fox, hat, tree", "fox, tree"),
    ("帽子", "", False, "狐狸，帽子，树", "狐狸，树"),
    ("tree", "", False, "fox, tree", "fox"),
    ("none", "x", False, "fox ,  tree", "fox ,  tree"),
    ("", "x", False, "fox", "fox"),
])
def test_words_replaced(find: str, replace: str, regex: bool, text: str, expected: str) -> None:
    assert replacer(find, replace, regex=regex)(text) == expected


@pytest.mark.parametrize(("find", "replace"), [("(", "x"), ("a", r"\1"), ("(a)", r"\2")])
def test_an_expression_that_is_none(find: str, replace: str) -> None:
    with pytest.raises(ValueError, match=r"reword: find .* regex=False"):
        replacer(find, replace, regex=True)


TAGS = "pxl, 1girl, red hair, hat, tree, sky, cat, dog, moon"


def test_tags_are_drawn_by_seed_row_and_tag_alone() -> None:
    mixed = TagEdit(keep_first=1, shuffle=True, seed=3)
    assert mixed(TAGS, "r").startswith("pxl, ") and sorted(mixed(TAGS, "r").split(", ")) == sorted(TAGS.split(", "))
    assert mixed(TAGS, "r") == mixed(TAGS, "r") and mixed(TAGS, "r") != mixed(TAGS, "s") != TAGS
    assert TagEdit(keep_first=1, shuffle=True, seed=4)(TAGS, "r") != mixed(TAGS, "r")
    fewer = TagEdit(keep_first=1, shuffle=True, seed=3, undesired=("cat",))
    assert fewer(TAGS, "r") == mixed(TAGS, "r").replace(", cat", ""), "what one tag does depends on no other"


def test_the_share_that_is_dropped() -> None:
    half = TagEdit(keep_first=2, drop=0.5)
    left = [half(TAGS, str(i)).split(", ") for i in range(400)]
    assert all(tags[:2] == ["pxl", "1girl"] for tags in left)
    assert 0.46 < sum(len(tags) - 2 for tags in left) / (400 * 7) < 0.54
    assert all(TagEdit(drop=1.0)("a, b, c", str(i)) in "abc" for i in range(9)), "one stays"
    assert TagEdit(drop=1.0, keep_first=1)("a, b, c", "r") == "a"


def test_order_and_undesired_tags() -> None:
    assert TagEdit(first=("SKY", "hat", "absent"))(TAGS, "r") == "sky, hat, pxl, 1girl, red hair, tree, cat, dog, moon"
    assert TagEdit(undesired=("Red Hair", "pxl"))(TAGS, "r") == "1girl, hat, tree, sky, cat, dog, moon"
    assert TagEdit(undesired=("树",))("狐狸，树，月亮", "r") == "狐狸，月亮"
    assert TagEdit()("a cat , a cat,, dog", "r") == "a cat, dog"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worded")
    for i, text in enumerate(["a red fox, hat", "a girl " * 60, ""]):
        Pil.new("RGB", (20, 20), (i * 80, 0, 0)).save(folder / f"{i}.png")
        if text:
            (folder / f"{i}.txt").write_text(text)
    return folder


def test_the_ops(pictures: Path) -> None:
    data = sl.folder(pictures)
    out = sl.edit_tags(sl.reword(data, find="red", replace="blue", trigger="pxl", place="start"), undesired=["hat"])
    assert out.rows[0].caption == "pxl, a blue fox"
    assert [c.by for c in out.rows[0].captions] == ["file", "file+reword", "file+reword+edit_tags"]
    assert out.rows[2].caption == "pxl" and out.rows[2].captions[0].by == "source+reword"
    assert sl.choose_caption(out, order=["file"]).rows[0].caption == "pxl, a blue fox", "changed from the file, so of the file"
    assert sl.caption(out, by="file").rows[0].caption == "a red fox, hat", "what the file said is still there"


def test_captions_come_back_from_a_table(pictures: Path, tmp_path: Path) -> None:
    table = tmp_path / "corrected.csv"
    table.write_text("file_name,text\n0.png,a crimson fox\n2.png,\n9.png,x\n", "utf-8-sig")
    out = sl.take_captions(sl.folder(pictures), path=table)
    assert out.rows[0].captions == (Caption("file", "a red fox, hat"), Caption("human", "a crimson fox"))
    assert [len(r.captions) for r in out] == [2, 1, 0]
    machine = sl.caption(out, by="template", template="a picture of {stem}")
    assert sl.choose_caption(machine).rows[0].caption == "a crimson fox" and sl.choose_caption(machine).rows[1].caption == "a picture of 1"
    table.write_text("file_name,text\nelsewhere.png,x\n")
    with pytest.raises(ValueError, match="names none of the 3 pictures; it names elsewhere"):
        sl.take_captions(sl.folder(pictures), path=table)


def test_tokens_are_the_models_and_long_captions_are_named(pictures: Path) -> None:
    model, data = sl.model("mini"), sl.folder(pictures)
    with lease(model) as family:
        assert [ruler(model).count(r.caption) for r in data] == [family.tokens(r.caption) for r in data]
    assert ruler(model).room == 46
    work = sl.OPS["count_tokens"].work({"model": model, "data": data})
    out, notes = finished(work)  # type: ignore[arg-type]
    assert [r.info["tokens"] for r in out][2] == 0 and out.rows[1].info["tokens"] > 46
    assert len(notes) == 1 and notes[0].startswith("count_tokens: 1 of 3 captions have more than 46 tokens") and "1.png (" in notes[0]
    assert [r.captions for r in out] == [r.captions for r in data]


@pytest.mark.parametrize("name", ["sd1", "taiyi", "sdxl", "refiner", "kolors", "sd3"])
def test_every_family_counts_as_it_reads(name: str, tmp_path: Path) -> None:
    folder = tiny.LAYOUTS[name](tmp_path)
    family = tiny.load(folder, device=torch.device("cpu"), dtype=torch.float32)
    measure = ruler(tiny.model(folder))
    for text in (*tiny.SAYINGS, "a (red:1.3) apple", ""):
        assert measure.count(text) == family.tokens(text)
    assert 0 < measure.room <= 510
