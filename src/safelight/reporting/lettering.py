"""Words on pictures: one bundled font that has Latin and Chinese, the system's fonts for what it lacks, and line breaking for both."""
from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont
FOLDERS = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts", "/System/Library/Fonts", "/Library/Fonts",
           "C:/Windows/Fonts")
WIDE_COVER = re.compile(
    r"(cjk|notosans(sc|tc|jp|kr)|sourcehan|wqy|pingfang|hiragino|simhei|simsun|msyh|droidsansfallback|unifont|arialuni)", re.I)
NO_START = frozenset(",.;:!?)]}%…、。,;:!?)】》」』〉’”")  # a line does not begin with these
WIDE = r"\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
PIECES = re.compile(rf"\s+|[{WIDE}]|[^\s{WIDE}]+")  # blanks, single Chinese characters, words


@lru_cache(maxsize=32)
def _load(path: str, size: int) -> Font:
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # raqm is not in every build, and would move glyphs


@cache
def _system() -> tuple[str, ...]:
    """Fonts of the system that are known to have many characters, in a fixed order; looked for once, when first needed."""
    found = [p for folder in FOLDERS for p in Path(folder).expanduser().rglob("*") if p.suffix.lower() in {".ttf", ".ttc", ".otf"}]
    wide = [p for p in found if WIDE_COVER.search(p.name.replace("-", ""))]
    return tuple(str(p) for p in sorted(wide, key=lambda p: ("regular" not in p.name.lower(), str(p))))


@cache
def _has(path: str, char: str) -> bool:
    """Whether the font has a glyph of its own for the character: one that differs from what it shows for an unassigned one."""
    font = _load(path, 32)
    return char.isspace() or bytes(font.getmask(char)) != bytes(font.getmask("\U0010fffe"))


@cache
def _path(char: str) -> str:
    own = str(files("safelight") / "reporting" / "fonts" / "noto-sans-sc.otf")
    if _has(own, char):
        return own
    for path in _system():
        try:
            if _has(path, char):
                return path
        except OSError:  # a damaged font file is none
            continue
    return own  # its box for "no such character"


def runs(text: str, size: int) -> list[tuple[str, Font]]:
    """The text cut where the font changes."""
    out: list[tuple[str, Font]] = []
    for char in text:
        font = _load(_path(char), size)
        if out and out[-1][1] is font:
            out[-1] = (out[-1][0] + char, font)
        else:
            out.append((char, font))
    return out


def width(text: str, size: int) -> float:
    """Pixels that the text takes on one line."""
    return sum(font.getlength(part) for part, font in runs(text, size))


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, fill: str) -> None:
    """Draw one line; `at` is its left end on the baseline."""
    x, y = at
    for part, font in runs(text, size):
        draw.text((x, y), part, font=font, fill=fill, anchor="ls")
        x += font.getlength(part)


def wrap(text: str, size: int, room: float, lines: int) -> list[str]:
    """The text in at most `lines` lines of `room` pixels; the last ends in an ellipsis when something is left out.

    Breaks at blanks and between Chinese characters, never before closing punctuation; a word longer than a line is cut.
    """
    out = [""]
    for piece in PIECES.findall(" ".join(text.split())):
        if width(out[-1] + piece.rstrip(), size) <= room or (piece in NO_START and out[-1]):
            out[-1] += piece
        elif not piece.isspace():
            out += _cut(piece, size, room)
    out = [line.strip() for line in out if line.strip()]
    if len(out) <= lines:
        return out
    last = out[lines - 1]
    while last and width(last + "...", size) > room:
        last = last[:-1]
    return [*out[:lines - 1], last.rstrip() + "..."]


def _cut(word: str, size: int, room: float) -> list[str]:
    """A word in pieces that fit; at least one character each."""
    out = [""]
    for char in word:
        if out[-1] and width(out[-1] + char, size) > room:
            out.append("")
        out[-1] += char
    return out
