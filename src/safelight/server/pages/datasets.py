"""Datasets: a folder as a contact sheet, sorted out live, captions edited in layers. Pictures and their own captions are never changed."""
from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.disk import put
from safelight.engine import finish
from safelight.server.answering import studio
from safelight.server.files import Outside
from safelight.server.pages import shell
from safelight.server.pages.shell import render
from safelight.server.studio import Studio
from safelight.values import Caption, Dataset, Row

router = APIRouter(prefix="/studio/datasets")

SIDE = 320
"""Longer side of a shown picture, pixels."""
SHOWN = 60
"""Pictures of a page."""
DEEP, MOST = 3, 200
"""How far below the roots folders are looked for, and how many are listed."""
BARS = 24
SETTINGS: Mapping[str, tuple[str, float, float, float, float]] = {
    "min_side": ("Shorter side, pixels", 0, 2048, 8, 128), "max_aspect": ("Longest shape, ratio", 1, 6, 0.1, 3),
    "min_contrast": ("Least contrast", 0, 0.3, 0.01, 0.02), "min_sharpness": ("Least sharpness", 0, 300, 1, 0),
    "near_duplicates": ("Look-alikes, bits", -1, 16, 1, 6),
}
"""Name -> label, least, most, step, default: the knobs of `curate` that the page has."""


@dataclass(frozen=True)
class Histogram:
    """Counts of kept and of dropped pictures in equal parts of [low, high]."""

    label: str
    low: float
    high: float
    kept: Sequence[int]
    dropped: Sequence[int]

    @property
    def most(self) -> int:
        """The highest bar."""
        return max(1, *(a + b for a, b in zip(self.kept, self.dropped, strict=True)))


def place(at: Studio, told: str) -> Path:
    """A folder that pages may show. Outside for any other."""
    path = Path(told).expanduser()
    found = (path if path.is_absolute() else at.setup.data[0] / path).resolve()
    if not any(found.is_relative_to(root.resolve()) for root in at.setup.data):
        allowed = ", ".join(map(str, at.setup.data))
        raise Outside(f"dataset: {told!r} is outside of the folders that this server may show ({allowed}); --data adds one")
    return found


def folders_below(roots: Iterable[Path]) -> list[dict[str, Any]]:
    """Folders with pictures, not too deep: path, name and how many."""
    from safelight.data.folder import is_picture

    found: list[dict[str, Any]] = []
    todo = [(root, root, 0) for root in roots]
    while todo and len(found) < MOST:
        root, folder, depth = todo.pop(0)
        try:
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError:
            continue
        count = sum(e.is_file() and Path(e.name).suffix.lower() in PICTURES and is_picture(Path(e.path)) for e in entries[:2000])
        if count:
            found.append({"path": str(folder), "name": folder.relative_to(root.parent).as_posix(), "count": count})
        deeper = [e for e in entries if e.is_dir(follow_symlinks=False) and e.name[0] not in "._" and e.name not in SKIPPED]
        todo += [(root, Path(e.path), depth + 1) for e in deeper] if depth < DEEP else []
    return found


PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
SKIPPED = ("node_modules", "build", "dist", "site", "__pycache__", "out", "src", "tests")


@router.get("")
async def page(request: Request) -> Response:
    """The list of folders, or (`path`) one of them."""
    at, told = studio(request), request.query_params.get("path", "")
    if not told:
        found = await asyncio.to_thread(folders_below, at.setup.data)
        return render(request, "datasets.html", folders=found, roots=[str(r) for r in at.setup.data])
    return render(request, "dataset.html", settings=SETTINGS, **await _looked(request))


@router.get("/sorted")
async def sorted_out(request: Request) -> Response:
    """The folder under other settings, or (`from`) more of its pictures."""
    return render(request, "_more_rows.html" if "from" in request.query_params else "_sorted.html", **await _looked(request))


def settings(query: Mapping[str, str]) -> dict[str, float]:
    """The sliders' values."""
    return {k: float(query.get(k) or low[4]) for k, low in SETTINGS.items()}


async def _looked(request: Request) -> dict[str, Any]:
    at, query = studio(request), request.query_params
    path, given = place(at, query.get("path", "")), settings(query)
    start = shell.start(request)
    data = await asyncio.to_thread(lambda: decided(at, path, sort_out(read(at, path), given)))
    side = query.get("show", "kept")
    rows = [r for r in data.rows if (not r.dropped) == (side != "dropped")]
    return {
        "path": str(path), "name": path.name, "given": given, "show": side, "rows": rows[start : start + SHOWN], "start": start,
        "next": start + SHOWN if start + SHOWN < len(rows) else 0, "total": len(data.rows), "kept": sum(not r.dropped for r in data.rows),
        "reasons": Counter(r.dropped.partition(":")[0] for r in data.rows if r.dropped).most_common(),
        "bare": sum(not r.caption for r in data.rows if not r.dropped), "histograms": list(histograms(data.rows)),
        "alike": sum("like" in r.info for r in data.rows), "layer": layer,
    }


def read(at: Studio, path: Path) -> Dataset:
    """The folder as it is, with what was written on this page as the topmost captions."""
    from safelight.data.folder import read_folder

    data, said = finish(read_folder(path)), written(at, path)
    rows = tuple(
        Row(r.picture, r.name, r.width, r.height, (*r.captions, Caption("human", said[r.name])), r.dropped, r.info) if r.name in said else r
        for r in data.rows
    )
    return Dataset(rows, data.info) if said else data


def sort_out(data: Dataset, given: Mapping[str, float]) -> Dataset:
    """As the op `curate` does; what was measured once is not measured again."""
    from safelight.op import load_ops

    found: Dataset = load_ops()["curate"](
        data, min_side=max(int(given["min_side"]), 1), max_aspect=given["max_aspect"], min_aspect=round(1 / given["max_aspect"], 3),
        min_contrast=given["min_contrast"], min_sharpness=given["min_sharpness"], near_duplicates=int(given["near_duplicates"]),
    )
    return found


def histograms(rows: Sequence[Row]) -> Iterable[Histogram]:
    """Of the shorter side and of what was measured."""
    import numpy as np  # here, so that the server starts without it

    values = {"Shorter side, pixels": [(min(r.width, r.height), bool(r.dropped)) for r in rows if r.width]}
    for measure, label in (("sharpness", "Sharpness"), ("contrast", "Contrast")):
        told = [(r.info.get("measures", {}).get(measure), bool(r.dropped)) for r in rows]
        values[label] = [(v, d) for v, d in told if v is not None]
    for label, pairs in values.items():
        if pairs:
            numbers = np.array([v for v, _ in pairs], dtype=float)
            low, high = float(numbers.min()), float(np.quantile(numbers, 0.99))
            out = np.array([d for _, d in pairs])
            bins, span = np.clip(numbers, low, high), (low, high if high > low else low + 1)
            kept, dropped = (np.histogram(bins[out == side], BARS, span)[0].tolist() for side in (False, True))
            yield Histogram(label, low, high, kept, dropped)


def layer(caption: Caption) -> str:
    """Whose a caption is: human, machine or source."""
    from safelight.data.captions import kind_of

    return kind_of(caption)


def decided(at: Studio, path: Path, data: Dataset) -> Dataset:
    """With what was left out and taken back on these pages."""
    from safelight.data.curation import chosen

    known = written(at, path, "choices").keys() & {r.name for r in data.rows}
    return finish(chosen(data, table(at, path, "choices"))) if known else data


def table(at: Studio, path: Path, of: str = "captions") -> Path:
    """Where `captions` written on these pages are kept, a table that `take-captions` reads; and `choices`, for `choose-pictures`."""
    return at.shelves.input.path / of / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.jsonl"


def written(at: Studio, path: Path, of: str = "captions") -> dict[str, str]:
    """What was written on these pages, by the picture's name."""
    file = table(at, path, of)
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {entry["file_name"]: entry["text"] for entry in map(json.loads, lines)}


def write_down(at: Studio, path: Path, said: Mapping[str, str], of: str = "captions") -> None:
    """Keep more of it; an empty text takes one out."""
    both = {**written(at, path, of), **said}
    lines = (json.dumps({"file_name": k, "text": v}, ensure_ascii=False) + "\n" for k, v in sorted(both.items()) if v)
    put(table(at, path, of), "".join(lines).encode())


@router.post("/caption")
async def write(request: Request) -> Response:
    """Lay a caption on a picture; an empty one takes the last off."""
    at = studio(request)
    async with request.form() as sent:
        told, name, text = (str(sent.get(k, "")) for k in ("path", "name", "text"))
    path, text = place(at, told), " ".join(text.split())
    row = next((r for r in (await asyncio.to_thread(read, at, path)).rows if r.name == name), None)
    if row is None:
        return render(request, "_refused.html", 404, why=f"{name} is not in {path}")

    def keep() -> Dataset:
        write_down(at, path, {name: text})
        return read(at, path)

    if text != row.caption:
        data = await asyncio.to_thread(keep)
        row = next(r for r in data.rows if r.name == name)
    return render(request, "_caption.html", row=row, path=str(path), layer=layer)


@router.get("/doctor")
async def doctor(request: Request) -> Response:
    """What is wrong with the folder, before a step is spent on it."""
    from safelight.data.doctor import KINDS, Limits, by_kind, examine
    from safelight.index import home

    path = place(studio(request), request.query_params.get("path", ""))
    found = await asyncio.to_thread(lambda: finish(examine(path, Limits(min_side=64), kept=home() / "measures.sqlite")))
    kinds = [(*KINDS[kind], [(f.file, f.text) for f in some[:8]], len(some)) for kind, some in by_kind(found.findings)]
    return render(request, "_doctor.html", kinds=kinds, files=found.files, pictures=len(found.rows))


@router.get("/picture")
async def picture(request: Request) -> Response:
    """One picture of a folder, small."""
    at, query = studio(request), request.query_params
    folder = place(at, query.get("path", ""))
    file = place(at, str(folder / query.get("name", "")))
    if not file.is_file():
        return Response(status_code=404)
    return Response(await asyncio.to_thread(small, file), media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})


def small(file: Path) -> bytes:
    """The picture as a WebP of at most SIDE pixels a side. Unreadable when it cannot be shown."""
    from PIL import Image as Pil

    from safelight.pictures import read as pixels

    shown, held = Pil.fromarray(pixels(file, least=SIDE)), BytesIO()
    shown.thumbnail((SIDE, SIDE))
    shown.save(held, "WEBP", quality=80, method=2)
    return held.getvalue()
