"""A dataset card: README.md in the form of the Hugging Face hub, https://huggingface.co/docs/hub/datasets-cards."""
from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

import yaml

from safelight.data import summary
from safelight.data.captions import kind_of
from safelight.values import Dataset, Row

CC = re.compile(r"(?:cc[- ]|licenses/)(by(?:-(?:nc|nd|sa))*)[- /](\d\.\d)", re.IGNORECASE)
GNU = re.compile(r"\b([al]?gpl)[- ]?v?(\d)(\.\d)?", re.IGNORECASE)
IDS = {
    "cc0-1.0": r"\bcc0|public ?domain", "mit": r"\bmit\b", "apache-2.0": r"\bapache",
    "bsd-3-clause": r"\bbsd[- ]3", "unsplash": r"\bunsplash",
}
"""The hub's name of a licence, and how people write it; Creative Commons' and GNU's licences are named by their parts."""
CATEGORIES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
CHINESE = re.compile(r"[\u4e00-\u9fff]")
MOST = 20


def card(data: Dataset, title: str, licence: str = "") -> str:
    """The whole text: the hub's header, numbers, how the pictures were captioned, licences, sources, credits, what was left out.

    Only what the rows say is said; what nobody stated is called so. `licence` is that of pictures which state none.
    """
    rows = [_licensed(r, licence) for r in data.kept]
    header = yaml.safe_dump(_header(rows, title), sort_keys=False, allow_unicode=True)
    parts = [f"---\n{header}---\n\n# {title}\n", _numbers(rows), _captions(rows), _licences(rows), _left_out(data)]
    return "\n".join(p for p in parts if p)


def _licensed(row: Row, licence: str) -> Row:
    if not licence or summary.told(row, "licence"):
        return row
    return dataclasses.replace(row, info={**row.info, "origin": {**row.info.get("origin", {}), "licence": licence}})


def _header(rows: Sequence[Row], title: str) -> dict[str, object]:
    licences = {_id(name) for name, _ in summary.origins(rows, "licence")}
    size = next((name for bound, name in CATEGORIES if len(rows) < bound), "n>1M")
    captions = [r.caption for r in rows if r.caption]
    spoken = {"zh" if CHINESE.search(c) else "en" for c in captions}
    known = {"license": licences.pop() if len(licences) == 1 else "other"} if licences != {""} else {}
    return {"pretty_name": title, **known, "task_categories": ["text-to-image"], "size_categories": [size],
            **({"language": sorted(spoken)} if spoken else {})}


def _id(name: str) -> str:
    """The hub's identifier; `other` for a licence it has no name for, empty when none was stated."""
    if name == summary.UNKNOWN:
        return ""
    if cc := CC.search(name):
        return f"cc-{cc[1]}-{cc[2]}".lower()
    if gnu := GNU.search(name):
        return f"{gnu[1]}-{gnu[2]}{gnu[3] or '.0'}".lower()
    return next((known for known, written in IDS.items() if re.search(written, name, re.IGNORECASE)), "other")


def _table(head: tuple[str, str], bars: Sequence[tuple[str, object]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "| --- | --- |", *(f"| {str(a).replace('|', '/')} | {b} |" for a, b in bars[:MOST])]
    return "\n".join([*lines, *([f"| and {len(bars) - MOST} more | |"] if len(bars) > MOST else [])]) + "\n"


def _numbers(rows: Sequence[Row]) -> str:
    formats = ", ".join(f"{n} {name}" for name, n in Counter(str(r.info.get("format", "unknown")) for r in rows).most_common())
    shorter = sorted(min(r.width, r.height) for r in rows)
    captioned = sum(bool(r.caption) for r in rows)
    facts: list[tuple[str, object]] = [("pictures", len(rows)), ("with a caption", captioned), ("formats", formats)]
    if shorter:
        facts.append(("shorter side", f"{shorter[0]} to {shorter[-1]} px, median {shorter[len(shorter) // 2]}"))
    total = sum(int(r.info.get("bytes", 0)) for r in rows)
    facts.append(("on disk", f"{total / 10**6:.1f} MB" if total > 10**6 else f"{total / 1000:.0f} kB"))
    changed = Counter(kind for r in rows for kind in ("augmented", "background") if kind in r.info)
    facts += [(f"{kind} by Safelight", n) for kind, n in changed.items()]
    return _table(("what", "how much"), facts)


def _captions(rows: Sequence[Row]) -> str:
    kinds = {"human": "written by people", "machine": "written by a captioner", "source": "came with the pictures"}
    said = Counter((r.captions[-1].by, kinds[kind_of(r.captions[-1])]) for r in rows if r.caption)
    bars = [(f"`{by}` ({how})", n) for (by, how), n in said.most_common()]
    bare = sum(not r.caption for r in rows)
    return "## Captions\n\n" + _table(("caption in use", "pictures"), [*bars, *([("none", bare)] if bare else [])])


def _licences(rows: Sequence[Row]) -> str:
    parts = ["## Licences and sources\n"]
    parts += [_table((what, "pictures"), summary.origins(rows, what)) for what in ("licence", "source")]
    if any(name == summary.UNKNOWN for name, _ in summary.origins(rows, "licence")):
        parts.append("Of pictures without a stated licence nothing may be assumed: ask their authors before you share them.\n")
    credits = sorted({str((r.info.get("origin") or {}).get("attribution") or "") for r in rows} - {""})
    if credits:
        parts += ["### Credits\n", "\n".join(f"- {line}" for line in credits) + "\n"]
    return "\n".join(parts)


def _left_out(data: Dataset) -> str:
    reasons = Counter(r.dropped.partition(":")[0] for r in data.rows if r.dropped).most_common()
    return "## Left out\n\n" + _table(("reason", "pictures"), reasons) if reasons else ""
