"""Pictures that are there twice, side by side; and every choice made by hand, kept as a table beside the folder's captions. Nothing is
deleted."""
from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from safelight.server.answering import studio
from safelight.server.pages import datasets
from safelight.server.pages.shell import render
from safelight.server.studio import Studio
from safelight.values import Dataset, Row

router = APIRouter(prefix="/studio/datasets")

KEEP, OUT, ALL = "keep", "by hand", "*"


@dataclass(frozen=True)
class Twins:
    """Pictures taken for the same, the one first that is kept unless somebody says otherwise; `bits` by which each of them differs from
    it, None for the very same file. `kept` is the name of the one that stays, or ALL."""

    rows: Sequence[Row]
    bits: Sequence[int | None]
    kept: str


def groups(data: Dataset) -> list[Twins]:
    """All of them, the most alike first."""
    by_name = {row.name: row for row in data.rows}
    found: dict[str, list[Row]] = {}
    for row in data.rows:
        if (kept := dict(row.info.get("like") or {}).get("kept")) in by_name:
            found.setdefault(str(kept), []).append(row)
    made = [_twins([by_name[name], *rows]) for name, rows in found.items()]
    return sorted(made, key=lambda t: min(b or 0 for b in t.bits[1:]))


def _twins(rows: Sequence[Row]) -> Twins:
    stay = [row.name for row in rows if not row.dropped]
    return Twins(rows, [0, *(row.info["like"].get("bits") for row in rows[1:])], stay[0] if len(stay) == 1 else ALL if stay else "")


def choose(at: Studio, path: Path, automatic: Dataset, wanted: Mapping[str, bool]) -> Dataset:
    """Keep or leave out pictures by name; what would be so anyway needs no choice. The folder as it is then."""
    alone = {row.name: not row.dropped for row in automatic.rows}
    told = {name: "" if alone.get(name) == stays else KEEP if stays else OUT for name, stays in wanted.items() if name in alone}
    datasets.write_down(at, path, told, "choices")
    return datasets.decided(at, path, automatic)


async def _sent(request: Request) -> tuple[Path, list[str], dict[str, str], Dataset]:
    """The folder, the pictures that are meant, the other fields, and the folder without choices."""
    at = studio(request)
    async with request.form() as form:
        given = {k: v for k, v in form.items() if isinstance(v, str)}
        names = [str(v) for v in form.getlist("name")]
    path = datasets.place(at, given.get("path", ""))
    data = await asyncio.to_thread(lambda: datasets.sort_out(datasets.read(at, path), datasets.settings(given)))
    return path, names, given, data


@router.get("/twins")
async def page(request: Request) -> Response:
    """Every group of pictures that are taken for the same."""
    at, query = studio(request), request.query_params
    path, given = datasets.place(at, query.get("path", "")), datasets.settings(query)
    data = await asyncio.to_thread(lambda: datasets.decided(at, path, datasets.sort_out(datasets.read(at, path), given)))
    return render(request, "twins.html", path=str(path), name=path.name, given=given, groups=groups(data), all=ALL)


@router.post("/twins")
async def keep(request: Request) -> Response:
    """Keep one of a group, or ALL of it; the group as it is then."""
    path, names, given, data = await _sent(request)
    now = await asyncio.to_thread(choose, studio(request), path, data, {name: given.get(KEEP) in (name, ALL) for name in names})
    found = next((t for t in groups(now) if t.rows[0].name in names), None)
    if found is None:
        return render(request, "_refused.html", 404, why=f"these pictures are not in {path}")
    return render(request, "_twins.html", path=str(path), twins=found, all=ALL, given=datasets.settings(given))


@router.post("/choose")
async def one(request: Request) -> Response:
    """Leave one picture out, or take it back (`keep`); the picture as it is then."""
    path, names, given, data = await _sent(request)
    now = await asyncio.to_thread(choose, studio(request), path, data, {name: bool(given.get(KEEP)) for name in names})
    rows = [row for row in now.rows if row.name in names]
    if not rows:
        return render(request, "_refused.html", 404, why=f"{', '.join(names)} is not in {path}")
    return render(request, "_row.html", path=str(path), row=rows[0], layer=datasets.layer)
