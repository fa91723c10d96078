"""Weights on words, in the two readings people have prompts for."""
from __future__ import annotations

import random

import pytest

from safelight.families.prompt import EMPHASES, Piece, in_comfy, parse

COMFY = {
    "": [],
    "a cat": [("a cat", 1.0)],
    "a (red:1.3) coat": [("a ", 1.0), ("red", 1.3), (" coat", 1.0)],
    "(red)": [("red", 1.1)],
    "((red))": [("red", 1.1 * 1.1)],
    "((red:1.2) coat:0.5)": [("red", 1.2), (" coat", 0.5)],
    "(ratio 3:4)": [("ratio 3", 4.0)],
    "(at noon: sun)": [("at noon: sun", 1.1)],
    "(red:nan)": [("red:nan", 1.1)],
    r"\(red\)": [("(red)", 1.0)],
    r"(a \(b\):1.2)": [("a (b)", 1.2)],
    "(never closed": [("(never closed", 1.0)],
    "[square]": [("[square]", 1.0)],
    "(红色:1.3)外套": [("红色", 1.3), ("外套", 1.0)],
}
A1111 = {
    "": [],
    "a (red:1.3) coat": [("a ", 1.0), ("red", 1.3), (" coat", 1.0)],
    "a [red] coat": [("a ", 1.0), ("red", 1 / 1.1), (" coat", 1.0)],
    "((red:1.2) coat:0.5)": [("red", 0.6), (" coat", 0.5)],
    "(never closed": [("never closed", 1.1)],
    "(joined)(up)": [("joinedup", 1.1)],
    r"\(red\]": [("(red]", 1.0)],
    "3:4 ) ]": [("3:4 ) ]", 1.0)],
}


@pytest.mark.parametrize(("text", "want"), COMFY.items())
def test_comfy(text: str, want: list[tuple[str, float]]) -> None:
    assert same(parse(text), want)


@pytest.mark.parametrize(("text", "want"), A1111.items())
def test_a1111(text: str, want: list[tuple[str, float]]) -> None:
    assert same(parse(text, "a1111"), want)


@pytest.mark.parametrize("emphasis", EMPHASES)
def test_any_text_is_read_and_letters_stay_in_order(emphasis: str) -> None:
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(["(", ")", "[", "]", "\\", ":1.2)", ":", "a", "b ", "ü"], k=rng.randrange(16)))
        got = "".join(c for piece in parse(text, emphasis) for c in piece.text if c.isalpha())
        assert got == "".join(c for c in text if c.isalpha())


def test_deep_nesting_is_no_stack_overflow() -> None:
    deep = 2000
    assert [p.text for p in parse("(" * deep + "a" + ")" * deep)] == ["a"]


def test_an_unknown_reading_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sdxl' is not known; expected one of comfy, a1111"):
        parse("a", "sdxl")


def same(got: list[Piece], want: list[tuple[str, float]]) -> bool:
    return [p.text for p in got] == [t for t, _ in want] and [p.weight for p in got] == pytest.approx([w for _, w in want])


@pytest.mark.parametrize("text", [t for t in A1111 if t])
def test_a1111_in_comfys_writing(text: str) -> None:
    assert same(parse(in_comfy(text, "a1111")), [Piece(*p) for p in A1111[text]])
    assert in_comfy(text, "comfy") == text
