"""Changing captions: words replaced, tags put in another order or left out. Text in, text out; the same seed and row, the same text."""
from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from safelight.values import digest

PARTS = re.compile(r"\s*[,，、]\s*")
WIDE = re.compile(r"[，、]")


def parts(text: str) -> list[str]:
    """What stands between commas, Chinese ones too; nothing twice, nothing empty."""
    return list(dict.fromkeys(p for p in (x.strip() for x in PARTS.split(text)) if p))


def comma(text: str) -> str:
    """The comma that a caption is written with."""
    return "，" if WIDE.search(text) and "," not in text else ", "


def replacer(find: str, replace: str, *, regex: bool) -> Callable[[str], str]:
    r"""Replaces every `find`, as it stands or as a regular expression (`\1` in `replace` is its first group), and tidies what is left.

    An emptied place between commas goes with its comma. ValueError when the expression, or a group that is named, is none.
    """
    if not find:
        return str
    try:
        pattern = re.compile(find if regex else re.escape(find))
        given = replace if regex else replace.replace("\\", r"\\")
        pattern.sub(given, "")
        re.compile(f"{find}|" if regex else "").sub(given, "")  # an empty match, so that groups in `replace` are looked up
    except (re.error, IndexError) as error:
        raise ValueError(f"reword: find {find!r}, replace {replace!r}: {error}; regex=False takes them as they stand") from error

    def work(text: str) -> str:
        done = pattern.sub(given, text)
        return text if done == text else _tidied(done)

    return work


def _tidied(text: str) -> str:
    kept = re.sub(r"\s*([,，、])(\s*[,，、])+", r"\1", text)
    return " ".join(kept.split()).strip(",，、 ")


@dataclass(frozen=True)
class TagEdit:
    """What happens to the parts between commas, in this order: `undesired` ones go; `first` ones are moved to the front; the next
    `keep_first` stay in their place; of the rest each is dropped with the probability `drop`, and with `shuffle` their order is drawn."""

    undesired: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    keep_first: int = 0
    drop: float = 0.0
    shuffle: bool = False
    seed: int = 0

    def __call__(self, text: str, row: str) -> str:
        """The caption of the row that is identified by `row`; one tag stays when all would be dropped."""
        undesired, first = {t.casefold() for t in self.undesired}, [t.casefold() for t in self.first]
        tags = [t for t in parts(text) if t.casefold() not in undesired]
        front = sorted((t for t in tags if t.casefold() in first), key=lambda t: first.index(t.casefold()))
        others = [t for t in tags if t not in front]
        kept, free = [*front, *others[:self.keep_first]], others[self.keep_first:]
        lots = {t: _lot(self.seed, row, t) for t in free}
        left = [t for t in free if _share(lots[t][:16]) >= self.drop]
        if not kept and not left and free:
            left = [max(free, key=lambda t: _share(lots[t][:16]))]
        if self.shuffle:
            left.sort(key=lambda t: lots[t][16:])
        return comma(text).join([*kept, *left])


def _lot(seed: int, row: str, tag: str) -> str:
    return digest("tag", str(seed), row, tag)


def _share(lot: str) -> float:
    """16 hex digits as a number in [0, 1)."""
    return int(lot, 16) / 16**16
