"""More rows from the pictures there are, with captions that stay true. The same seed and picture give the same bytes."""
from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image as Pil
from PIL import ImageColor, ImageEnhance

from safelight.events import Event, Note, Progress
from safelight.pictures import Unreadable, layers
from safelight.values import Blob, Caption, Dataset, Row, digest

Keep = Callable[[bytes, str], Blob]
"""Keeps a new file's bytes under a suffix and says where."""

SIDES = re.compile(r"\b(left|right)(?=\b|most\b|wards?\b|-)|[左右]", re.IGNORECASE)
OTHER = {"left": "right", "right": "left", "左": "右", "右": "左"}
FIXED = re.compile(
    r"\b(text|letters?|lettering|words?|writing|written|signs?|signage|logos?|labels?|titles?|captions?|watermarks?|signatures?|numbers?|"
    r"digits?|numerals?|clocks?|maps?|flags?|kanji|hanzi|says|reads|reading|(counter|anti)?-?clockwise|speech bubble|subtitles?)\b|"
    r"[\"“”「」『』]|文字|字母|汉字|漢字|标志|標誌|招牌|水印|数字|數字|写着|寫著|标题|字幕|签名|时钟|地图|国旗|时针",
    re.IGNORECASE)
"""What a mirror makes wrong and no other word makes right: writing, dials, maps, flags."""


def swapped(text: str) -> str:
    """Left and right, 左 and 右, exchanged; capitals stay capitals."""
    def other(found: re.Match[str]) -> str:
        word = OTHER[found[0].lower()]
        return word.upper() if found[0].isupper() and len(word) > 1 else word.capitalize() if found[0][0].isupper() else word

    return SIDES.sub(other, text)


@dataclass(frozen=True)
class Ways:
    """What may change. `flip` is no, skip or swap; `rotate` degrees to either side; `scale`, `crop` and `colour` shares in [0, 1)."""

    copies: int = 1
    flip: str = "no"
    rotate: float = 0.0
    scale: float = 0.0
    crop: float = 0.0
    colour: float = 0.0
    seed: int = 0

    def may_flip(self, caption: str) -> bool:
        """Whether a mirrored picture can have a true caption."""
        if self.flip == "no" or FIXED.search(caption):
            return False
        return self.flip == "swap" or not SIDES.search(caption)

    @property
    def others(self) -> bool:
        """Whether anything but mirroring is asked for."""
        return any((self.rotate, self.scale, self.crop, self.colour))


@dataclass(frozen=True)
class Change:
    """One drawn change: mirrored, degrees counter-clockwise, window (left and top in [0, 1] of the room there is, and its share of each
    side), size, and factors of brightness, contrast and saturation."""

    flip: bool
    degrees: float
    window: tuple[float, float, float]
    factor: float
    tones: tuple[float, float, float]


def drawn(ways: Ways, row: Row, copy: int) -> Change:
    """What is done for this copy of this picture."""
    g = np.random.Generator(np.random.Philox(int(digest("augment", str(ways.seed), row.picture.sha256, str(copy))[:16], 16)))
    u: list[float] = g.random(9).tolist()

    def around(share: float, at: int) -> float:
        return 1 + share * (2 * u[at] - 1)

    flip = ways.may_flip(row.caption) and (u[0] < 0.5 or not ways.others)
    return Change(flip, ways.rotate * (2 * u[1] - 1), (u[2], u[3], 1 - ways.crop * u[4]), around(ways.scale, 5),
                  (around(ways.colour, 6), around(ways.colour, 7), around(ways.colour, 8)))


def applied(picture: Pil.Image, change: Change) -> Pil.Image:
    """The changed picture. Of a turned one the largest upright part of the same shape is taken, so that no corner is invented."""
    if change.flip:
        picture = picture.transpose(Pil.Transpose.FLIP_LEFT_RIGHT)
    whole = picture.size
    inner = [float(side) for side in whole]
    if change.degrees:
        picture = picture.rotate(change.degrees, Pil.Resampling.BICUBIC)
        inner = [side * inscribed(*whole, change.degrees) for side in whole]
    left, top, share = change.window
    size = [max(1, int(side * share)) for side in inner]
    if size != list(whole):
        x, y = (int((w - i) / 2 + (i - s) * u) for w, i, s, u in zip(whole, inner, size, (left, top), strict=True))
        picture = picture.crop((x, y, x + size[0], y + size[1]))
    if change.factor != 1:
        wanted = max(1, round(picture.width * change.factor)), max(1, round(picture.height * change.factor))
        picture = picture.resize(wanted, Pil.Resampling.LANCZOS)
    for enhance, by in zip((ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color), change.tones, strict=True):
        picture = enhance(picture).enhance(by) if by != 1 else picture
    return picture


def inscribed(width: float, height: float, degrees: float) -> float:
    """How much of each side the largest upright rectangle of the same shape keeps inside the turned picture."""
    a = math.radians(abs(degrees))
    sin, cos = math.sin(a), math.cos(a)
    return min(width / (width * cos + height * sin), height / (width * sin + height * cos))


def augment(data: Dataset, ways: Ways, keep: Keep) -> Generator[Event, None, Dataset]:
    """Every kept row, followed by its changed copies. A copy that would be the picture itself is not made; a Note says how many."""
    rows, skipped, taken = [], 0, {row.name for row in data.rows}
    for n, row in enumerate(data.rows):
        rows.append(row)
        if row.dropped:
            continue
        if n % 20 == 0:
            yield Progress(step=n, total=len(data.rows), what="augmenting pictures", unit="picture")
        for copy in range(ways.copies if ways.others else 1):
            change = drawn(ways, row, copy)
            if ways.others or change.flip:
                rows.append(_copy(row, change, keep, taken))
            else:
                skipped += 1
    if skipped:
        why = "nothing that may change was asked for" if ways.flip == "no" else "their captions speak of sides, writing or the like"
        yield Note(text=f"augment: {skipped} of {len(data)} pictures have no copy: {why}", level="warning")
    return dataclasses.replace(data, rows=tuple(rows))


def _copy(row: Row, change: Change, keep: Keep, taken: set[str]) -> Row:
    picture = applied(_opened(row, "augment"), change)
    captions = row.captions
    if change.flip and swapped(row.caption) != row.caption:
        captions = (*captions, Caption(f"{captions[-1].by}+flip", swapped(row.caption)))
    first = row.info.get("augmented", {}).get("sha256", row.picture.sha256)  # what must stay on one side of a held-out split
    done = {"of": row.name, "sha256": first, **dataclasses.asdict(change)}
    return _row(row, picture, _free(row.name, "-aug", taken), keep, captions=captions, more={"augmented": done})


def _row(row: Row, picture: Pil.Image, name: str, keep: Keep, *, captions: tuple[Caption, ...], more: dict[str, Any]) -> Row:
    out = io.BytesIO()
    picture.save(out, "PNG")
    info = {k: v for k, v in row.info.items() if k not in ("measures", "tokens")}
    info |= {"format": "png", "bytes": len(out.getvalue()), **more}
    return Row(keep(out.getvalue(), ".png"), name, *picture.size, captions, "", info)


def _opened(row: Row, op: str) -> Pil.Image:
    """The first frame, upright, with its transparency where it has any."""
    try:
        frames, clear = layers(row.picture.path, most=1)
    except Unreadable as error:
        raise ValueError(f"{op}: {row.name} cannot be decoded ({error}); curate drops such pictures") from error
    picture = Pil.fromarray(frames[0])
    return picture if clear else picture.convert("RGB")


def _free(name: str, mark: str, taken: set[str]) -> str:
    path, n = PurePosixPath(name), 1
    while (found := str(path.with_name(f"{path.stem}{mark}{n if mark else n - 1 or ''}.png"))) in taken:
        n += 1
    taken.add(found)
    return found


def fill(data: Dataset, colours: tuple[str, ...], keep: Keep, *, say: bool) -> Generator[Event, None, Dataset]:
    """Pictures with transparency are laid over one of the colours, by their content; a Note says how many. The files stay as they are."""
    wrong = next((c for c in colours if not _is_colour(c)), None)
    if wrong is not None or not colours:
        raise ValueError(f"fill_background: colours: got {wrong or 'none'!r}, expected names such as white or #rrggbb")
    rows, filled = [], 0
    taken = {row.name for row in data.rows}
    for row in data.rows:
        picture = None if row.dropped else _opened(row, "fill_background")
        if picture is None or picture.mode != "RGBA" or picture.getchannel("A").getextrema()[0] == 255:
            rows.append(row)
            continue
        colour = colours[int(digest("background", row.picture.sha256)[:8], 16) % len(colours)]
        page = Pil.alpha_composite(Pil.new("RGBA", picture.size, (*ImageColor.getrgb(colour)[:3], 255)), picture).convert("RGB")
        taken.discard(row.name)
        done = {"background": {"of": row.name, "sha256": row.picture.sha256, "colour": colour}}
        captions = _told(row, colour) if say else row.captions
        rows.append(_row(row, page, _free(row.name, "", taken), keep, captions=captions, more=done))
        filled += 1
    yield Note(text=f"fill_background: {filled} of {len(data)} pictures had transparent places")
    return dataclasses.replace(data, rows=tuple(rows))


def _is_colour(name: str) -> bool:
    try:
        return max(ImageColor.getrgb(name)) < 256
    except ValueError:
        return False


def _told(row: Row, colour: str) -> tuple[Caption, ...]:
    if colour.startswith("#") or not row.caption or re.search(r"background|背景", row.caption, re.IGNORECASE):
        return row.captions
    return (*row.captions, Caption(f"{row.captions[-1].by}+background", f"{row.caption}, {colour} background"))
