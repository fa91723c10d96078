"""Caption layers: where the words come from, the trigger, and that no layer is ever lost."""
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pil

from safelight.data.captioners import Asked
from safelight.data.captioners.tagger import describe, sentence
from safelight.data.captions import caption, with_trigger
from safelight.embedded.vocabulary import ATTRIBUTES
from safelight.events import Event, Note
from safelight.values import Blob, Caption, Dataset, Row


def finished(work: Generator[Event, None, Dataset]) -> tuple[Dataset, list[Event]]:
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as stop:
            return stop.value, events


def row(name: str, *captions: Caption, dropped: str = "", **info: Any) -> Row:
    return Row(Blob("x", name), name, 10, 20, captions, dropped, info)


DATA = Dataset((row("a/1.png", Caption("file", "a fox")), row("a/2.png"), row("3.png", Caption("file", "lost"), dropped="too small")))


def test_from_files_with_a_trigger() -> None:
    data, events = finished(caption(DATA, "file", Asked(), trigger="in ink style"))
    assert [r.caption for r in data.rows] == ["a fox, in ink style", "in ink style", "lost"]
    assert data.rows[0].captions[0] == Caption("file", "a fox")
    assert [e.text for e in events if isinstance(e, Note)] == ["caption: 1 of 2 pictures have only the trigger as caption"]
    again, _ = finished(caption(data, "file", Asked(), trigger="in ink style"))
    assert again == data


def test_an_older_layer_can_be_taken_again() -> None:
    machine = Dataset((row("1.png", Caption("metadata", "given"), Caption("tagger", "guessed")),))
    data, _ = finished(caption(machine, "file", Asked()))
    assert [c.text for c in data.rows[0].captions] == ["given", "guessed", "given"]


@pytest.mark.parametrize(("text", "place", "whole"), [
    ("a fox", "end", "a fox, pxl"), ("a fox", "start", "pxl, a fox"), ("", "end", "pxl"), ("pxl fox", "end", "pxl fox")])
def test_trigger(text: str, place: str, whole: str) -> None:
    assert with_trigger(text, "pxl", place) == whole


def test_a_trigger_is_a_word_and_no_part_of_one() -> None:
    assert with_trigger("a party scene", "art", "end") == "a party scene, art" == with_trigger("a party scene, art", "art", "end")
    assert with_trigger("sks_style fox", "sks", "start") == "sks, sks_style fox"
    assert with_trigger("一幅水墨画", "水墨", "end") == "一幅水墨画", "there are no blanks between Chinese words"
    assert with_trigger("(art:1.2)", "art", "end") == "(art:1.2)"


def test_template() -> None:
    rows = Dataset((row("cats/7.png", Caption("file", "a cat"), metadata={"artist": "Lu"}),))
    data, _ = finished(caption(rows, "template", Asked("{folder} {stem}: {caption} by {artist}, {width} x {height} {{raw}}")))
    assert data.rows[0].captions[-1] == Caption("template", "cats 7: a cat by Lu, 10 x 20 {raw}")


@pytest.mark.parametrize(("template", "said"), [
    ("{artist}", "a/1.png does not have"), ("{caption", "template"), ("{caption.__class__}", "plain name"), ("{0}", "plain name"),
    ("{}", "plain name")])
def test_template_errors(template: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        finished(caption(DATA, "template", Asked(template)))


def test_unknown_captioner() -> None:
    with pytest.raises(ValueError, match="expected one of blip, file, tagger, template, vlm, wd14"):
        finished(caption(DATA, "blimp", Asked()))


PERSON = {"hair colour": "purple", "hair style": "long", "glasses": "glasses", "expression": "smiling", "beard": "none", "skin": "tan",
          "clothes colour": "green", "background": "yellow"}


@pytest.mark.parametrize(("found", "en", "zh"), [
    (PERSON, "a smiling person with long purple hair, glasses and tan skin, green shirt, yellow background",
     "一个紫色长发的人,戴眼镜,微笑,小麦色皮肤,绿色上衣,黄色背景"),
    ({"hair colour": "black"}, "a person with black hair", "一个黑色头发的人"),
    ({"object": "fox", "background": "blue"}, "a fox, blue background", "狐狸,蓝色背景"),
    ({"scene": "beach", "time": "night"}, "a beach, at night", "海滩,夜晚"),
])
def test_sentences(found: Mapping[str, str], en: str, zh: str) -> None:
    assert sentence(found, ATTRIBUTES, "en") == en
    assert sentence(found, ATTRIBUTES, "zh") == zh


class WordTowers:
    """Real, if simple, encoders: a text is its bag of phrases, a picture is the bag of phrases that its colour index stands for."""

    size = 8
    scale = 30.0
    phrases = tuple(dict.fromkeys(p[0] for values in ATTRIBUTES.values() for p in values.values()))

    def __init__(self, pictures: Sequence[Mapping[str, str]]) -> None:
        self.pictures = pictures

    def text(self, texts: Sequence[str]) -> np.ndarray:
        bags = np.array([[1.0 if set(p.split()) <= set(t.replace(",", "").split()) else 0.0 for p in self.phrases] for t in texts])
        return (bags / np.linalg.norm(bags + 1e-6, axis=1, keepdims=True)).astype(np.float32)

    def image(self, pixels: np.ndarray) -> np.ndarray:
        return self.text([sentence(self.pictures[round(float(p.mean()) * 255) // 40], ATTRIBUTES, "en") for p in pixels])


def test_the_tagger_says_what_it_sees(tmp_path: Path) -> None:
    seen = [PERSON, {**PERSON, "hair colour": "black", "expression": "sad", "glasses": "none"}, {"object": "cactus", "background": "pink"}]
    rows = []
    for i in range(3):
        path = tmp_path / f"{i}.png"
        Pil.new("RGB", (30, 20), (i * 40, i * 40, i * 40)).save(path)
        rows.append(Row(Blob.of(path), path.name, 30, 20))
    asked = Asked(language="en", confidence=0.3, towers=lambda: WordTowers(seen), vocabulary=lambda: ATTRIBUTES)
    data, events = finished(caption(Dataset(tuple(rows)), "tagger", asked, trigger="pxl"))
    texts = [r.caption for r in data]
    assert texts[0].startswith("a smiling person with long purple hair, glasses") and texts[0].endswith(", pxl")
    assert "black hair" in texts[1] and "sad" in texts[1] and "glasses" not in texts[1]
    assert texts[2] == "a cactus, pink background, pxl"
    assert len(events) == 2


def test_what_the_tagger_is_not_sure_of_goes_unsaid() -> None:
    towers = WordTowers([])
    nothing = np.zeros(len(towers.phrases), np.float32)
    assert list(describe(nothing, towers, Asked(confidence=0.9), ATTRIBUTES)) == []


def test_the_tagger_needs_a_language_and_eyes() -> None:
    with pytest.raises(ValueError, match="speaks en and zh"):
        finished(caption(DATA, "tagger", Asked(language="fr", towers=lambda: WordTowers([]), vocabulary=lambda: ATTRIBUTES)))
    with pytest.raises(ValueError, match="needs a model"):
        finished(caption(DATA, "tagger", Asked()))
