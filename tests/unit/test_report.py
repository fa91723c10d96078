"""The sheet and the report: nothing unescaped, nothing from elsewhere, Chinese drawn without any font of the system."""
from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pil

import safelight as sl
from safelight.reporting import lettering
from safelight.reporting.charts import Line, chart, smoothed, thinned, ticks
from safelight.reporting.html import VOID, Markup, duration, el, join, number, signed, size
from safelight.reporting.page import page
from safelight.reporting.sheet import cell_of, contact_sheet
from safelight.reporting.story import Compared, Sample, Step, Story
from safelight.values import Blob, Caption, Dataset, Image, Patch, Row, Scores

EVIL = '<script>alert("1")</script>&<img src=x onerror=alert(1)>'
rng = np.random.default_rng(0)


class Reader(HTMLParser):
    """Checks that every element is closed where it should be, and collects links, ids and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.said: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]
        self.ids += [named["id"] or ""] if "id" in named else []
        if tag == "img":
            self.images.append(named)
        assert not [k for k in named if k.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.said.append(data)


def pictures(n: int = 3, text: str = "a fox") -> Image:
    return Image(rng.random((n, 32, 32, 3), dtype=np.float32), tuple({"prompt": f"{text} {i}", "seed": i} for i in range(n)))


def dataset(folder: Path) -> Dataset:
    rows = []
    for i in range(3):
        path = folder / f"{i}.png"
        Pil.effect_noise((40, 30), 50).convert("RGB").save(path)
        rows.append(Row(Blob.of(path), path.name, 40, 30, (Caption("file", f"{EVIL}, red"),), info={"bytes": 1000}))
    (folder / "bad.png").write_text("no")
    bad = Row(Blob.of(folder / "bad.png"), "bad.png", 0, 0, dropped=f"unreadable: {EVIL}")
    gone = Row(Blob(str(folder / "gone.png"), ""), "gone.png", 0, 0, dropped="missing: it is not there")
    return Dataset((*rows, bad, gone), {"source": str(folder), "problems": ["metadata.csv line 3: names no picture"]})


def story(folder: Path) -> Story:
    (folder / "lora.safetensors").write_bytes(b"x" * 5000)
    record = {
        "settings": {"shape": {"rank": 16, "targets": ["to_q", EVIL]}, "seed": 0, "note": ""}, "kept_step": 1000, "seconds": 62.0,
        "loss": [[i, 1 / i] for i in range(1, 1300)], "held_out": [[0, 1.0, 0.9, 1.1], [1000, 0.4, 0.3, 0.5]],
        "lr": [[1, 0.0], [2, 1e-3], [1300, 1e-4]], "pictures_per_second": 24.5,
        "bands": [[s, sigma, 0.5, 0.4, 0.6] for s in (0, 1000) for sigma in (0.27, 31.7)],
        "hard": [[0, "old.png", "", 9.0, 1], [1000, "2.png", EVIL, 1.8, 40], [1000, "elsewhere.png", "", 1.2, 41]],
        "preflight": {"peak": 3 * 2**30, "before": 2**30, "free": 2**34, "step": 0.1, "look": 1.0, "seconds": 70.0},
        "proof": {"max_difference": 0.0, "matched": 4, "total": 4}}
    samples = tuple(Sample(s, EVIL, rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)) for s in (0, 1000))
    compared = (Compared("CLIP score", 20, 25, 3, 7, 3, 3, "fit"), Compared("style", None, 80.0))
    steps = (Step("folder", {"path": EVIL}, (), "5 pictures", "a" * 32, 0.2), Step("curate", {}, ("folder",), "3 pictures", "b" * 32, 0.0))
    return Story(EVIL, dataset(folder), Patch("lora", Blob.of(folder / "lora.safetensors")), 5000, record, samples, pictures(text=EVIL),
                 pictures(text=EVIL), compared, steps, {"safelight": "0.1.0"})


def test_the_page_is_whole_and_closed_to_the_outside(tmp_path: Path) -> None:
    text = page(story(tmp_path))
    seen = Reader(text)
    assert all(link.startswith(("data:image/", "#")) for link in seen.links)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "").replace("http-equiv", "")
    assert text.count("<script>") == 1 and EVIL in "".join(seen.said)
    assert len(seen.ids) == len(set(seen.ids)) and {link[1:] for link in seen.links if link.startswith("#")} <= set(seen.ids)
    assert all(i["alt"] is not None and i["width"] and i["height"] for i in seen.images)
    for said in ("3 of 5", "unreadable", "not there", "names no picture", "kept: step 1000", "4 of 4 layers", "5 kB", "3 of 3", "1 min 2 s",
                 "σ 31.7", "1.80 times the usual loss", "1.20 times", "elsewhere.png", "Expected beforehand: 1 min 10 s, 3.22 GB of memory",
                 "Before and after", "Samples over time", "Left out", "Lineage", "+5", "+3 to +7"):
        assert said in " ".join(seen.said), said


@pytest.mark.parametrize(("kept", "sections"), [
    (("after",), ["Pictures made"]), (("data",), ["Pictures", "Left out", "Captions"]), (("record",), ["Training", "Settings"]),
    (("after", "before"), ["Before and after"]), ((), [])])
def test_what_is_empty_has_no_section(tmp_path: Path, kept: tuple[str, ...], sections: list[str]) -> None:
    whole = story(tmp_path)
    seen = Reader(page(Story("T", **{name: getattr(whole, name) for name in kept})))
    assert [s for s in seen.ids if s.endswith("-heading")] == [f"{s}-heading" for s in seen.ids if f"{s}-heading" in seen.ids]
    assert len([i for i in seen.ids if i.endswith("-heading")]) == len(sections)
    assert all(s in seen.said for s in sections)


def test_elements_escape_what_is_not_markup() -> None:
    assert el("p", "a<b", el("b", "&"), cls="x", data_n=1, title=None) == '<p class="x" data-n="1">a&lt;b<b>&amp;</b></p>'
    assert el("p", hidden=True) == "<p hidden></p>"
    assert el("a", href='"><script>') == '<a href="&quot;&gt;&lt;script&gt;"></a>'
    assert el("img", alt="") == '<img alt="">' and isinstance(join(["<", Markup("<br>")]), Markup)
    assert join(["<", [Markup("<br>"), ["&"]]]) == "&lt;<br>&amp;"


def test_words_for_numbers() -> None:
    assert [number(x) for x in (0, 0.0312, 12.345, 1234.5, 2e-5)] == ["0", "0.0312", "12.3", "1,234", "2.0e-05"]
    assert [duration(x) for x in (0.42, 12, 59.6, 185, 7800)] == ["0.4 s", "12 s", "1 min 0 s", "3 min 5 s", "2 h 10 min"]
    assert [size(x) for x in (12, 3_620_000, 2_000)] == ["12 bytes", "3.62 MB", "2 kB"]
    assert signed(-0.5) == "−0.5" and signed(2) == "+2"


def test_charts() -> None:
    assert ticks(0, 1) == [0, 0.2, 0.4, 0.6, 0.8, 1.0] and ticks(0.13, 0.34) == [0.15, 0.2, 0.25, 0.3] and ticks(3, 3) == [3]
    many = [(float(i), float(i % 2)) for i in range(10_001)] + [(10_001.0, float("nan"))]
    thin = thinned(many)
    assert len(thin) <= 500 and all(0.4 <= y <= 0.6 for _, y in thin)
    assert smoothed([(0, 5.0), (1, 5.0)]) == ((0, 5.0), (1, 5.0))
    assert chart("nothing", [Line("a", "loss", ())], x_name="step") == ""
    one = chart("one", [Line("a", "loss", ((3.0, 2.0),), dots=True)], x_name="step", mark=(3, "here"))
    assert "nan" not in one and "here" in one and Reader(one)


def test_sheet_layout() -> None:
    eight = contact_sheet(pictures(8))
    one = contact_sheet(pictures(1))
    assert eight.pixels.shape[2] > 4 * 256 and eight.pixels.shape[1] > 2 * 256 and eight.pixels.shape[2] > eight.pixels.shape[1]
    assert len(eight) == 1 and one.pixels.shape[2] < 400
    assert (contact_sheet(pictures(3), columns=8).pixels.shape[2]) == contact_sheet(pictures(3), columns=3).pixels.shape[2]
    assert contact_sheet(pictures(2), title="A title").pixels.shape[1] > contact_sheet(pictures(2)).pixels.shape[1]
    assert [cell_of(128, 128), cell_of(100, 200), cell_of(1024, 512), cell_of(300, 400)] == [(256, 256), (400, 200), (256, 512), (400, 300)]


def test_a_sheet_shows_its_pictures() -> None:
    """Each picture appears, enlarged, where its frame is: the mean colour is found in the sheet."""
    flat = Image(np.stack([np.full((128, 128, 3), v, np.float32) for v in (0.2, 0.5, 0.9)]))
    grey = contact_sheet(flat).bytes8()[0, :, :, 1]
    for value in (51, 127, 229):
        assert (grey == value).sum() >= 256 * 256 * 0.98


def test_sheet_errors() -> None:
    with pytest.raises(ValueError, match="got 1 for 2 pictures"):
        contact_sheet(pictures(2), labels=["only one"])
    with pytest.raises(ValueError, match="empty batch"):
        contact_sheet(Image(np.zeros((0, 8, 8, 3), np.float32)))


def test_the_own_font_has_chinese() -> None:
    from safelight.embedded import vocabulary

    own = str(Path(lettering.__file__).parent / "fonts" / "noto-sans-sc.otf")
    words = {c for values in vocabulary.ATTRIBUTES.values() for _, zh in values.values() for c in zh}
    assert all(lettering._has(own, c) for c in words | set("abcXYZ0123,。、!?()·×→")) and not lettering._has(own, "龘")


def test_wrapping() -> None:
    text = "一个紫色短发的女孩,戴眼镜,微笑,绿色上衣 and some English words,黄色背景。"
    lines = lettering.wrap(text, 15, 160, 20)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(lettering.width(line, 15) <= 160 + 15 for line in lines) and not any(line[0] in lettering.NO_START for line in lines)
    assert lettering.wrap("a" * 90, 15, 100, 9)[0] != "a" * 90
    short = lettering.wrap(text, 15, 160, 2)
    assert len(short) == 2 and short[1].endswith("...") and lettering.width(short[1], 15) <= 160
    assert lettering.wrap("", 15, 100, 3) == []


def test_the_ops_end_to_end(tmp_path: Path) -> None:
    """From the example folder to a report that knows every step, twice: the second time nothing runs."""
    said = sl.caption(sl.curate(sl.folder(Path(__file__).parents[2] / "examples" / "pixel-people")), trigger="in pixel style")
    assert len(said) == 30 and all(r.caption.endswith(", in pixel style") for r in said)
    scores = sl.score(pictures(), by=["sharpness", "colourfulness"])
    record = {"loss": [[1, 0.5], [2, 0.4]], "samples": [{"step": 2, "prompt": "p", "file": "samples/2.png"}], "settings": {"rank": 4}}
    files = {"record.json": tmp_path / "record.json", "samples/2.png": tmp_path / "s.png"}
    files["record.json"].write_text(json.dumps(record))
    Pil.new("RGB", (16, 16), "red").save(files["samples/2.png"])
    (tmp_path / "w").write_bytes(b"w" * 2000)
    patch = Patch("lora", Blob.of(tmp_path / "w"), files={k: Blob.of(v) for k, v in files.items()})
    made = sl.report(said, patch=patch, before=scores, after=scores, title="Pixel people")
    text = Path(made.file.path).read_text("utf-8")
    seen = " ".join(Reader(text).said)
    for word in ("Pixel people", "curate", "caption", "30 of 34", "Samples over time", "near duplicate", "2 kB", "in pixel style"):
        assert word in seen, word
    assert sl.report(said, patch=patch, before=scores, after=scores, title="Pixel people") == made
    laid = sl.sheet(scores.best(2, "sharpness"), title="Best")
    assert isinstance(laid, Image) and isinstance(scores, Scores)
