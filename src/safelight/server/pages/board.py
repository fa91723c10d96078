"""Storyboards: many prompts, a line each, drawn with one load of the model and laid out on one sheet."""
from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import Response

from safelight.disk import put
from safelight.server.answering import studio
from safelight.server.pages.shell import render
from safelight.server.studio import Studio

router = APIRouter()

MARKS = {"n": "negative", "d": "seed", "s": "steps", "l": "scale"}
"""What may stand behind a prompt, as kohya's sample prompts have it: `a fox --n blurry --d 7 --s 30 --l 5`."""
MARK = re.compile(r"\s+--(?=[ndsl]\s)")
BYTES = 2**20
COLUMNS = 4
"""Pictures in a row of the sheet, and on the page."""


def rows(text: str, seed: int) -> list[dict[str, Any]]:
    """A storyboard's rows: of each line its prompt and what is behind it, the seed counted up from the given one where it has none.
    Empty lines and lines that begin with # are left out; tabs part prompt, negative prompt and seed as in a file."""
    found: list[dict[str, Any]] = []
    for line in (x.strip() for x in text.splitlines()):
        if line and line[0] != "#":
            first, *rest = MARK.split(line)
            row: dict[str, Any] = dict(zip(("prompt", "negative", "seed"), first.split("\t"), strict=False))
            row |= {MARKS[part[0]]: part[1:].strip() for part in rest}
            drawn = row.get("seed", "").strip() in ("", "-1")
            found.append({**row, "seed": str((seed + len(found)) % 2**32) if drawn else row["seed"]})
    return found


def kept(at: Studio, told: Sequence[Mapping[str, Any]]) -> tuple[str, list[dict[str, Any]]]:
    """The rows as a file among the uploads, and as the op reads it. ValueError naming the row that cannot be drawn."""
    from safelight.sampling.storyboard import read

    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told).encode()
    file = _place(at, raw, "jsonl")
    put(file, raw)
    return str(file), [{k: v for k, v in vars(line).items() if v is not None} for line in read(file)]


def _place(at: Studio, raw: bytes, end: str) -> Path:
    return at.shelves.input.path / "storyboards" / f"{hashlib.sha256(raw).hexdigest()[:16]}.{end}"


def written(row: Mapping[str, Any]) -> str:
    """A row as a line."""
    own = (f"--{mark} {row[name]}" for mark, name in MARKS.items() if row.get(name) is not None)
    return " ".join([*str(row["prompt"]).split(), *own])


@router.post("/studio/storyboard")
async def take(request: Request) -> Response:
    """A file of prompts (.txt, .csv, .jsonl, .yaml) as the form's lines."""
    from yaml import YAMLError

    from safelight.sampling.storyboard import read

    async with request.form(max_files=1) as sent:
        given = sent.get("board")
        name, raw = (given.filename or "", await given.read(BYTES + 1)) if isinstance(given, UploadFile) else ("", b"")
    end = name.rpartition(".")[2].lower()
    file = _place(studio(request), raw, end if end.isalnum() else "txt")
    try:
        if len(raw) > BYTES:
            raise ValueError(f"storyboard: {name} has more than {BYTES} bytes")
        put(file, raw)
        lines = [written(vars(line)) for line in read(file)]
    except (ValueError, YAMLError, RecursionError) as e:
        said = render(request, "_refused.html", 422, why=str(e).replace(file.name, name))
        said.headers["HX-Retarget"], said.headers["HX-Reswap"] = "#made", "afterbegin"
        return said
    return render(request, "_lines.html", text="\n".join(lines))
