"""Runs work for a command: bars on a terminal or events as JSON lines, then the results as files and a few words."""
from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from safelight.events import Answered, Ask, Event, Failed, Result
from safelight.progress import watch
from safelight.spec import Work
from safelight.values import Dataset, Image, Mask, Model, Page, Patch, Scores, Value

R = TypeVar("R")
OUT = Path("out")


def follow(work: Work[R], events: str | None) -> R:
    """Run to the end and return the value. With `events`, each event is a JSON line on stdout, the last one telling of a failure. Answered,
    having told the answer, when that is all that was asked for."""
    try:
        return watch(work) if events is None else _in_lines(work)
    except Answered as e:
        click.echo(e.answer.text) if events is None else tell(e.answer)
        raise


def _in_lines(work: Work[R]) -> R:
    try:
        while True:
            event = next(work)
            if not isinstance(event, Ask):  # it holds a network; the op answers itself
                tell(event)
    except StopIteration as stop:
        value: R = stop.value
        return value
    except Answered:
        raise
    except BaseException as e:
        stopped = isinstance(e, KeyboardInterrupt | GeneratorExit)
        tell(Failed(text="" if stopped else str(e), kind="stopped" if stopped else type(e).__name__))
        raise
    finally:
        work.close()


def tell(event: Event) -> None:
    """One event as a JSON line."""
    sys.stdout.write(json.dumps(event.json(), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def deliver(values: Mapping[str, Value], out: Path | None, events: str | None, layout: str | None = None) -> None:
    """Save what was asked for and say where it lies. Pictures and pages are saved in any case, the rest when `out` is given; a dataset
    as another program's folder when a layout is."""
    for node, value in values.items():
        files = _laid_out(value, out, layout) if layout else _saved(node, value, out, len(values))
        if events is not None:
            tell(Result(node, type=type(value).__name__, value=value.key, files=tuple(str(f) for f in files)))
            continue
        label = f"{node}: " if node else ""
        for line in (str(f) for f in files) if isinstance(value, Image | Page | Mask) else words(value, files):
            click.echo(label + line)


def tell_files(saved: Mapping[str, Sequence[Path]], events: str | None) -> None:
    """Say where the pictures of a ComfyUI prompt lie, by node."""
    for node, files in saved.items():
        if events is not None:
            tell(Result(node, type="Image", files=tuple(str(f) for f in files)))
            continue
        for file in files:
            click.echo(f"{node}: {file}")


def _saved(node: str, value: Value, out: Path | None, count: int) -> list[Path]:
    if not isinstance(value, Image | Page | Mask | Patch | Scores | Dataset | Model):
        return []
    if out is None:
        if isinstance(value, Image):
            return value.save(_free(OUT, value, node))
        return value.save(OUT / f"{node or type(value).__name__.lower()}{_suffix(value)}") if isinstance(value, Page | Mask) else []
    if count > 1 or (node and not out.suffix):
        return value.save(out / f"{node}{_suffix(value)}")
    return value.save(out)


def _laid_out(value: Value, out: Path | None, layout: str) -> list[Path]:
    from safelight.data.export import EXPORTS

    if out is None or not isinstance(value, Dataset):
        raise click.UsageError("--layout is for --out; give the folder that shall be made")
    return [EXPORTS[layout](value, out)]


def _suffix(value: Value) -> str:
    if isinstance(value, Page):
        return ".html" if value.media == "text/html" else ".png"
    return {Patch: ".safetensors", Scores: ".json"}.get(type(value), "")


def _free(folder: Path, image: Image, node: str) -> Path:
    """A file name (one picture) or folder (several) below `folder` that is not taken."""
    name = node or "picture"
    suffix = ".png" if len(image) == 1 else ""
    for i in range(10**6):
        path = folder / f"{name}-{i}{suffix}"
        if not path.exists():
            return path
    raise ValueError(f"{folder}: a million pictures named {name} are there; give --out")


def words(value: Value, files: Iterable[Path]) -> list[str]:
    """What to say of a value that is no picture."""
    lines = _told(value)
    where = [str(f) for f in files]
    return lines + (where if len(where) < 4 else [f"{len(where)} files in {Path(where[-1]).parent}"])


def _told(value: Value) -> list[str]:
    from safelight.lineage import about

    match value:
        case Dataset():
            lost: dict[str, int] = {}
            for row in value.rows:
                if row.dropped:
                    reason = row.dropped.partition(":")[0]
                    lost[reason] = lost.get(reason, 0) + 1
            dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(lost.items(), key=lambda kv: -kv[1]))
            return [f"{len(value)} pictures" + (f"; dropped: {dropped}" if dropped else "")]
        case Scores():
            return [f"picture {i}: " + ", ".join(f"{n} {v[i]:.4g}" for n, v in value.values.items()) for i in value.order()]
        case Patch():
            return [f"{value.kind}, {Path(value.weights.path).stat().st_size / 2**20:.1f} MB, in {value.weights.path}"]
    told: dict[str, Any] = about(value)
    return [f"{type(value).__name__} " + ", ".join(f"{k} {v}" for k, v in told.items() if not isinstance(v, list)) + f"  {value.key}"]
